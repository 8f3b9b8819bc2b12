"""The driver's book of leases, without Ray and without a clock."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pipeline.leases import Leases
from pipeline.records import Shard


def shards(n: int) -> list[Shard]:
    return [Shard(id=f"{i:020x}", uri=f"s{i}.tar", format="tar", bytes=1, etag="", number=i) for i in range(n)]


def test_every_shard_is_handed_out_once_and_in_order() -> None:
    """A shard labelled twice costs GPU hours; one never handed out is lost."""
    leases: Leases[int] = Leases(shards(3), max_attempts=3, timeout_s=10)
    seen = []
    while lease := leases.take(0, now=0.0):
        seen.append(leases.done(0).uri)
        assert lease.shard.uri == seen[-1]
    assert seen == ["s0.tar", "s1.tar", "s2.tar"]
    assert leases.unfinished == 0


def test_a_poison_shard_is_set_aside_after_exactly_the_allowed_attempts() -> None:
    """A shard that kills its workers must neither loop for ever nor be given up early, nor hold up the others."""
    leases: Leases[int] = Leases(shards(2), max_attempts=3, timeout_s=10)
    strikes, last = [], None
    while lease := leases.take(0, now=0.0):
        if lease.shard.uri == "s0.tar":
            strikes.append(lease.strikes)
            last = leases.strike(0)
            assert (last is None) == (len(strikes) < 3)
        else:
            assert lease.strikes == 0
            leases.done(0)
    assert strikes == [0, 1, 2]
    assert last is not None
    assert (last.shard.uri, last.strikes) == ("s0.tar", 2)
    assert leases.unfinished == 0


def test_shards_are_taken_from_the_collection_one_by_one() -> None:
    """A million shards in memory, of which each worker holds one, would be most of what the driver needs."""
    made = []

    class Lazy(Collection[Shard]):
        def __len__(self) -> int:
            return 1_000_000

        def __contains__(self, shard: object) -> bool:
            raise AssertionError

        def __iter__(self) -> Iterator[Shard]:
            for number in range(len(self)):
                made.append(number)
                yield shards(1)[0]

    leases: Leases[int] = Leases(Lazy(), max_attempts=3, timeout_s=10)
    leases.take(0, now=0.0)
    leases.take(1, now=0.0)
    assert made == [0, 1]
    assert (leases.waiting, leases.unfinished) == (999_998, 1_000_000)


def test_a_shard_that_cannot_be_read_is_set_aside_at_once() -> None:
    """Trying a corrupt tar again costs time and changes nothing."""
    leases: Leases[int] = Leases(shards(1), max_attempts=3, timeout_s=10)
    leases.take(0, now=0.0)
    assert leases.strike(0, final=True) is not None
    assert leases.unfinished == 0


def test_a_lost_node_is_no_strike() -> None:
    """Preemption, however often, must not make a good shard look like poison."""
    leases: Leases[int] = Leases(shards(2), max_attempts=1, timeout_s=10)
    for worker in range(50):
        lease = leases.take(worker, now=0.0)
        assert lease is not None
        assert lease.shard.uri == "s0.tar"
        assert lease.strikes == 0
        assert leases.give_back(worker) == lease.shard
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
