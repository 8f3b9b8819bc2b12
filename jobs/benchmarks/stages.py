"""Each stage of labeling alone: one after another, with nothing beside it."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from jobs.benchmarks.work import Work, records
from patchdct import stage_times
from pipeline import __version__, batches, ledger, scratch, sinks
from pipeline.decoding import Decoding
from pipeline.labelers import Labeler, Prepared, staged, wanted_size
from pipeline.labelling import BATCHES_WAITED, SHARE_WAITING
from pipeline.records import NO_INSTANCES, Commit, ImageLabels, ImageRecord, Instances, LabelerInfo, Output, Shard
from pipeline.store import Store, join
from pipeline.worker import Run

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    """An image that is ready for the model."""

    row: int
    record: ImageRecord
    size: tuple[int, int]
    prepared: Prepared


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
    """The rows of a shard, in the batches that the worker makes of them; those of no picture come last."""
    steps, bad = staged(labeler), []

    def images() -> Iterator[_Image]:
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
                bad.append(_row(record, row, (0, 0), NO_INSTANCES, picture))
                continue
            of = picture.height, picture.width
            with clock("resize"):
                prepared = steps.prepare(picture.pixels, of)
            yield _Image(row=row, record=record, size=of, prepared=prepared)

    for batch in batches.alike(
        images(),
        lambda image: image.prepared.like,
        lambda image: image.prepared.nbytes,
        size=size,
        window=BATCHES_WAITED * size,
        window_bytes=int(SHARE_WAITING * run.config.run.prefetch_bytes),
    ):
        there = _find([image.prepared for image in batch], labeler, clock)
        with clock("paste"):
            found = steps.encode(there)
        yield [_row(one.record, one.row, one.size, its) for one, its in zip(batch, found, strict=True)]
    if bad:
        yield bad


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
    attempt = uuid.uuid4().hex[:12]
    header = sinks.Header(
        run_id=run.id,
        shard_id=shard.id,
        fingerprint=labeler.fingerprint,
        version=__version__,
        categories=labeler.categories,
        quality=labeler.quality,
    )
    counts: Counter[str] = Counter()
    with scratch.folder() as folder:
        paths = {name: folder / f"{attempt}.{sinks.SINKS[name].suffix}" for name in run.config.output.formats}
        stacks = {name: ExitStack() for name in paths}
        writers = {name: stacks[name].enter_context(sinks.SINKS[name].open(paths[name], header)) for name in paths}
        for rows in batches:
            for name, write in writers.items():
                with clock(name):
                    write(rows)
            counts.update(row.status for row in rows)
            counts["instances"] += sum(len(row.instances) for row in rows)
        for name, stack in stacks.items():
            with clock(name):
                stack.close()
        with clock("commit"):
            outputs: dict[str, Output] = {}
            for name, path in paths.items():
                place = f"{sinks.SINKS[name].folder}/{shard.id}-{path.name}"
                with path.open("rb") as file:
                    checksum = hashlib.file_digest(file, "sha256").hexdigest()
                outputs[name] = Output(path=place, bytes=path.stat().st_size, sha256=checksum)
                store.put(join(run.uri, place), path)
            commit = Commit(
                shard_id=shard.id,
                attempt=attempt,
                outputs=outputs,
                images=counts["labelled"] + counts["empty"] + counts["quarantined"],
                labelled=counts["labelled"],
                empty=counts["empty"],
                quarantined=counts["quarantined"],
                instances=counts["instances"],
                reasons={},
                fingerprint=labeler.fingerprint,
                seconds=0.0,
                version=__version__,
            )
            ledger.commit(store, run.uri, commit)


def _row(
    record: ImageRecord, row: int, size: tuple[int, int], instances: Instances, error: str | None = None
) -> ImageLabels:
    return ImageLabels(
        key=record.key,
        image_id=row,
        uri=record.uri,
        height=size[0],
        width=size[1],
        instances=instances,
        status="quarantined" if error is not None else "labelled" if len(instances) else "empty",
        error=error,
    )
