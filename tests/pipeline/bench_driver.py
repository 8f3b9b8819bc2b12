"""What the driver costs.

`python -m tests.pipeline.bench_driver --actors 4 --shards 3000`: on a real Ray, whose actors do nothing, so that the
driver is what takes time: its CPU for each shard, in Ray's calls and in its own logic, in its thread and in all threads
of its process. What it costs to start an actor is measured, too.

`python -m tests.pipeline.bench_driver --simulate`: a thousand workers that sleep, in virtual time, over a million
shards (see `simulation`), with shorter and shorter shards; `--simulate tail` ends a run beside slow workers, with
copies of what is slow and without, large shards first or not. `--shards` and `--call` change what is simulated.

Each run has a process of its own; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import ray

from pipeline.config import LabelConfig
from pipeline.driver.actors import Actor, Actors
from pipeline.driver.clusters import cluster
from pipeline.driver.outcomes import Snapshot
from pipeline.driver.pool import Pool
from pipeline.records import Commit, LabelerInfo, Shard
from pipeline.store import Store
from pipeline.worker import Run
from tests.pipeline.simulation import config_of, manifest_of, shards_of, simulate
from tests.pipeline.sleepers import COMMIT, IMAGES, LABELER, Scenario


class IdleActor(Actor):
    """Says that it has labelled."""

    def start(self, config: LabelConfig, folder: str) -> LabelerInfo:
        return LABELER

    def label(self, shard: Shard, run: Run, strikes: int, turn: int) -> Commit:
        return COMMIT

    def sleep(self) -> None:
        """Until it is killed."""
        time.sleep(1e6)


class Timed:
    """A workforce, and how long its calls take."""

    def __init__(self, actors: Actors) -> None:
        self._actors, self.least, self.limit = actors, actors.least, actors.limit
        self.seconds: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actors, name)

        def timed(*args: Any, **options: Any) -> Any:
            before = time.thread_time()
            try:
                return method(*args, **options)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - before

        return timed


class Meter:
    """Given to the pool to report to: the driver's time from when all workers have started."""

    def __init__(self, force: Timed, workers: int) -> None:
        self._force, self._workers = force, workers
        self._before: tuple[int, float, float, float] | None = None

    def __call__(self, now: Snapshot) -> None:
        if self._before is None and now.workers == self._workers:
            self.hiring = {name: self._force.seconds.get(name, 0.0) for name in ("hire", "start")}
            self._force.seconds.clear()
            self._before = self._times(now.done)

    def _times(self, done: int) -> tuple[int, float, float, float]:
        return done, time.thread_time(), time.process_time(), time.perf_counter()

    def per_shard(self, done: int) -> dict[str, float]:
        """Milliseconds: of the driver's thread in its logic and in the calls of Ray, of all its threads, and in all."""
        assert self._before is not None, "workers have not all started before the end; take more shards"
        shards, thread, process, wall = (
            now - before for now, before in zip(self._times(done), self._before, strict=True)
        )
        calls = self._force.seconds
        found = {"logic": thread - sum(calls.values())}
        found |= {f"in {name}": calls[name] for name in ("label", "answers", "draining")}
        found |= {"thread": thread, "process": process, "wall": wall}
        return {name: 1e3 * seconds / shards for name, seconds in found.items()}


def waiting(refs: int) -> float:
    """Milliseconds of this thread that `ray.wait` takes to go through so many tasks that are not done."""
    actor: Any = ray.remote(IdleActor).options(num_cpus=0).remote()
    tasks = [actor.sleep.remote() for _ in range(refs)]
    times = []
    for _ in range(20):
        before = time.thread_time()
        ray.wait(tasks, timeout=0, fetch_local=False)
        times.append(time.thread_time() - before)
    ray.kill(actor)
    return 1e3 * median(times)


def on_ray(actors: int, count: int) -> dict[str, float]:
    """A run of idle actors on a Ray of its own -> milliseconds for each shard, or for each actor that is hired."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    shards = shards_of(Scenario(shards=count))
    with tempfile.TemporaryDirectory() as folder, cluster(None):
        config = config_of(Path(folder), workers=actors, cpus_per_worker=1 / actors)
        force = Timed(Actors(config, IdleActor))
        meter = Meter(force, actors)
        pool = Pool(config, manifest_of(shards), force, founded=True, todo=shards, done=0, store=Store())
        pool.work(meter, ())
        assert pool.outcome(None).complete
        found = meter.per_shard(count)
        found |= {f"{name}, an actor": 1e3 * seconds / actors for name, seconds in meter.hiring.items()}
        return found | {"ray.wait, 2000 tasks": waiting(2000)}


#: Shorter and shorter shards, and more workers; then runs that end beside slow workers.
SCENARIOS = {
    "bend": [
        *(Scenario(seconds=seconds) for seconds in (100.0, 10.0, 3.0, 1.0)),
        *(Scenario(seconds=seconds, around=0.0) for seconds in (1.0, 0.8, 0.6, 0.3)),
        *(Scenario(workers=workers, seconds=10.0) for workers in (5000, 10_000, 20_000)),
    ],
    "tail": [
        Scenario(workers=100, shards=10_000, slow_workers=slow, large_first=large, copies=copies, sizes=1.0)
        for slow in (0, 1, 5)
        for large in (False, True)
        for copies in (False, True)
    ],
}


def simulated(scenario: Scenario) -> dict[str, object]:
    """A scenario in this process."""
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(scenario, Path(folder))
    assert result.outcome.complete
    assert result.outcome.snapshot.images == IMAGES * scenario.shards
    found = asdict(result)
    del found["outcome"]
    return found


def elsewhere(*words: str) -> dict[str, Any]:
    """What this script says when it is started with these words: a process of its own, so that its memory is."""
    command = [sys.executable, "-m", __spec__.name, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--shards", type=int)
    parser.add_argument("--simulate", choices=list(SCENARIOS), nargs="?", const="bend")
    parser.add_argument("--call", type=float, help="seconds that Ray takes of the driver for a shard, as measured")
    parser.add_argument("--scenario", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scenario is not None:
        print(json.dumps(simulated(Scenario(**options.scenario))))
        return
    if options.simulate is None:
        found = on_ray(options.actors, options.shards or 3000)
        for name, milliseconds in found.items():
            print(f"{name:20} {milliseconds:8.3f} ms")
        print(json.dumps(found))
        return
    changed = {name: getattr(options, name) for name in ("shards", "call") if getattr(options, name) is not None}
    rows = []
    print("workers   shards seconds around slow large copies  makespan efficiency wasted_s driver_ms logic_ms peak_mb")
    for scenario in SCENARIOS[options.simulate]:
        one = asdict(replace(scenario, **changed))
        rows.append(one | elsewhere("--scenario", json.dumps(one)))
        columns = (
            "{workers:7} {shards:8} {seconds:7} {around:6} {slow_workers:4} {large_first!s:>5} {copies!s:>6} "
            "{makespan:9.0f} {efficiency:10.4f} {wasted:8.0f} {driver_ms:9.3f} {logic_ms:8.3f} {peak_mb:7.0f}"
        )
        print(columns.format(**rows[-1]), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
