"""Which shard is whose, and how often it killed its worker: the driver's book, pure, with time as an argument."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, replace
from operator import attrgetter
from statistics import median
from typing import Generic, Literal, TypeAlias, TypeVar

from pipeline.records import Shard

WorkerId = TypeVar("WorkerId", bound=Hashable)

#: What becomes of a shard whose attempt failed: it is tried again, or set aside; `elsewhere`: another worker has it
#: too, or has finished it.
Fate: TypeAlias = Literal["again", "aside", "elsewhere"]

#: A shard is slow when it has taken so many times what one of its size takes by the median of the last ones, and so
#: many seconds.
SLOW, SLOW_S = 1.5, 5.0
_LAST = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A shard in the hands of a worker.

    Attributes:
        shard: what is leased.
        given: when, in seconds of the driver's clock.
        began: the same, but for a second shard of a worker, which begins when the first has ended: None before.
        strikes: the workers that the shard has cost before.
        fresh: nobody held the shard before.
        copy: another worker has had the shard before, and still has it.
    """

    shard: Shard
    given: float
    began: float | None
    strikes: int = 0
    fresh: bool = False
    copy: bool = False

    def age(self, now: float) -> float:
        """Seconds since it began; 0 before."""
        return 0.0 if self.began is None else now - self.began


class Leases(Generic[WorkerId]):
    """Hands each shard to a worker until it is done or set aside.

    A shard that is struck (its worker died of it, or it failed) is tried again after all others, and after
    `max_attempts` strikes it is set aside. A worker that was lost through no fault of the shard gives it back without a
    strike. What was struck or given back is alone with its worker from then on, so that the next death has one cause.

    A worker may hold a second shard, to be read while it labels the first, if nobody has held either before. When it
    dies, both are struck: as a first strike, which never sets aside where `max_attempts` is more than 1, and there is
    no second shard where it is not.

    When no shard waits, one that is slow may be copied: given to a second worker, too. The first of the two to finish
    it counts. A copy costs no strike, and while one of the two is at the shard, the failure of the other sets nothing
    aside.

    The shards are taken from the collection one by one, so that a million of them need not be in memory.

    Attributes:
        in_vain: the workers that are busy with nothing but what others have finished.
    """

    def __init__(self, shards: Collection[Shard], *, max_attempts: int, timeout_s: float) -> None:
        """All `shards` wait, in this order; a worker may take `timeout_s` over one."""
        self._fresh, self._left = iter(shards), len(shards)
        self._returned: deque[Shard] = deque()
        self._struck: deque[Shard] = deque()
        self._strikes: Counter[str] = Counter()
        self.in_vain: set[WorkerId] = set()
        self._held: dict[WorkerId, list[Lease]] = {}
        self._at: dict[str, list[WorkerId]] = {}  # who is at each shard that is neither waiting nor finished
        self._rates: deque[float] = deque(maxlen=_LAST)  # seconds a byte, of the last shards
        self._rate_of: dict[WorkerId, float] = {}  # the same, of each worker's last one
        self._max_attempts, self._timeout_s = max_attempts, timeout_s

    @property
    def unfinished(self) -> int:
        """How many shards are waiting or held."""
        return self.waiting + self.held

    @property
    def waiting(self) -> int:
        """How many shards nobody holds."""
        return self._left + len(self._returned) + len(self._struck)

    @property
    def held(self) -> int:
        """How many unfinished shards somebody holds."""
        return len(self._at)

    def of(self, worker: WorkerId) -> tuple[Lease, ...]:
        """What a worker holds, in the order in which it labels; that others have finished meanwhile included."""
        return tuple(self._held.get(worker, ()))

    def take(self, worker: WorkerId, now: float, *, others: int = 0) -> Lease | None:
        """The next shard for a worker; None if there is none for it.

        A worker that holds one gets a second only if more shards wait than there are `others`, that is, workers who
        would like one, too.
        """
        held = self._held.get(worker, [])
        if held and not self._has_room(held, others):
            return None
        if self._returned and not held:
            shard, fresh = self._returned.popleft(), False
        elif self._left:
            shard, fresh = next(self._fresh), True
            self._left -= 1
        elif self._struck:
            shard, fresh = self._struck.popleft(), False
        else:
            return None
        strikes, began = self._strikes[shard.id], None if held else now
        lease = Lease(shard=shard, given=now, began=began, strikes=strikes, fresh=fresh)
        self._held[worker] = [*held, lease]
        self._at[shard.id] = [worker]
        return lease

    def _has_room(self, held: list[Lease], others: int) -> bool:
        return len(held) == 1 and held[0].fresh and self._max_attempts > 1 and self._left > 0 and self.waiting > others

    def ranked(self, workers: Collection[WorkerId]) -> list[WorkerId]:
        """The workers, the quickest at its last shard first, and those last of whom nothing is known."""
        return sorted(workers, key=lambda worker: self._rate_of.get(worker, math.inf))

    def copy_the_slow(self, idle: Collection[WorkerId], now: float) -> list[tuple[WorkerId, Lease]]:
        """Give what is slow to idle workers, too, if no shard waits -> the copies, and who has got them.

        The oldest leases come first. A second shard counts as slow while the first, for which it waits, will take some
        time or is slow. Workers that were slow themselves get none.
        """
        if self.waiting or not self._rates or not idle:
            return []
        rate = median(self._rates)
        slow: list[Lease] = []
        for held in self._held.values():
            usual, age = rate * _size(held[0].shard), held[0].age(now)
            if age > max(SLOW * usual, SLOW_S):
                slow += (lease for lease in held if self._may_be_copied(lease))
            elif usual - age > SLOW_S:
                slow += (lease for lease in held[1:] if self._may_be_copied(lease))
        limit = SLOW * rate
        quick = [worker for worker in self.ranked(idle) if self._rate_of.get(worker, limit) <= limit]
        copies = list(zip(quick, sorted(slow, key=attrgetter("given")), strict=False))
        return [(worker, self._copy(lease, worker, now)) for worker, lease in copies]

    def _may_be_copied(self, lease: Lease) -> bool:
        return not lease.copy and not lease.strikes and len(self._at.get(lease.shard.id, ())) == 1

    def _copy(self, lease: Lease, worker: WorkerId, now: float) -> Lease:
        assert worker not in self._held, "a copy is alone with its worker"
        copy = Lease(shard=lease.shard, given=now, began=now, copy=True)
        self._held[worker] = [copy]
        self._at[lease.shard.id].append(worker)
        return copy

    def done(self, worker: WorkerId, shard: Shard, now: float) -> bool:
        """A worker has committed a shard -> whether it is the first to do so."""
        lease = self._end(worker, shard, now)
        if shard.id not in self._at:
            return False
        if lease.began is not None:  # else another driver had done it already
            self._rate_of[worker] = lease.age(now) / _size(shard)
            self._rates.append(self._rate_of[worker])
        for other in self._at.pop(shard.id):
            self._look_whether_in_vain(other)
        return True

    def give_back(self, worker: WorkerId, shard: Shard, now: float) -> Fate:
        """An attempt ended through no fault of the shard: it is the next in line, without a strike."""
        self._end(worker, shard, now)
        if not self._leaves_nobody(worker, shard):
            return "elsewhere"
        self._returned.appendleft(shard)
        return "again"

    def strike(self, worker: WorkerId, shard: Shard, now: float, *, final: bool = False) -> Fate:
        """An attempt failed: the shard is set aside if it was the last one that it may have, or at once if `final`."""
        lease = self._end(worker, shard, now)
        if not lease.copy:
            self._strikes[shard.id] = lease.strikes + 1
        if not self._leaves_nobody(worker, shard):
            return "elsewhere"
        if final or self._strikes[shard.id] >= self._max_attempts:
            return "aside"
        self._struck.append(shard)
        return "again"

    def overdue(self, now: float) -> list[WorkerId]:
        """The workers that have taken too long over the first of what they hold."""
        return [worker for worker, held in self._held.items() if held[0].age(now) >= self._timeout_s]

    def part(self, worker: WorkerId) -> None:
        """A worker has gone, and held nothing that is not finished."""
        held = self._held.pop(worker, [])
        assert not self._needs(held), "a shard would be lost"
        self._rate_of.pop(worker, None)
        self.in_vain.discard(worker)

    def _end(self, worker: WorkerId, shard: Shard, now: float) -> Lease:
        """Take a shard from a worker, who begins with the next one."""
        held = self._held[worker]
        lease = next(lease for lease in held if lease.shard.id == shard.id)
        held.remove(lease)
        if not held:
            del self._held[worker]
        elif held[0].began is None:
            held[0] = replace(held[0], began=now)
        self._look_whether_in_vain(worker)
        return lease

    def _look_whether_in_vain(self, worker: WorkerId) -> None:
        held = self._held.get(worker)
        if held and not self._needs(held):
            self.in_vain.add(worker)
        else:
            self.in_vain.discard(worker)

    def _needs(self, held: Iterable[Lease]) -> bool:
        return any(lease.shard.id in self._at for lease in held)

    def _leaves_nobody(self, worker: WorkerId, shard: Shard) -> bool:
        """Whether the failed attempt of a worker was the only one at a shard that is not finished."""
        workers = self._at.get(shard.id, [])
        if worker in workers:
            workers.remove(worker)
        return not workers and self._at.pop(shard.id, None) is not None


def _size(shard: Shard) -> int:
    """Bytes, or 1 where nobody knows."""
    return max(shard.bytes, 1)
