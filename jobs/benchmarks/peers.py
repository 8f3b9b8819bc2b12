"""The same work done otherwise: by a plain detectron2 loop, and by Ray Data with the same labeler."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.benchmarks.work import Took, Work, records
from patchdct.errors import ModelError
from patchdct.plain_loop import PlainLoop
from pipeline import driver, images, scratch
from pipeline.config import LabelConfig
from pipeline.errors import ImageError, RunError, UserError
from pipeline.labelers import build
from pipeline.patchdct_labeler import overrides, read_weights
from pipeline.records import ImageRecord, Pixels, Shard
from pipeline.store import Store, local_path
from pipeline.worker import Run

NAMES = ("detectron2", "ray_data")


def check(names: tuple[str, ...], config: LabelConfig) -> None:
    """Refuse peers that do not exist, or cannot do this work.

    Raises:
        UserError: which, and why.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise UserError(f"--peers has {unknown[0]!r}; accepted are {', '.join(NAMES)}")
    if "detectron2" in names and config.labeler.name != "patchdct":
        raise UserError(f"--peers has detectron2, which labels as labeler.name patchdct; it is {config.labeler.name!r}")
    if "detectron2" in names and config.labeler.tta is not None:
        raise UserError("--peers has detectron2, which labels each image once; set labeler.tta to null")
    if "ray_data" in names:
        try:
            import ray.data  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"--peers has ray_data, which cannot be imported: {error}; pip install 'ray[data]'"
            ) from error


def plain_loop(config: LabelConfig, store: Store) -> PlainLoop:
    """The model of the config as detectron2's own tools would apply it.

    Raises:
        UserError: it cannot be built.
    """
    labeler = config.labeler
    assert labeler.weights is not None, "the labeler has been built already"
    local = local_path(labeler.config) if labeler.config else None
    try:
        return PlainLoop(
            read_weights(labeler.weights, store),
            config=local,
            overrides=overrides(labeler),
            precision=labeler.precision,
        )
    except ModelError as error:
        raise UserError(str(error)) from error


def detectron2(work: Work, label: PlainLoop, store: Store) -> Took:
    """Label all shards image by image in this process, into a file of COCO results."""
    run = Run(id="", uri=work.folder, config=work.config)
    work.put_listings(work.folder, store)
    with scratch.folder() as folder, (folder / "results.json").open("w") as file:
        start, cpu = time.perf_counter(), time.process_time()
        every = chain.from_iterable(records(shard, run, store) for shard in work.shards)
        for image_id, record in enumerate(every):
            if (pixels := _decoded(record, work.config)) is not None:
                file.write(json.dumps(label(pixels, image_id)) + "\n")
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Took(images=work.images, seconds=seconds, cpu_seconds=cpu)


def ray_data(work: Work, *, size: int, gpus: int, store: Store) -> Took:
    """Label all shards by `map_batches` on a local Ray, which is started for it and stopped, into Parquet.

    Reading and decoding are a task for each shard, as in `read_images`; the labeler is in as many actors as the run has
    workers.

    Returns:
        The time from the first batch that a labeler gets until all is written; starting is left out, as it is of a run.

    Raises:
        RunError: Ray Data gave back another number of images.
    """
    import ray.data

    run = Run(id="", uri=work.folder, config=work.config)
    work.put_listings(work.folder, store)
    each = work.config.run.gpus_per_worker or (1.0 if gpus else 0.0)
    with scratch.folder() as folder, driver.cluster("local"):
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        begun, out = folder / "begun", folder / "out"
        begun.mkdir()
        (
            ray.data.from_items(
                [{"shard": number} for number in range(len(work.shards))], override_num_blocks=len(work.shards)
            )
            .flat_map(_Read(work.shards, run, store))
            .map_batches(
                _Label,
                fn_constructor_args=(work.config, store, str(begun)),
                batch_size=size,
                compute=ray.data.ActorPoolStrategy(size=work.workers),
                num_gpus=each or None,
                num_cpus=None if each else 1,
            )
            .write_parquet(str(out))
        )
        end = time.monotonic()
        start = min(float(path.name) for path in begun.iterdir())
        found = ray.data.read_parquet(str(out)).count()
    if found != work.images:
        raise RunError(f"Ray Data gave {found} images instead of {work.images}")
    return Took(images=work.images, seconds=end - start)


def _decoded(record: ImageRecord, config: LabelConfig) -> Pixels | None:
    """The pixels of an image; None where it is none."""
    limits = config.limits
    try:
        return images.decode(record.data, max_bytes=limits.max_image_bytes, max_pixels=limits.max_image_pixels)
    except ImageError:
        return None


class _Read:
    """The images of a shard, as rows with their pixels; one black pixel for what is no image."""

    def __init__(self, shards: tuple[Shard, ...], run: Run, store: Store) -> None:
        self._shards, self._run, self._store = shards, run, store

    def __call__(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for record in records(self._shards[row["shard"]], self._run, self._store):
            pixels = _decoded(record, self._run.config)
            yield {"key": record.key, "image": np.zeros((1, 1, 3), np.uint8) if pixels is None else pixels}


class _Label:
    """The labeler, in an actor of Ray Data's."""

    def __init__(self, config: LabelConfig, store: Store, begun: str) -> None:
        self._labeler = build(config.labeler, store)
        self._begun: Path | None = Path(begun)

    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        if self._begun is not None:  # a clock that all processes of a machine share
            (self._begun / repr(time.monotonic())).touch()
            self._begun = None
        pixels = [np.ascontiguousarray(image) for image in batch["image"]]
        found = self._labeler.label(pixels)
        return pa.table(
            {
                "key": pa.array(batch["key"].tolist(), pa.string()),
                "height": pa.array([image.shape[0] for image in pixels], pa.int32()),
                "width": pa.array([image.shape[1] for image in pixels], pa.int32()),
                "category_ids": pa.array([x.category_ids for x in found], pa.list_(pa.int32())),
                "scores": pa.array([x.scores for x in found], pa.list_(pa.float32())),
                "boxes": pa.array([x.boxes.reshape(-1) for x in found], pa.list_(pa.float32())),
                "areas": pa.array([x.areas for x in found], pa.list_(pa.int64())),
                "counts": pa.array([x.counts for x in found], pa.list_(pa.string())),
            }
        )
