"""A labeling run in virtual time: the driver's real pool, leases and verdicts over workers that only sleep.

What is simulated are Ray, the workers and the clock (see `sleepers`). The driver's own work is real, and the time that
it takes its thread, with a price for each call of Ray that is not made, passes on the virtual clock, too: a slow driver
leaves workers idle. Whatever is drawn is drawn from a seed.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import __version__
from pipeline.config import InputConfig, LabelConfig, OutputConfig, RunConfig
from pipeline.driver.outcomes import Outcome, Snapshot
from pipeline.driver.pool import Pool
from pipeline.records import SCHEMA_VERSION, Manifest
from pipeline.shard_list import SCHEMA, ShardList
from pipeline.store import Store
from tests.pipeline.sleepers import LABELER, TYPICAL_BYTES, Scenario, Sleepers


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of it.

    Attributes:
        outcome: as the driver tells it.
        makespan: seconds from the first shard that was given to a worker, to the end.
        efficiency: the part of all workers' time in between that went into what counts.
        wasted: seconds that workers labelled what does not count: copies that lost, and what died.
        driver_ms: what a shard takes of the driver, with the prices for Ray.
        logic_ms: the same without them, as measured.
        peak_mb: the largest resident size of this process so far.
        attempts: how often shards were given to workers.
        starts: how many workers were started.
        careful: how often it was one that had cost a worker.
        drained: how many workers are still on the node that is to go.
    """

    outcome: Outcome
    makespan: float
    efficiency: float
    wasted: float
    driver_ms: float
    logic_ms: float
    peak_mb: float
    attempts: int
    starts: int
    careful: int
    drained: int


def shards_of(scenario: Scenario) -> ShardList:
    """Shards of many sizes, in no order of size."""
    random = np.random.default_rng(scenario.seed)
    count = scenario.shards
    sizes = (TYPICAL_BYTES * random.lognormal(0.0, scenario.sizes, count)).astype(np.int64)
    names = np.char.mod("%020x", np.arange(count))
    columns = [
        pa.array(names),
        pa.array([f"s3://bucket/dataset/{number:08d}.tar" for number in range(count)]),
        pa.array(["tar"] * count),
        pa.array(sizes),
        pa.array(["e" * 32] * count),
        pa.array(np.arange(count, dtype=np.int32)),
    ]
    return ShardList(pa.Table.from_arrays(columns, schema=SCHEMA))


def config_of(folder: Path, **run: Any) -> LabelConfig:
    """A config whose input nobody reads."""
    return LabelConfig(
        input=InputConfig(uri="s3://bucket/dataset"), output=OutputConfig(uri=str(folder)), run=RunConfig(**run)
    )


def manifest_of(shards: ShardList) -> Manifest:
    """The manifest of a run that the simulated workers take up."""
    return Manifest(
        run_id="0123456789ab",
        schema_version=SCHEMA_VERSION,
        version=__version__,
        created="2026-01-01T00:00:00+00:00",
        config={},
        fingerprint=LABELER.fingerprint,
        categories=LABELER.categories,
        shards=shards,
    )


def simulate(scenario: Scenario, folder: Path, report: Callable[[Snapshot], None] = lambda now: None) -> Result:
    """Take a run to its end; what is set aside is written into the folder."""
    shards = shards_of(scenario)
    config = config_of(folder, max_attempts=scenario.max_attempts, shard_timeout_s=scenario.shard_timeout_s)
    todo = shards.large_first(start=0.3) if scenario.large_first else shards
    sleepers = Sleepers(scenario)
    pool = Pool(config, manifest_of(shards), sleepers, founded=True, todo=todo, done=0, store=Store())
    if not scenario.copies:
        pool._leases.copy_the_slow = lambda idle, now: []  # type: ignore[method-assign]
    pool.work(report, ())
    end = sleepers.close()
    driver_s = sleepers.logic + sleepers.paid
    return Result(
        outcome=pool.outcome(None),
        makespan=end - sleepers.first,
        efficiency=sleepers.useful / (scenario.workers * (end - sleepers.first)),
        wasted=sleepers.wasted,
        driver_ms=1e3 * driver_s / scenario.shards,
        logic_ms=1e3 * sleepers.logic / scenario.shards,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        attempts=sleepers.attempts,
        starts=sleepers.starts,
        careful=sleepers.careful,
        drained=sleepers.drained,
    )
