"""What a run tells of itself: where it stands, how it ended, and what was set aside."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline import ledger, trails
from pipeline.errors import StoreError
from pipeline.leases import Lease
from pipeline.records import Failure
from pipeline.store import Store, redact

log = logging.getLogger("pipeline.run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Where a run stands. Shards count for the whole run, the rest for what this driver has seen, in `seconds`.

    done_here: shards of `done` that this driver has seen done. worker_seconds: those of all workers that had started.
    strikes, given_back, copies, device: see `history.History`. stages: seconds by step, see `stages`.
    """

    shards: int
    done: int
    failed: int = 0
    workers: int = 0
    images: int = 0
    labelled: int = 0
    empty: int = 0
    quarantined: int = 0
    instances: int = 0
    seconds: float = 0.0
    done_here: int = 0
    worker_seconds: float = 0.0
    strikes: int = 0
    given_back: int = 0
    copies: int = 0
    device: str = ""
    stages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended, and why which shards are not done. `interrupted` names the signal that stopped it."""

    uri: str
    snapshot: Snapshot
    failures: tuple[Failure, ...] = ()
    interrupted: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every shard is committed."""
        return self.snapshot.done == self.snapshot.shards


class SetAside:
    """The shards that this driver has set aside, each written down beside the run as soon as storage answers.

    Attributes:
        failures: why, in that order.
    """

    def __init__(self, store: Store, run_uri: str) -> None:
        """Nothing is set aside yet."""
        self._store, self._run_uri = store, run_uri
        self.failures: list[Failure] = []
        self._unwritten: list[Failure] = []

    def add(self, lease: Lease, reason: str) -> None:
        """Set the shard of a lease aside for a reason, and for the image that its trail names, if it does."""
        trail = trails.read(self._store, self._run_uri, lease.shard.id, strikes=lease.strikes)
        failure = Failure(
            shard_id=lease.shard.id,
            uri=lease.shard.uri,
            attempts=lease.strikes + 1,
            error=reason if trail is None else f"{reason.removesuffix('.')}, while {trail}",
            images=() if trail is None else trail.keys,
        )
        log.error("set aside: %s: %s", redact(failure.uri), failure.error)
        self.failures.append(failure)
        self._unwritten.append(failure)
        self._write()

    def close(self) -> None:
        """Write what is not written yet; what cannot be written is told."""
        self._write()
        for failure in self._unwritten:
            log.error("could not be written down: %s was set aside: %s", redact(failure.uri), failure.error)

    def _write(self) -> None:
        try:
            while self._unwritten:
                ledger.record_failure(self._store, self._run_uri, self._unwritten[0])
                del self._unwritten[0]
        except StoreError as error:
            log.warning("%s", error)
