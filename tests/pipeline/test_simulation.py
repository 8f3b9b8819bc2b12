"""The driver's logic over workers that sleep in virtual time: is anybody idle, is each shard done once?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import ledger
from pipeline.driver import pool
from pipeline.store import Store
from tests.pipeline.simulation import Result, shards_of, simulate
from tests.pipeline.sleepers import IMAGES, TYPICAL_BYTES, Scenario

SMALL = Scenario(workers=50, shards=2000, seconds=10.0)


def complete(result: Result, shards: int) -> bool:
    """Whether every shard is done, and was counted once."""
    now = result.outcome.snapshot
    return result.outcome.complete and (now.done, now.images) == (shards, shards * IMAGES)


def test_workers_are_not_idle(tmp_path: Path) -> None:
    """The GPUs of a thousand workers must wait neither for the driver, nor for reading, writing, or the last shard."""
    result = simulate(SMALL, tmp_path)
    assert complete(result, SMALL.shards)
    assert result.efficiency > 0.98
    assert result.attempts < SMALL.shards + 5
    assert result.logic_ms < 1.0


def test_a_slow_driver_is_seen(tmp_path: Path) -> None:
    """A simulation that shows nobody idle where the driver cannot keep up would show nothing at all."""
    keeps_up = SMALL.seconds / SMALL.workers
    result = simulate(replace(SMALL, brake=2 * keeps_up), tmp_path)
    assert complete(result, SMALL.shards)
    assert 0.3 < result.efficiency < 0.6


def test_reading_and_writing_overlap_with_labeling(tmp_path: Path) -> None:
    """A GPU that waits for each shard to be read and written would idle a tenth of its time here."""
    result = simulate(replace(SMALL, around=0.5), tmp_path)
    alone = simulate(replace(SMALL, around=0.5, max_attempts=1), tmp_path)
    assert result.efficiency > 0.98
    assert alone.efficiency < 0.93


def test_large_shards_are_not_begun_last(tmp_path: Path) -> None:
    """One that takes ten times as long, begun last, would have all others wait for it."""
    mixed = replace(SMALL, sizes=1.0)
    result, plain = simulate(mixed, tmp_path), simulate(replace(mixed, large_first=False), tmp_path)
    assert complete(result, SMALL.shards)
    assert result.efficiency > 0.98 > plain.efficiency + 0.03


def test_nobody_has_two_of_the_largest_shards_while_others_have_none(tmp_path: Path) -> None:
    """The run would last as long as the two largest together."""
    few = replace(SMALL, shards=500, sizes=1.0, luck=0.0, seed=1)
    result = simulate(few, tmp_path)
    largest = few.seconds * max(shard.bytes for shard in shards_of(few)) / TYPICAL_BYTES
    assert complete(result, few.shards)
    assert result.makespan < 1.1 * largest


def test_the_end_does_not_wait_for_a_slow_worker(tmp_path: Path) -> None:
    """One broken GPU of fifty would make the whole run last much longer than it takes."""
    slow = replace(SMALL, slow_workers=1, slowness=30.0)
    result, plain = simulate(slow, tmp_path), simulate(replace(slow, copies=False), tmp_path)
    assert complete(result, SMALL.shards)
    assert complete(plain, SMALL.shards)
    assert result.makespan < 0.75 * plain.makespan
    assert result.attempts < SMALL.shards + 10


def test_no_worker_has_two_shards_while_another_has_none(tmp_path: Path) -> None:
    """The last shards would wait in the hands of workers that are busy."""
    result = simulate(replace(SMALL, shards=50, sizes=0.0, luck=0.0, copies=False), tmp_path)
    assert complete(result, 50)
    assert result.makespan < 1.5 * SMALL.seconds


def test_workers_that_nobody_needs_are_sent_home(tmp_path: Path) -> None:
    """GPUs that are paid for would stand by, or label what others have done, until the last shard is done."""
    workers: list[int] = []
    slow = replace(SMALL, slow_workers=5, slowness=30.0, sizes=1.0)
    result = simulate(slow, tmp_path, lambda now: workers.append(now.workers))
    assert complete(result, SMALL.shards)
    assert max(workers) == SMALL.workers
    assert workers[-1] <= 4
    assert result.efficiency > 0.4


def test_workers_that_have_a_place_stay_before_those_that_wait_for_one(tmp_path: Path) -> None:
    """A cluster with fewer GPUs than run.workers would load the model for each shard anew, towards the end."""
    result = simulate(replace(SMALL, shards=200, places=10, start=60.0), tmp_path)
    assert complete(result, 200)
    assert result.starts == 10


def test_a_shard_that_two_have_committed_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of a run would not be those of its commits."""
    monkeypatch.setattr(pool, "TICK_S", 60.0)  # who labels in vain is sent home late
    halting = replace(SMALL, slow_workers=25, slowness=4.0)
    result = simulate(halting, tmp_path)
    assert result.attempts > SMALL.shards
    assert complete(result, SMALL.shards)


def test_a_node_that_is_to_go_is_left(tmp_path: Path) -> None:
    """Its workers would be killed over shards that they should not have begun, or keep it from going."""
    result = simulate(replace(SMALL, drained=5), tmp_path)
    assert complete(result, SMALL.shards)
    assert result.drained == 0


def test_deaths_and_lost_nodes_cost_what_they_cost_and_no_shard(tmp_path: Path) -> None:
    """Each shard is done once, whoever dies; those that kill every worker are set aside after just so many."""
    rough = replace(SMALL, deaths=0.01, preemptions=0.03, poison=3, unreadable=2, start=5.0, max_attempts=4)
    result = simulate(rough, tmp_path)
    now = result.outcome.snapshot
    assert (now.done, now.failed, now.images) == (SMALL.shards - 5, 5, IMAGES * (SMALL.shards - 5))
    attempts = {failure.shard_id: failure.attempts for failure in result.outcome.failures}
    assert [attempts[shard] for shard in sorted(attempts)[:3]] == [4, 4, 4]
    assert sorted(attempts) == [f"{number:020x}" for number in range(5)]
    failures = {failure.shard_id: failure for failure in result.outcome.failures}
    assert {one.shard_id: one for one in ledger.failures(Store(), str(tmp_path))} == failures


@pytest.mark.parametrize("copies", [True, False])
def test_shards_that_hang_are_set_aside_and_the_others_are_done(tmp_path: Path, copies: bool) -> None:
    """A shard that takes for ever must not have the one behind it struck, nor be copied for ever."""
    result = simulate(replace(SMALL, shards=300, hanging=2, shard_timeout_s=200, copies=copies), tmp_path)
    assert result.outcome.snapshot.done == 298
    attempts = {failure.shard_id: failure.attempts for failure in result.outcome.failures}
    assert attempts == {f"{number:020x}": 3 for number in range(2)}
    assert result.careful == 4, "nothing but these had cost a worker"
