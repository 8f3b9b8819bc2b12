"""The driver's book of leases, without Ray and without a clock."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from itertools import count

import pytest

from pipeline.leases import SLOW, SLOW_S, Lease, Leases
from pipeline.records import Shard


def shards(n: int, *, bytes: int = 1) -> list[Shard]:
    return [Shard(id=f"{i:020x}", uri=f"s{i}.tar", format="tar", bytes=bytes, etag="", number=i) for i in range(n)]


def book(n: int, *, max_attempts: int = 3) -> Leases[int]:
    return Leases(shards(n), max_attempts=max_attempts, timeout_s=10)


def take(leases: Leases[int], worker: int, now: float = 0.0, *, others: int = 0) -> Shard:
    lease = leases.take(worker, now, others=others)
    assert lease is not None
    return lease.shard


def in_the_tail() -> tuple[Leases[int], Shard]:
    """Worker 0 is slow with the only shard that is left; workers 1 and 2 are idle, and took 1 s for theirs."""
    leases = book(3, max_attempts=2)
    slow = take(leases, 0)
    for worker in (1, 2):
        assert leases.done(worker, take(leases, worker), 1.0)
    return leases, slow


def test_every_shard_is_handed_out_once_and_in_order() -> None:
    """A shard labelled twice costs GPU hours; one never handed out is lost."""
    leases, seen = book(3), []
    while lease := leases.take(0, 0.0):
        seen.append(lease.shard.uri)
        assert leases.done(0, lease.shard, 1.0)
    assert seen == ["s0.tar", "s1.tar", "s2.tar"]
    assert leases.unfinished == 0


def test_a_poison_shard_is_set_aside_after_exactly_the_allowed_attempts() -> None:
    """A shard that kills its workers must neither loop for ever nor be given up early, nor hold up the others."""
    leases, strikes, fates = book(2), [], []
    while lease := leases.take(0, 0.0):
        if lease.shard.uri == "s0.tar":
            strikes.append(lease.strikes)
            fates.append(leases.strike(0, lease.shard, 0.0))
        else:
            assert lease.strikes == 0
            leases.done(0, lease.shard, 0.0)
    assert strikes == [0, 1, 2]
    assert fates == ["again", "again", "aside"]
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
                yield shards(number + 1)[number]

    leases: Leases[int] = Leases(Lazy(), max_attempts=3, timeout_s=10)
    leases.take(0, 0.0)
    leases.take(1, 0.0)
    assert made == [0, 1]
    assert (leases.waiting, leases.unfinished) == (999_998, 1_000_000)


def test_a_shard_that_cannot_be_read_is_set_aside_at_once() -> None:
    """Trying a corrupt tar again costs time and changes nothing."""
    leases = book(1)
    assert leases.strike(0, take(leases, 0), 0.0, final=True) == "aside"
    assert leases.unfinished == 0


def test_a_lost_node_is_no_strike() -> None:
    """Preemption, however often, must not make a good shard look like poison."""
    leases = book(2, max_attempts=1)
    for worker in range(50):
        lease = leases.take(worker, 0.0)
        assert lease is not None
        assert (lease.shard.uri, lease.strikes) == ("s0.tar", 0)
        assert leases.give_back(worker, lease.shard, 0.0) == "again"
    assert leases.unfinished == 2


def test_a_lease_is_overdue_at_its_deadline_and_not_before() -> None:
    """A worker that hangs would hold its shard, and the end of the run, for ever."""
    leases = book(2, max_attempts=1)
    leases.take(0, 0.0)
    leases.take(1, 5.0)
    assert leases.overdue(9.9) == []
    assert leases.overdue(10.0) == [0]
    assert leases.overdue(15.0) == [0, 1]


def test_a_second_shard_is_not_overdue_for_the_time_of_the_first() -> None:
    """It waits for the first; a clock that ran meanwhile would have good shards struck."""
    leases = book(3)
    first, second = take(leases, 0), take(leases, 0)
    leases.done(0, first, 8.0)
    assert leases.overdue(17.9) == []
    assert leases.overdue(18.0) == [0]
    assert [lease.shard for lease in leases.of(0)] == [second]


def test_a_second_shard_is_given_only_where_enough_wait() -> None:
    """Otherwise a worker sits idle at the end of a run while another one holds two."""
    leases = book(5)
    assert take(leases, 0).uri == "s0.tar"
    assert leases.take(0, 0.0, others=4) is None
    assert take(leases, 0, others=3).uri == "s1.tar"
    assert leases.take(0, 0.0) is None, "a third one is of no use"
    assert [lease.began for lease in leases.of(0)] == [0.0, None]


def test_a_shard_that_was_struck_or_given_back_is_alone_with_its_worker() -> None:
    """Beside another one, nobody could tell of which of them the worker died, and poison might never be set aside."""
    leases = book(8)
    first, second = take(leases, 0), take(leases, 0)
    assert leases.strike(0, first, 0.0) == "again"
    take(leases, 5)
    assert leases.give_back(0, second, 0.0) == "again"
    assert take(leases, 5) not in (first, second), "not as a second one, either"
    assert take(leases, 1) == second
    assert leases.take(1, 0.0) is None, "nothing beside what was given back"
    for worker in (2, 3):
        assert leases.done(worker, take(leases, worker), 0.0)
    take(leases, 2)
    take(leases, 3)
    lease = leases.take(4, 0.0)
    assert lease is not None
    assert (lease.shard, lease.strikes) == (first, 1)
    assert leases.take(4, 0.0) is None


def test_there_is_no_second_shard_where_a_single_strike_sets_aside() -> None:
    """An innocent shard would be set aside for its neighbour."""
    leases = book(9, max_attempts=1)
    leases.take(0, 0.0)
    assert leases.take(0, 0.0) is None


def test_whoever_dies_with_two_shards_sets_neither_aside() -> None:
    """Nobody can tell which of them it was: each must be tried alone before it is given up."""
    leases = book(2, max_attempts=2)
    one, other = take(leases, 0), take(leases, 0)
    assert [leases.strike(0, shard, 0.0) for shard in (one, other)] == ["again", "again"]
    poison = take(leases, 1)
    assert poison == one
    assert leases.take(1, 0.0) is None
    assert leases.strike(1, poison, 0.0) == "aside"
    assert leases.done(2, take(leases, 2), 0.0)
    assert leases.unfinished == 0


def test_the_end_of_a_run_does_not_wait_for_one_slow_worker() -> None:
    """A node with a broken GPU would hold up the end of the run for hours. The first commit counts, and only it."""
    leases, slow = in_the_tail()
    assert leases.copy_the_slow([1, 2], SLOW_S) == []
    ((worker, copy),) = leases.copy_the_slow([1, 2], SLOW_S + 0.1)
    assert (worker, copy.shard, copy.copy) == (1, slow, True)
    assert leases.copy_the_slow([2], 1e6) == [], "one copy a shard"
    assert leases.done(1, slow, 8.0)
    assert leases.unfinished == 0
    assert leases.in_vain == {0}
    assert not leases.done(0, slow, 9.0), "it would be counted twice"
    assert leases.in_vain == set()


def test_the_original_may_win() -> None:
    """Whoever is second labels in vain and can be sent home."""
    leases, slow = in_the_tail()
    leases.copy_the_slow([1], 50.0)
    assert leases.done(0, slow, 51.0)
    assert leases.in_vain == {1}
    leases.part(1)
    assert (leases.in_vain, leases.of(1), leases.unfinished) == (set(), (), 0)


@pytest.mark.parametrize("first", ["original", "copy"])
def test_a_copy_costs_no_strike(first: str) -> None:
    """A good shard would otherwise be set aside early, because it was given to more workers than it may cost."""
    leases, slow = in_the_tail()
    leases.copy_the_slow([1], 50.0)
    order = (0, 1) if first == "original" else (1, 0)
    assert leases.strike(order[0], slow, 60.0) == "elsewhere"
    assert (leases.waiting, leases.held) == (0, 1)
    assert leases.strike(order[1], slow, 61.0) == "again"
    lease = leases.take(2, 62.0)
    assert lease is not None
    assert lease.strikes == 1
    assert leases.strike(2, slow, 63.0) == "aside"
    assert leases.unfinished == 0


def test_a_copy_that_dies_alone_costs_no_strike_either() -> None:
    """The original was lost with its node, and the shard would be tried carefully, or given up, without a reason."""
    leases, slow = in_the_tail()
    leases.copy_the_slow([1], 50.0)
    assert leases.give_back(0, slow, 60.0) == "elsewhere"
    assert leases.strike(1, slow, 61.0) == "again"
    lease = leases.take(2, 62.0)
    assert lease is not None
    assert lease.strikes == 0


def test_while_a_copy_goes_on_nothing_is_set_aside() -> None:
    """A run would report as lost what is committed a moment later."""
    leases, slow = in_the_tail()
    leases.copy_the_slow([1], 50.0)
    assert leases.strike(0, slow, 60.0, final=True) == "elsewhere"
    assert leases.done(1, slow, 61.0)
    assert leases.unfinished == 0


def test_nothing_is_copied_that_has_struck_or_that_takes_long_because_it_is_large() -> None:
    """A poison shard would cost a second worker, and a large one labelled twice is finished no sooner."""
    large, small, struck = (shards(3, bytes=size)[n] for n, size in enumerate((1000, 10, 10)))
    leases: Leases[int] = Leases([large, small, struck], max_attempts=3, timeout_s=1e9)
    take(leases, 0)
    assert leases.done(1, take(leases, 1), 10.0)
    assert leases.strike(1, take(leases, 1), 10.0) == "again"
    take(leases, 1, 10.0)
    assert leases.copy_the_slow([2], 1000.0) == []
    ((_, copy),) = leases.copy_the_slow([2], SLOW * 1000.0 + 1)
    assert copy.shard == large


def test_nothing_is_copied_while_shards_wait_or_to_slow_workers() -> None:
    """A copy must not take the place of work, and on a slow worker it is finished no sooner."""
    leases = book(5)
    take(leases, 0)
    assert leases.done(1, take(leases, 1), 1.0)
    assert leases.done(2, take(leases, 2), 1.0)
    assert leases.done(3, take(leases, 3), 100.0)
    assert leases.copy_the_slow([1, 2, 3], 1000.0) == []
    take(leases, 2, 1000.0)
    assert leases.copy_the_slow([3], 1000.0) == []
    assert [worker for worker, _ in leases.copy_the_slow([3, 1], 1000.0)] == [1]
    assert leases.ranked([4, 3, 1]) == [1, 3, 4]


def test_a_second_shard_behind_a_slow_one_is_copied_too() -> None:
    """It would wait for hours in the hands of a worker that does not get to it."""
    leases = book(4)
    first, second = take(leases, 0), take(leases, 0)
    for worker in (1, 2):
        assert leases.done(worker, take(leases, worker), 1.0)
    assert {copy.shard.uri for _, copy in leases.copy_the_slow([1, 2], 50.0)} == {"s0.tar", "s1.tar"}
    assert leases.done(1, first, 60.0)
    assert leases.in_vain == set(), "its second is not done"
    assert leases.done(0, second, 61.0)
    assert leases.in_vain == {0, 2}


def test_a_second_shard_is_copied_while_the_first_will_take_some_time() -> None:
    """It would wait for a worker that is busy with a large one, beside others that have nothing to do."""
    large, small = shards(4, bytes=1000)[0], shards(4, bytes=100)[1:]
    leases: Leases[int] = Leases([large, *small], max_attempts=3, timeout_s=1e9)
    take(leases, 0)
    second = take(leases, 0)
    for worker in (1, 2):
        assert leases.done(worker, take(leases, worker), 10.0)
    assert leases.copy_the_slow([1, 2], 100.0 - SLOW_S) == [], "the first is about to end"
    ((_, copy),) = leases.copy_the_slow([1, 2], 20.0)
    assert copy.shard == second


def test_whatever_happens_no_shard_is_lost_or_done_twice() -> None:
    """The book under random events: each shard ends done once or set aside, after no more strikes than allowed."""
    for seed in range(30):
        dice = random.Random(seed)
        leases: Leases[int] = Leases(shards(40), max_attempts=3, timeout_s=1e9)
        done: list[str] = []
        aside: list[str] = []
        strikes: dict[str, int] = {}
        now, names = 0.0, count(6)
        workers = list(range(6))
        while leases.unfinished:
            now += 10.0
            for worker in workers:
                while leases.take(worker, now, others=5):
                    pass
            idle = [worker for worker in workers if not leases.of(worker)]
            leases.copy_the_slow(idle, now)
            for worker in list(leases.in_vain):
                leases.part(worker)
                workers[workers.index(worker)] = next(names)
            worker = dice.choice([one for one in workers if leases.of(one)])
            lease: Lease = dice.choice(leases.of(worker))
            match dice.choice(["done"] * 6 + ["raised", "final", "died", "lost"]):
                case "done":
                    if leases.done(worker, lease.shard, now):
                        done.append(lease.shard.id)
                case "lost":
                    for one in leases.of(worker):
                        leases.give_back(worker, one.shard, now)
                    leases.part(worker)
                    workers[workers.index(worker)] = next(names)
                case how:
                    for one in leases.of(worker) if how == "died" else (lease,):
                        unfinished = one.shard.id not in done
                        strikes[one.shard.id] = strikes.get(one.shard.id, 0) + (unfinished and not one.copy)
                        if leases.strike(worker, one.shard, now, final=how == "final") == "aside":
                            aside.append(one.shard.id)
                            assert how == "final" or strikes[one.shard.id] == 3
            assert all(n <= 3 for n in strikes.values())
            assert len(leases.of(worker)) < 2 or leases.of(worker)[0].strikes == leases.of(worker)[1].strikes == 0
        assert sorted(done + aside) == [shard.id for shard in shards(40)]
