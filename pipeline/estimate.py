"""What a run would take, from a sample of its images that is labelled here: images, time, GPU hours, cost."""

from __future__ import annotations

import math
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from io import BytesIO
from pathlib import Path

from pipeline import originals, scratch
from pipeline.config import LabelConfig, RelabelConfig
from pipeline.errors import UserError
from pipeline.plan import Planned, plan
from pipeline.records import Commit, ImageRecord
from pipeline.sources import SOURCES
from pipeline.sources.listings import fetched, from_lines
from pipeline.store import Store
from pipeline.worker import Run, Worker

#: So many shards are looked into, and so many bytes are read of each.
SHARDS, SHARD_BYTES = 8, 256 << 20
#: Images that are labelled before the clock starts.
WARM_UP = 8
_NONE = "none of the images that were tried can be read, so nothing was timed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What labeling takes, by a worker like the one that was timed.

    sampled: images that were timed, from so many shards; images_per_second: of one worker; device: what it ran on.
    images: of the whole input; counted: whether that is known, rather than worked out from bytes. gpus: of a worker.
    """

    sampled: int
    shards: int
    images_per_second: float
    device: str
    images: int
    counted: bool
    gpus: float

    @property
    def worker_hours(self) -> float:
        """Hours of one worker."""
        return self.images / self.images_per_second / 3600

    def hours(self, workers: int) -> float:
        """Hours of so many workers, as long as there are shards for all of them."""
        return self.worker_hours / workers

    def cost(self, price: float) -> float:
        """What it costs at a price for an hour of a GPU, or of a worker where it has none."""
        return self.worker_hours * (self.gpus or 1.0) * price


def choose(chosen: list[Planned], planned: Planned) -> list[Planned]:
    """Those of the shards seen so far that are to be looked into: ids are hashes, so the least are any."""
    if len(chosen) == SHARDS and planned.shard.id > chosen[-1].shard.id:
        return chosen
    return nsmallest(SHARDS, [*chosen, planned], key=lambda one: one.shard.id)


def estimate(
    config: LabelConfig, chosen: Sequence[Planned], count: int, *, images: int | None, nbytes: int, store: Store
) -> Estimate:
    """Label a sample of the input in this process, into a temporary folder, and time it.

    Args:
        config: of the run.
        chosen: shards of its input, by `choose`.
        count: how many images are timed, at most.
        images: how many the whole input holds, where that is known.
        nbytes: how many bytes.
        store: where the input is.

    Raises:
        UserError: the labeler is refused, or there is no image that can be read.
        ShardError, StoreError: a shard cannot be read.
    """
    each = math.ceil((count + WARM_UP) / len(chosen))
    looks = [_Look(planned, config, store, each, count_all=images is None) for planned in chosen]
    sample = [record for look in looks for record in look.records][: count + WARM_UP]
    if not sample:
        raise UserError(f"input.uri: {_NONE}")
    worker = Worker(config)
    about = worker.describe()
    with scratch.folder() as folder:
        warm = min(WARM_UP, max(1, len(sample) // 4))
        _labelled(worker, config, folder / "warm-up", sample[:warm], store)
        timed = sample[warm : warm + count] or sample
        commit = _labelled(worker, config, folder / "timed", timed, store)
    if commit.quarantined == commit.images:
        reasons = ", ".join(f"{count} {reason}" for reason, count in commit.reasons.items())
        raise UserError(f"input.uri: {_NONE} ({reasons})")
    known = images if images is not None else round(nbytes * _images_per_byte(looks))
    return Estimate(
        sampled=len(timed),
        shards=len(chosen),
        images_per_second=len(timed) / max(commit.seconds, 1e-6),
        device=about.device,
        images=known,
        counted=images is not None,
        gpus=0.0 if about.device == "CPU" else config.run.gpus_per_worker or 1.0,
    )


class _Look:
    """What the beginning of a shard shows.

    Attributes:
        records: its first images that can be read.
        images: how many were seen, in so many `bytes` of the shard.
    """

    def __init__(self, planned: Planned, config: LabelConfig, store: Store, wanted: int, *, count_all: bool) -> None:
        self.records: list[ImageRecord] = []
        self.images = read = 0
        options = originals.options_of(config.input, config.limits, config.output.uri)
        self.bytes = planned.shard.bytes
        if planned.listing is None:
            records = SOURCES[planned.shard.format](planned.shard, store=store, options=options)
        else:  # which nobody has written yet
            records = fetched(from_lines(planned.listing), store=store, options=options)
        for record in records:
            self.images += 1
            read += len(record.data)
            if record.error is None and len(self.records) < wanted:
                self.records.append(record)
            if len(self.records) >= wanted and (not count_all or read > SHARD_BYTES):
                self.bytes = read
                break


def _images_per_byte(looks: Sequence[_Look]) -> float:
    return sum(look.images for look in looks) / max(1, sum(look.bytes for look in looks))


def _labelled(
    worker: Worker, config: LabelConfig, folder: Path, records: Sequence[ImageRecord], store: Store
) -> Commit:
    """Label images as a shard of their own; its seconds are from the first to the last that the model saw."""
    (folder / "in").mkdir(parents=True)
    with tarfile.open(folder / "in/sample.tar", "w") as archive:
        for number, record in enumerate(records):
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(record.data)
            archive.addfile(member, BytesIO(record.data))
    (planned,) = plan([str(folder / "in")], format="tar", images_per_shard=1, store=store)
    here = replace(
        config,
        output=replace(config.output, uri=str(folder / "out")),
        run=replace(config.run, base=None, relabel=RelabelConfig()),
    )
    return worker.label(planned.shard, Run(id="estimate", uri=str(folder / "out"), config=here), strikes=0)
