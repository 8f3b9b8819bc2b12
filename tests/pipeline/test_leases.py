"""The driver's book of leases, without Ray and without a clock."""

from __future__ import annotations

from pipeline.leases import Leases
from pipeline.records import Shard


def shards(n: int) -> list[Shard]:
    return [Shard(id=f"{i:020x}", uri=f"s{i}.tar", format="tar", bytes=1, etag="", number=i) for i in range(n)]


def test_every_shard_is_handed_out_once_and_in_order() -> None:
    """A shard labelled twice costs GPU hours; one never handed out is lost."""
    leases: Leases[int] = Leases(shards(3), max_attempts=3, timeout_s=10)
    seen = []
    while shard := leases.take(0, now=0.0):
        seen.append(leases.done(0).uri)
        assert shard.uri == seen[-1]
    assert seen == ["s0.tar", "s1.tar", "s2.tar"]
    assert leases.unfinished == 0


def test_a_poison_shard_is_set_aside_after_exactly_the_allowed_attempts() -> None:
    """A shard that kills its workers must neither loop for ever nor be given up early, nor hold up the others."""
    leases: Leases[int] = Leases(shards(2), max_attempts=3, timeout_s=10)
    attempts, failure = [], None
    while shard := leases.take(0, now=0.0):
        if shard.uri == "s0.tar":
            attempts.append(shard.uri)
            failure = leases.strike(0, "died")
            assert (failure is None) == (len(attempts) < 3)
        else:
            leases.done(0)
    assert len(attempts) == 3
    assert failure is not None
    assert (failure.uri, failure.attempts, failure.error) == ("s0.tar", 3, "died")
    assert leases.unfinished == 0


def test_a_shard_that_cannot_be_read_is_set_aside_at_once() -> None:
    """Trying a corrupt tar again costs time and changes nothing."""
    leases: Leases[int] = Leases(shards(1), max_attempts=3, timeout_s=10)
    leases.take(0, now=0.0)
    failure = leases.strike(0, "corrupt", final=True)
    assert failure is not None
    assert failure.attempts == 1


def test_a_lost_node_is_no_strike() -> None:
    """Preemption, however often, must not make a good shard look like poison."""
    leases: Leases[int] = Leases(shards(2), max_attempts=1, timeout_s=10)
    for worker in range(50):
        shard = leases.take(worker, now=0.0)
        assert shard is not None
        assert shard.uri == "s0.tar"
        assert leases.give_back(worker) == shard
    assert leases.give_back(99) is None
    assert leases.unfinished == 2


def test_a_lease_is_overdue_at_its_deadline_and_not_before() -> None:
    """A worker that hangs would hold its shard, and the end of the run, for ever."""
    leases: Leases[int] = Leases(shards(2), max_attempts=1, timeout_s=10)
    leases.take(0, now=0.0)
    leases.take(1, now=5.0)
    assert leases.overdue(9.9) == []
    assert leases.overdue(10.0) == [0]
    assert leases.overdue(15.0) == [0, 1]
