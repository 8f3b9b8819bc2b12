"""One worker, and the whole run: what a user gets for the machine."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs.benchmarks.work import Took, Work
from pipeline import driver
from pipeline.driver import Snapshot
from pipeline.errors import RunError
from pipeline.store import Store
from pipeline.worker import Worker

#: Shards that an actor of the pool works on at once: one ends while the next one begins.
SHARDS_AT_ONCE = 2


def one_worker(work: Work, worker: Worker, store: Store) -> tuple[Took, int]:
    """Label all shards in this process, as an actor of the pool does.

    Returns:
        The time from the first read to the last commit, and how many masks were found.

    Raises:
        LabelingError: what ends a shard.
    """
    run = work.run("worker", worker.describe(), store)
    start, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
        commits = list(threads.map(lambda shard: worker.label(shard, run, 0), work.shards))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    _check(sum(commit.images for commit in commits), work)
    return Took(images=work.images, seconds=seconds, cpu_seconds=cpu), sum(commit.instances for commit in commits)


def whole_run(work: Work, worker: Worker, store: Store) -> tuple[Took, dict[str, float]]:
    """Label all shards as `jobs.label` does, on a local Ray, which is started for it and stopped.

    Returns:
        The time from the moment at which the first worker begins with a shard until the driver knows the last commit;
        and the seconds of `starting`, until then, of `labeling`, which is that time, and of `ending`.

    Raises:
        LabelingError: what ends a run, or sets a shard aside.
    """
    run = work.run("run", worker.describe(), store)
    begun: tuple[float, float] | None = None
    last: tuple[float, float] | None = None
    start = time.monotonic()

    def report(now: Snapshot) -> None:
        nonlocal begun, last
        if begun is None and now.workers:
            begun = time.monotonic(), cpu_seconds()
        if last is None and now.done == now.shards:
            last = time.monotonic(), cpu_seconds()

    outcome = driver.run(run.config, report)
    end = time.monotonic()
    if not outcome.complete or begun is None or last is None:
        why = next((failure.error for failure in outcome.failures), outcome.interrupted)
        raise RunError(f"the run ended with {outcome.snapshot.done} of {outcome.snapshot.shards} shards: {why}")
    _check(outcome.snapshot.images, work)
    took = Took(images=work.images, seconds=last[0] - begun[0], cpu_seconds=last[1] - begun[1])
    return took, {"starting": begun[0] - start, "labeling": took.seconds, "ending": end - last[0]}


def cpu_seconds() -> float:
    """What this process, and all those below it that are alive, have been on a CPU; Linux only."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()  # from the state on, which follows the name
        except OSError:  # it has ended
            continue
        number = int(place.parent.name)
        parents[number] = int(fields[1])
        spent[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    ours = {os.getpid()}
    while more := {number for number, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(spent.get(number, 0.0) for number in ours)


def _check(images: int, work: Work) -> None:
    if images != work.images:
        raise RunError(f"{images} images were labelled instead of {work.images}; the input has changed meanwhile")
