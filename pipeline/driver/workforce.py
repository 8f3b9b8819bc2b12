"""What the pool asks of those that do the work, be it Ray (`actors`) or a simulation, and what they answer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from ray.exceptions import RayError

from pipeline.records import Commit, LabelerInfo, Shard
from pipeline.worker import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a call: of `hire` the node that the worker is on, of `start` its labeler, of `label` the commit.

    shard: that of `label`. error: what came in place of a result, as Ray tells it; `verdicts` judges it.
    """

    worker: int
    shard: Shard | None = None
    result: str | LabelerInfo | Commit | None = None
    error: RayError | None = None


class Workforce(Protocol):
    """Workers by number, and a clock. Each call returns at once; its answer comes later.

    Attributes:
        least: so many workers must have started, or the user is told.
        limit: there may be so many.
    """

    least: int
    limit: int

    def now(self) -> float:
        """Seconds, of a clock that only goes forward."""
        ...

    def hire(self) -> int:
        """Ask for a place for another worker -> its number."""
        ...

    def start(self, worker: int) -> None:
        """Have a worker that has a place build its labeler."""
        ...

    def label(self, worker: int, shard: Shard, run: Run, *, strikes: int, turn: int) -> None:
        """Have a worker label a shard; it may have two such calls at once, and begins with that of the lower turn."""
        ...

    def answers(self, timeout_s: float) -> list[Answer]:
        """All that have come in, in that order; if there are none, what comes first within the time."""
        ...

    def dismiss(self, worker: int) -> None:
        """End a worker's process; what it was asked is not answered any more."""
        ...

    def draining(self) -> Collection[str]:
        """The nodes that will go, and take no new work."""
        ...

    def shortage(self) -> str:
        """What each worker asks for, and what there is, in words."""
        ...
