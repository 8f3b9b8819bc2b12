"""Small runs made by the real pieces, without Ray and torch, and ways to tamper with them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pipeline import __version__, ledger, runs, sinks
from pipeline.config import InputConfig, LabelConfig, LabelerConfig, OutputConfig
from pipeline.founding import located
from pipeline.labelers import Labeler, build
from pipeline.plan import plan
from pipeline.records import SCHEMA_VERSION, Commit, ImageLabels, Manifest, Output
from pipeline.shard_list import ShardList
from pipeline.store import Store, join
from pipeline.worker import Run, label_shard
from tests.fakes import draw, write_tar

IMAGES = 6  # of a shard; the fifth is empty, the last one is quarantined


def make_inputs(folder: Path, shards: int) -> Path:
    for number in range(shards):
        files = {f"{number}-{i}.png": draw(10 * number + i) for i in range(IMAGES - 1)}
        write_tar(folder / f"{number}.tar", {**files, f"{number}-text.jpg": b"this is no image"})
    return folder


def config_of(inputs: Path | str, output: str, formats: Sequence[str] = ("parquet", "coco")) -> LabelConfig:
    config = LabelConfig(
        input=InputConfig(uri=str(inputs)),
        output=OutputConfig(uri=output, formats=tuple(formats)),
        labeler=LabelerConfig(name="tests.fakes:ThresholdLabeler", batch_size=2),
    )
    return located(config)


def found_run(store: Store, config: LabelConfig) -> tuple[Manifest, Labeler]:
    """Write the manifest of a run."""
    labeler = build(config.labeler, store)
    planned = plan(config.input.uris, format="auto", images_per_shard=1000, store=store)
    manifest = Manifest(
        run_id="0123456789ab",
        schema_version=SCHEMA_VERSION,
        version=__version__,
        created="2026-01-01T00:00:00+00:00",
        config=config.labels_depend_on(),
        fingerprint=labeler.fingerprint,
        categories=labeler.categories,
        shards=ShardList.of(one.shard for one in planned),
    )
    assert ledger.write_manifest(store, config.output.uri, manifest)
    return manifest, labeler


def make_run(
    store: Store,
    uri: str,
    inputs: Path,
    *,
    shards: int = 2,
    done: int | None = None,
    formats: Sequence[str] = ("parquet", "coco"),
) -> Manifest:
    """A run over new inputs, of whose shards the first `done` are labelled."""
    config = config_of(make_inputs(inputs, shards), uri, formats)
    manifest, labeler = found_run(store, config)
    for shard in manifest.shards[:done]:
        label_shard(shard, run=Run(id=manifest.run_id, uri=uri, config=config), store=store, labeler=labeler)
    return manifest


def label(store: Store, inputs: str, run: str) -> None:
    """A finished run over inputs of any form."""
    config = config_of(inputs, run)
    manifest, labeler = found_run(store, config)
    for planned in plan(config.input.uris, format="auto", images_per_shard=1000, store=store):
        if planned.listing is not None:
            store.put(join(run, planned.shard.uri), planned.listing)
    for shard in manifest.shards:
        label_shard(shard, run=Run(id=manifest.run_id, uri=run, config=config), store=store, labeler=labeler)


def commit_of(store: Store, uri: str, manifest: Manifest, number: int = 0) -> Commit:
    commit = ledger.read_commit(store, uri, manifest.shards[number].id)
    assert commit is not None
    return commit


def overwrite(store: Store, uri: str, commit: Commit) -> None:
    """Put a commit in the place of the one that stands, which nobody does outside tests."""
    place = join(uri, "commits", commit.shard_id[:2], f"{commit.shard_id}.json")
    store.put(place, json.dumps(asdict(commit)).encode())


def put_output(store: Store, uri: str, commit: Commit, format: str, data: bytes) -> Commit:
    """Put other bytes in the place of an output, and commit them."""
    old = commit.outputs[format]
    store.put(join(uri, old.path), data)
    new = Output(path=old.path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    commit = replace(commit, outputs={**commit.outputs, format: new})
    overwrite(store, uri, commit)
    return commit


def rewrite(
    store: Store,
    uri: str,
    manifest: Manifest,
    change: Callable[[ImageLabels], ImageLabels],
    *,
    number: int = 0,
    formats: Sequence[str] = ("parquet", "coco"),
) -> None:
    """Write other rows into outputs of a shard, as a labeler with a bug would have, and commit them."""
    commit = commit_of(store, uri, manifest, number)
    rows = [change(row) for row in runs.rows(store, uri, commit)]
    header = sinks.Header(
        run_id=manifest.run_id,
        shard_id=commit.shard_id,
        fingerprint=commit.fingerprint,
        version=__version__,
        categories=manifest.categories,
        quality=("contrast",),
    )
    with tempfile.TemporaryDirectory() as folder:
        for format in formats:
            path = Path(folder) / format
            with sinks.SINKS[format].open(path, header) as write:
                write(rows)
            commit = put_output(store, uri, commit, format, path.read_bytes())
