"""Which shard is whose, and how often it killed its worker: the driver's book, pure, with time as an argument."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.records import Failure, Shard

WorkerId = TypeVar("WorkerId", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A shard in the hands of a worker until `deadline`, in seconds of the driver's clock."""

    shard: Shard
    deadline: float


class Leases(Generic[WorkerId]):
    """Hands each shard to one worker at a time until it is done or set aside.

    A shard that is struck (its worker died of it, or it failed) goes to the end of the queue, and after `max_attempts`
    strikes it is set aside. A worker that was lost through no fault of the shard gives it back without a strike.
    """

    def __init__(self, shards: Iterable[Shard], *, max_attempts: int, timeout_s: float) -> None:
        """All `shards` wait, in this order; a lease lasts `timeout_s`."""
        self._waiting = deque(shards)
        self._strikes: Counter[str] = Counter()
        self._held: dict[WorkerId, Lease] = {}
        self._max_attempts, self._timeout_s = max_attempts, timeout_s

    @property
    def unfinished(self) -> int:
        """How many shards are waiting or held."""
        return len(self._waiting) + len(self._held)

    @property
    def waiting(self) -> int:
        """How many shards nobody holds."""
        return len(self._waiting)

    def take(self, worker: WorkerId, now: float) -> Shard | None:
        """The next shard for an idle worker; None if none waits."""
        assert worker not in self._held, "a worker holds one shard"
        if not self._waiting:
            return None
        shard = self._waiting.popleft()
        self._held[worker] = Lease(shard=shard, deadline=now + self._timeout_s)
        return shard

    def done(self, worker: WorkerId) -> Shard:
        """The worker's shard is committed."""
        return self._held.pop(worker).shard

    def give_back(self, worker: WorkerId) -> Shard | None:
        """The worker is lost, through no fault of the shard that it held, if any: next in line, without a strike."""
        lease = self._held.pop(worker, None)
        if lease is None:
            return None
        self._waiting.appendleft(lease.shard)
        return lease.shard

    def strike(self, worker: WorkerId, reason: str, *, final: bool = False) -> Failure | None:
        """The worker's shard failed -> the failure, if it is set aside: at the last attempt, or at once if `final`."""
        shard = self._held.pop(worker).shard
        self._strikes[shard.id] += 1
        attempts = self._strikes[shard.id]
        if final or attempts >= self._max_attempts:
            return Failure(shard_id=shard.id, uri=shard.uri, attempts=attempts, error=reason)
        self._waiting.append(shard)
        return None

    def overdue(self, now: float) -> list[WorkerId]:
        """The workers that have held their shard for too long."""
        return [worker for worker, lease in self._held.items() if now >= lease.deadline]
