"""Runs of `jobs.label`, whose masks of a good score are taken for the truth."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import originals, runs
from pipeline.coco_file import annotations_of
from pipeline.datasets.checking import check_masks
from pipeline.datasets.dataset import Dataset
from pipeline.datasets.unpacking import default_cache, unpack
from pipeline.errors import AccessError, ShardError, UserError
from pipeline.parallel import ahead
from pipeline.records import Commit, Manifest, Shard
from pipeline.store import Store, absolute, join, redact
from pipeline.view import View

log = logging.getLogger("pipeline.datasets")

_THREADS, _UNPACKING_THREADS = 8, 4  # shards at a time
_PROBES = 8
_KEYS = ("image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What a shard adds, in COCO form. By image id: `uris` of images on their own, `packed` keys of those within it."""

    shard: Shard
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    uris: dict[int, str]
    packed: dict[int, str]


def read(run: str, view: View, *, store: Store, key: str, cache: Path | None) -> Dataset:
    """Read what a run has committed; see `datasets.read`.

    Quarantined images are left out; empty ones, and those without a mask that counts, are images without objects.
    What people have corrected counts as they left it, whatever its score.
    """
    uri, where = absolute(run), f"{key}.run: {redact(run)}"
    try:
        labels = runs.opened(store, uri, view)
    except UserError as error:
        raise UserError(f"{key}.run: {error}") from error
    manifest, commits = labels.manifest, list(labels.commits())
    if not commits:
        raise UserError(f"{where} has no committed shard yet")
    if left := len(manifest.shards) - len(commits):
        log.warning("%s: %d shards are not committed; their images are not used", redact(run), left)
    shards = {shard.id: shard for shard in manifest.shards}
    parts = list(ahead(partial(_part, labels=labels, shards=shards), commits, threads=_THREADS))
    uris = {id_: place for part in parts for id_, place in part.uris.items()}
    _check_there(list(uris.values()), where, store)
    uris |= _unpacked([part for part in parts if part.packed], manifest, uri, where=where, store=store, cache=cache)

    images = [image for part in parts for image in part.images]
    rows = [row for part in parts for row in part.annotations if row["image_id"] in uris]
    check_masks((row["segmentation"] for row in rows), f"{where}: masks")
    return Dataset(
        name=redact(run),
        coco={
            "images": [image for image in images if image["id"] in uris],
            "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
            "categories": [{"id": category.id, "name": category.name} for category in labels.categories],
        },
        uris=uris,
        missing=tuple(image["file_name"] for image in images if image["id"] not in uris),
    )


def _part(commit: Commit, *, labels: runs.Labels, shards: Mapping[str, Shard]) -> _Part:
    shard = shards[commit.shard_id]
    part = _Part(shard=shard, images=[], annotations=[], uris={}, packed={})
    listing = _listing(shard, labels.store, labels.uri)
    for row in labels.rows(commit):
        if row.status == "quarantined":
            continue
        part.images.append({"id": row.image_id, "file_name": row.key, "height": row.height, "width": row.width})
        part.annotations.extend({key: annotation[key] for key in _KEYS} for annotation in annotations_of(row))
        place = listing.get(row.key, row.uri)
        # A row of a COCO object has no URI; and where a URI had secrets, only the source can still read the image.
        if place in ("", shard.uri) or "***" in place:
            part.packed[row.image_id] = row.key
        else:
            part.uris[row.image_id] = place
    return part


def _listing(shard: Shard, store: Store, run_uri: str) -> dict[str, str]:
    """Where the images of a listing are, by key."""
    if shard.format != "listing":
        return {}
    lines = map(json.loads, store.get(join(run_uri, shard.uri)).splitlines())
    return {line["key"]: line["uri"] for line in lines}


def _check_there(uris: Sequence[str], where: str, store: Store) -> None:
    """Make sure that a run's images still exist, by looking for a few of them: they may lie anywhere."""
    probes = uris[:: max(1, len(uris) // _PROBES)][:_PROBES]

    def is_there(uri: str) -> bool:
        try:
            return store.exists(uri)
        except AccessError:  # how S3 says "not there" to those who may not list
            return False

    if probes and not any(map(is_there, probes)):
        raise UserError(
            f"{where}: of the {len(uris)} images that it labelled, {len(probes)} were looked for, and none is there "
            f"any more (the first is {redact(probes[0])})"
        )


def _unpacked(
    parts: Sequence[_Part], manifest: Manifest, run_uri: str, *, where: str, store: Store, cache: Path | None
) -> dict[int, str]:
    """The paths of the images that are within shards, by image id."""
    if not parts:
        return {}
    folder = (default_cache() if cache is None else cache.absolute()) / manifest.run_id
    options = originals.read_options(manifest, run_uri)

    def paths(part: _Part) -> dict[int, str]:
        found = unpack(part.shard, part.packed.values(), folder / part.shard.id, store=store, options=options)
        return {id_: str(found[key]) for id_, key in part.packed.items() if key in found}

    try:
        return {id_: path for one in ahead(paths, parts, threads=_UNPACKING_THREADS) for id_, path in one.items()}
    except ShardError as error:
        raise UserError(f"{where}: {error}") from error
