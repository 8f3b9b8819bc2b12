"""Which shard is whose, and how often it killed its worker: the driver's book, pure, with time as an argument."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.records import Shard

WorkerId = TypeVar("WorkerId", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A shard in the hands of a worker until `deadline`, in seconds of the driver's clock.

    `strikes` counts the workers that the shard has cost before.
    """

    shard: Shard
    deadline: float
    strikes: int = 0


class Leases(Generic[WorkerId]):
    """Hands each shard to one worker at a time until it is done or set aside.

    A shard that is struck (its worker died of it, or it failed) is tried again after all others, and after
    `max_attempts` strikes it is set aside. A worker that was lost through no fault of the shard gives it back without a
    strike. The shards are taken from the collection one by one, so that a million of them need not be in memory.
    """

    def __init__(self, shards: Collection[Shard], *, max_attempts: int, timeout_s: float) -> None:
        """All `shards` wait, in this order; a lease lasts `timeout_s`."""
        self._fresh, self._left = iter(shards), len(shards)
        self._returned: deque[Shard] = deque()
        self._struck: deque[Shard] = deque()
        self._strikes: Counter[str] = Counter()
        self._held: dict[WorkerId, Lease] = {}
        self._max_attempts, self._timeout_s = max_attempts, timeout_s

    @property
    def unfinished(self) -> int:
        """How many shards are waiting or held."""
        return self.waiting + len(self._held)

    @property
    def waiting(self) -> int:
        """How many shards nobody holds."""
        return self._left + len(self._returned) + len(self._struck)

    def take(self, worker: WorkerId, now: float) -> Lease | None:
        """The next shard for an idle worker; None if none waits."""
        assert worker not in self._held, "a worker holds one shard"
        if self._returned:
            shard = self._returned.popleft()
        elif self._left:
            shard = next(self._fresh)
            self._left -= 1
        elif self._struck:
            shard = self._struck.popleft()
        else:
            return None
        lease = Lease(shard=shard, deadline=now + self._timeout_s, strikes=self._strikes[shard.id])
        self._held[worker] = lease
        return lease

    def done(self, worker: WorkerId) -> Shard:
        """The worker's shard is committed."""
        return self._held.pop(worker).shard

    def give_back(self, worker: WorkerId) -> Shard | None:
        """The worker is lost, through no fault of the shard that it held, if any: next in line, without a strike."""
        lease = self._held.pop(worker, None)
        if lease is None:
            return None
        self._returned.appendleft(lease.shard)
        return lease.shard

    def strike(self, worker: WorkerId, *, final: bool = False) -> Lease | None:
        """The worker's shard failed -> its lease, if it is set aside: at the last attempt, or at once if `final`.

        The `strikes` of that lease do not count this one.
        """
        lease = self._held.pop(worker)
        self._strikes[lease.shard.id] = lease.strikes + 1
        if final or lease.strikes + 1 >= self._max_attempts:
            return lease
        self._struck.append(lease.shard)
        return None

    def overdue(self, now: float) -> list[WorkerId]:
        """The workers that have held their shard for too long."""
        return [worker for worker, lease in self._held.items() if now >= lease.deadline]
