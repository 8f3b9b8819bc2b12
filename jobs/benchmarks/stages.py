"""Each stage of labeling alone: one after another, with nothing beside it."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from jobs.benchmarks.work import Work, records
from patchdct import stage_times
from pipeline import __version__, ledger, scratch, sinks
from pipeline.decoding import Decoding
from pipeline.labelers import Labeler, Prepared, staged, wanted_size
from pipeline.labelling import Image, batched, image_of, row_of
from pipeline.records import NO_INSTANCES, Commit, ImageLabels, LabelerInfo, Shard
from pipeline.store import Store
from pipeline.worker import Run, Tally, header_of, upload

#: All stages in their order, as a person calls them. Which there are depends on the device, the labeler and the output.
NAMES = {
    "read": "read",
    "decode": "decode",
    "resize": "resize",
    "transfer": "to the GPU",
    "normalise": "normalise",
    "backbone": "backbone",
    "rpn": "RPN",
    "box_head": "box head",
    "mask_head": "mask head",
    "model_rest": "model, rest",
    "label": "the labeler",
    "paste": "paste to RLE",
    "parquet": "Parquet",
    "coco": "COCO",
    "commit": "upload, commit",
}
#: The stages that are the model, which the ceiling measures without the others.
MODEL = ("transfer", "normalise", *(name for name in stage_times.STAGES if name != "normalise"), "model_rest")


class Clock:
    """Adds up seconds by stage."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """What is done within counts for the stage; GPUs are waited for."""
        stage_times.synchronize()
        start = time.perf_counter()
        yield
        stage_times.synchronize()
        self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Count what has been measured elsewhere."""
        self.seconds[stage] += seconds


def measure(work: Work, labeler: Labeler, *, size: int, store: Store) -> dict[str, float]:
    """Label all shards of a new run, one stage after another.

    Args:
        work: which shards.
        labeler: what labels them.
        size: of a batch.
        store: where all of it is.

    Returns:
        The seconds of each stage, by the keys of NAMES, over all images.
    """
    run = work.run("stages", LabelerInfo(fingerprint=labeler.fingerprint, categories=labeler.categories), store)
    clock = Clock()
    with Decoding(run.config.limits, wanted=wanted_size(labeler, run.config.labeler)) as decoding:
        for shard in work.shards:
            rows = _rows(shard, run, labeler, size=size, decoding=decoding, clock=clock, store=store)
            _write(shard, run, rows, labeler, clock=clock, store=store)
    left_out = () if staged(labeler) is labeler else ("resize", "paste")  # there is nothing around such a labeler
    return {name: clock.seconds[name] for name in NAMES if name in clock.seconds and name not in left_out}


def _rows(
    shard: Shard, run: Run, labeler: Labeler, *, size: int, decoding: Decoding, clock: Clock, store: Store
) -> Iterator[list[ImageLabels]]:
    """The rows of a shard, in the batches that the worker makes of them."""
    steps = staged(labeler)

    def images() -> Iterator[Image]:
        rest = enumerate(records(shard, run, store))
        while True:
            with clock("read"):
                row, record = next(rest, (0, None))
            if record is None:
                return
            with clock("decode"):
                picture = decoding.one(record)
            record = replace(record, data=b"")
            if isinstance(picture, str):
                yield image_of(row, record, picture)
                continue
            with clock("resize"):
                prepared = steps.prepare(picture.pixels, (picture.height, picture.width))
            yield image_of(row, record, (picture.height, picture.width, prepared))

    for batch in batched(images(), size, run.config):
        good = [image.prepared for image in batch if image.prepared is not None]
        if not good:
            yield [row_of(shard, image, NO_INSTANCES) for image in batch]
            continue
        there = _find(good, labeler, clock)
        with clock("paste"):
            found = steps.encode(there)
        yield [row_of(shard, image, its) for image, its in zip(batch, found, strict=True)]


def _find(batch: Sequence[Prepared], labeler: Labeler, clock: Clock) -> Any:
    """What the model makes of a batch; what none of its stages has taken is the rest of it."""
    model = model_of(labeler)
    if model is None:
        with clock("label"):
            return staged(labeler).find(batch)
    before, start = sum(clock.seconds.values()), time.perf_counter()
    with stage_times.timed(model, clock.add):
        found = staged(labeler).find(batch)
        stage_times.synchronize()
    clock.add("model_rest", time.perf_counter() - start - (sum(clock.seconds.values()) - before))
    return found


def model_of(labeler: Labeler) -> Any | None:
    """The detectron2 model of a labeler; None where it has none that one could look into."""
    return getattr(labeler, "model", None)


def _write(
    shard: Shard, run: Run, batches: Iterable[list[ImageLabels]], labeler: Labeler, *, clock: Clock, store: Store
) -> None:
    """Write the rows as the worker does, and commit them."""
    attempt, header, tally = uuid.uuid4().hex[:12], header_of(shard, run, labeler), Tally()
    with scratch.folder() as folder:
        paths = {
            name: folder / f"{shard.id}-{attempt}.{sinks.SINKS[name].suffix}" for name in run.config.output.formats
        }
        stacks = {name: ExitStack() for name in paths}
        writers = {name: stacks[name].enter_context(sinks.SINKS[name].open(paths[name], header)) for name in paths}
        for rows in batches:
            for name, write in writers.items():
                with clock(name):
                    write(rows)
            tally.add(rows)
        for name, stack in stacks.items():
            with clock(name):
                stack.close()
        with clock("commit"):
            commit = Commit(
                shard_id=shard.id,
                attempt=attempt,
                outputs=upload(paths, run, store),
                **tally.counts(),
                fingerprint=labeler.fingerprint,
                seconds=0.0,
                version=__version__,
            )
            ledger.commit(store, run.uri, commit)
