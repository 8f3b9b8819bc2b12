"""The labels of a run in the formats of other tools: one function a format, and EXPORTS, the table of them.

An export streams: it never holds more of a run than a few rows, and it writes what it makes to local files first, so
that nobody meets a half-written one.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pipeline import __version__, ledger, runs
from pipeline.coco_file import coco_file
from pipeline.errors import UserError
from pipeline.records import SCHEMA_VERSION, ImageLabels, Manifest
from pipeline.store import Store, redact


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is exported: the rows of a run, with the instances that score at least `min_score`.

    rows: once. done: by the fingerprint of the labeler, how many shards the rows were of that have been taken so far;
    when they are all taken, it is what is committed.
    """

    uri: str
    manifest: Manifest
    min_score: float
    rows: Iterator[ImageLabels]
    done: Counter[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What an export has written. missing: the shards of the run that are not done, and so not in it."""

    uri: str
    images: int
    quarantined: int
    instances: int
    bytes: int
    missing: int


class Export(Protocol):
    """Writes one format."""

    def __call__(self, source: Source, /, *, store: Store, out: str) -> Written:
        """Write the rows to the URI `out`, in place of what is there.

        Raises:
            UserError: `out` is no place for this format.
            StoreError: the storage failed, or a data object of the run is damaged.
        """
        ...


def export(store: Store, run_uri: str, *, format: str, out: str, min_score: float = 0.0) -> Written:
    """Export a run, or as much of it as is done.

    Args:
        store: where the run is, and where the export goes.
        run_uri: the run.
        format: one of EXPORTS.
        out: the URI to write.
        min_score: leave out instances with a lower score. Their images stay.

    Raises:
        UserError: there is no run, the format is unknown, or `out` is no place for it.
        StoreError: the storage failed, or a data object of the run is damaged.
    """
    if format not in EXPORTS:
        raise UserError(f"--format is {format!r}; accepted are {', '.join(EXPORTS)}.")
    manifest = ledger.read_manifest(store, run_uri)
    done: Counter[str] = Counter()

    def rows() -> Iterator[ImageLabels]:
        for commit in runs.read_commits(store, run_uri, manifest):
            done[commit.fingerprint] += 1
            for row in runs.rows(store, run_uri, commit):
                yield replace(row, instances=row.instances.above(min_score))

    source = Source(uri=run_uri, manifest=manifest, min_score=min_score, rows=rows(), done=done)
    return EXPORTS[format](source, store=store, out=out)


def coco(source: Source, /, *, store: Store, out: str) -> Written:
    """One COCO JSON: images (not the quarantined), annotations with ids from 1, categories, the provenance as info."""
    if out.endswith("/"):
        raise UserError(f"--out is {redact(out)}, a folder; name the file, for example {redact(out)}instances.json.")
    with tempfile.TemporaryDirectory(prefix="patchlabel-") as folder:
        path = Path(folder) / "export.json"
        info: dict[str, object] = {}
        with coco_file(path, info, source.manifest.categories) as file:
            for row in source.rows:
                file.write([row])
            info |= _info(source)
        store.put(out, path)
        return Written(
            uri=redact(out),
            images=file.images,
            quarantined=file.quarantined,
            instances=file.instances,
            bytes=path.stat().st_size,
            missing=len(source.manifest.shards) - source.done.total(),
        )


EXPORTS: dict[str, Export] = {"coco": coco}


def _info(source: Source) -> dict[str, object]:
    """Where the labels come from, once all rows are taken."""
    shards, done = len(source.manifest.shards), source.done.total()
    return {
        "description": f"instance masks of the labeling run {source.manifest.run_id}",
        "version": __version__,
        "schema_version": SCHEMA_VERSION,
        "run": redact(source.uri),
        "run_id": source.manifest.run_id,
        "run_created": source.manifest.created,
        "run_version": source.manifest.version,
        "fingerprint": ", ".join(sorted(source.done)) or source.manifest.fingerprint,
        "shards": shards,
        "shards_done": done,
        "complete": done == shards,
        "min_score": source.min_score,
    }
