"""The ceiling: the model only, on images that are ready for it, in as many processes as the run has workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, cycle
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from operator import attrgetter
from typing import TypeAlias

from jobs.benchmarks.work import Took, Work, records
from patchdct import stage_times
from pipeline import batches, logs
from pipeline.decoding import Decoding
from pipeline.errors import LabelingError, RunError
from pipeline.labelers import Prepared, StagedLabeler, build, staged, wanted_size
from pipeline.store import Store
from pipeline.worker import Run

#: What all processes together hold of prepared images, in bytes; of more images the first are taken over and over.
HELD_BYTES = 1 << 30

#: When a process began and ended, by the clock of the machine; its seconds on a CPU; how many images it saw.
_Answer: TypeAlias = tuple[float, float, float, int]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Processes that have their model and their images, and wait."""

    _connections: list[Connection]

    def measure(self, images: int) -> Took:
        """Have the model look at so many images in all; the seconds are from the first start to the last end."""
        share = -(-images // len(self._connections))
        for connection in self._connections:
            connection.send(share)
        answers = [_answer(connection) for connection in self._connections]
        starts, ends, cpu, seen = zip(*answers, strict=True)
        return Took(images=sum(seen), seconds=max(ends) - min(starts), cpu_seconds=sum(cpu))


@contextmanager
def ceiling(work: Work, *, size: int, gpus: int, store: Store) -> Iterator[Ceiling]:
    """Start a process for each worker, with its share of the images decoded and prepared, and the model warm.

    Args:
        work: which images.
        size: of a batch.
        gpus: how many there are; the processes are spread over them.
        store: where the images are.

    Raises:
        RunError: a process died.
    """
    work.put_listings(work.folder, store)
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    ours: list[Connection] = []
    try:
        for number in range(work.workers):
            mine, theirs = context.Pipe()
            arguments = (theirs, work, number, size, number % gpus if gpus else None, store)
            process: BaseProcess = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            ours.append(mine)
        for connection in ours:
            _answer(connection)
        yield Ceiling(ours)
    finally:
        for connection in ours:
            connection.close()
        for process in processes:
            process.join()


def _answer(connection: Connection) -> _Answer:
    try:
        answer: _Answer | str = connection.recv()
    except EOFError:
        raise RunError("a process that measures the model alone died") from None
    if isinstance(answer, str):
        raise RunError(f"the model cannot be measured alone: {answer}")
    return answer


def _serve(connection: Connection, work: Work, number: int, size: int, gpu: int | None, store: Store) -> None:
    """Get ready, say so, and measure as often as the other side asks; end when it hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process as well; the other side hangs up then
    logs.set_up()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(gpu)
    with suppress(EOFError, ConnectionError):
        try:
            labeler, every = _ready(work, number, size, store)
        except LabelingError as error:
            connection.send(str(error))
            return
        connection.send((0.0, 0.0, 0.0, 0))
        while True:
            connection.send(_look(labeler, every, connection.recv()))


def _ready(work: Work, number: int, size: int, store: Store) -> tuple[StagedLabeler, list[list[Prepared]]]:
    """The labeler, warm, and the batches of one process."""
    labeler = staged(build(work.config.labeler, store))
    prepared = _prepared(work, number, labeler, store)
    like, nbytes = attrgetter("like"), attrgetter("nbytes")
    every = list(batches.alike(prepared, like, nbytes, size=size, window=len(prepared), window_bytes=HELD_BYTES))
    for batch in every[:2]:
        labeler.find(batch)
    return labeler, every


def _look(labeler: StagedLabeler, every: list[list[Prepared]], images: int) -> _Answer:
    """Have the model look at so many images."""
    stage_times.synchronize()
    start, cpu, seen = time.monotonic(), time.process_time(), 0
    for batch in cycle(every):
        labeler.find(batch)
        seen += len(batch)
        if seen >= images:
            break
    stage_times.synchronize()
    return start, time.monotonic(), time.process_time() - cpu, seen


def _prepared(work: Work, number: int, labeler: StagedLabeler, store: Store) -> list[Prepared]:
    """The share of one process in the images that can be decoded, ready for the model."""
    run = Run(id="", uri=work.folder, config=work.config)
    held, found = 0, list[Prepared]()
    distinct = work.shards[: len(work.shards) // work.loops]
    with Decoding(work.config.limits, wanted=wanted_size(labeler, work.config.labeler)) as decoding:
        for position, record in enumerate(chain.from_iterable(records(shard, run, store) for shard in distinct)):
            if position % work.workers != number:
                continue
            if isinstance(picture := decoding.one(record), str):
                continue
            found.append(labeler.prepare(picture.pixels, (picture.height, picture.width)))
            held += found[-1].nbytes
            if held * work.workers >= HELD_BYTES:
                break
    if not found:
        raise RunError("there are fewer images that can be decoded than workers")
    return found


def _visible(gpu: int) -> str:
    """The GPU of that number among those that this process was given."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[gpu] if given else str(gpu)
