"""Workers that sleep in virtual time, in the place of Ray's actors, and the clock that shows it."""

from __future__ import annotations

import heapq
import math
import time
from bisect import bisect
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from pipeline import __version__
from pipeline.driver.workforce import Answer
from pipeline.errors import ShardError
from pipeline.records import Commit, LabelerInfo, Shard
from pipeline.worker import Run

LABELER = LabelerInfo(fingerprint="f" * 16, categories=())
IMAGES = 1000  # of a shard
COMMIT = Commit(
    shard_id="",
    attempt="",
    outputs={},
    images=IMAGES,
    labelled=IMAGES,
    empty=0,
    quarantined=0,
    instances=7 * IMAGES,
    reasons={},
    fingerprint=LABELER.fingerprint,
    seconds=1.0,
    version=__version__,
)
TYPICAL_BYTES = 1 << 28

DIED = ActorDiedError(ActorDiedErrorContext(error_message="Worker exit detail: it was to die", actor_id=bytes(16)))
DAMAGED = RayTaskError("label", "", ShardError("the shard is damaged"))
GONE = ActorDiedError(ActorDiedErrorContext(error_message="Its node has died.", actor_id=bytes(16)))
POISON, HANGING, UNREADABLE, DRAINED = 0, 1, 2, "a node that is to go"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is simulated; all times in seconds.

    Attributes:
        workers, shards: how many.
        seconds: the median that a shard takes of a GPU.
        sizes: the spread of the shards' sizes, and with them of their times, as sigma of a log-normal.
        luck: the spread of the times among shards of a size.
        around: reading a shard, and again writing it; neither takes the GPU, nor does the next shard wait for it.
        places: for how many workers there is room at a time.
        start: until a worker has started.
        slow_workers, slowness: so many take so many times as long.
        deaths, preemptions: the odds of an attempt that its worker dies, or its node goes.
        poison, hanging, unreadable: the first so many shards kill each worker; the next take for ever, or are damaged.
        drained: so many workers are on a node that is to go after the time of ten shards.
        call, hire: what Ray takes of the driver for a shard, or a worker.
        brake: what the driver takes for an answer besides what it really takes.
        large_first: whether large shards are.
        copies: whether idle workers get what is slow, too.
    """

    workers: int = 1000
    shards: int = 1_000_000
    seconds: float = 100.0
    sizes: float = 0.5
    luck: float = 0.1
    around: float = 0.5
    places: int = 1_000_000
    start: float = 0.0
    slow_workers: int = 0
    slowness: float = 10.0
    deaths: float = 0.0
    preemptions: float = 0.0
    poison: int = 0
    hanging: int = 0
    unreadable: int = 0
    drained: int = 0
    call: float = 0.0007
    hire: float = 0.002
    brake: float = 0.0
    max_attempts: int = 3
    shard_timeout_s: int = 1_000_000
    large_first: bool = True
    copies: bool = True
    seed: int = 0


@dataclass(slots=True)
class Call:
    """A shard that a worker is at, and when; `error` says what comes of it, in place of a commit."""

    worker: int
    shard: Shard
    begin: float
    end: float
    error: RayError | None = None


class Sleepers:
    """A workforce that sleeps, in virtual time. See `pipeline.driver.workforce.Workforce`."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self.least = self.limit = scenario.workers
        self._random = np.random.default_rng(scenario.seed + 1)
        self._dice = self._throw()
        self._calls: dict[int, list[Call]] = {}  # of each worker that lives
        self._busy: dict[int, float] = {}  # until when its GPU is
        self._coming: list[tuple[float, int, Answer | Call]] = []
        self._committed = bytearray(scenario.shards)
        self._hired = self._numbers = 0
        self._clock, self._resumed = 0.0, time.thread_time()
        self.first = math.nan
        self.useful = self.wasted = self.logic = self.paid = 0.0
        self.attempts = self.starts = self.careful = 0
        self._kinds = [*accumulate((scenario.poison, scenario.hanging, scenario.unreadable))]
        self._without_place: list[int] = []
        self._turns: Counter[int] = Counter()
        self._told: frozenset[str] = frozenset()

    def _throw(self) -> Iterator[tuple[float, float, float]]:
        """How much longer than usual a shard takes, whether its worker dies, and when."""
        while True:
            luck = self._random.lognormal(0.0, self._scenario.luck, 4096).tolist()
            yield from zip(luck, self._random.random(4096).tolist(), self._random.random(4096).tolist(), strict=True)

    def _pause(self, price: float = 0.0) -> None:
        """The driver has called: the time it took since the last call, and a price, go by."""
        worked = time.thread_time() - self._resumed
        self.logic += worked
        self.paid += price
        self._clock += worked + price

    def _resume(self) -> None:
        self._resumed = time.thread_time()

    def _later(self, at: float, what: Answer | Call) -> None:
        self._numbers += 1
        heapq.heappush(self._coming, (at, self._numbers, what))

    def now(self) -> float:
        return self._clock + time.thread_time() - self._resumed

    def hire(self) -> int:
        self._pause(self._scenario.hire)
        worker, self._hired = self._hired, self._hired + 1
        self._calls[worker], self._busy[worker] = [], 0.0
        self._without_place.append(worker)
        self._place()
        self._resume()
        return worker

    def _place(self) -> None:
        while self._without_place and len(self._calls) - len(self._without_place) < self._scenario.places:
            worker = self._without_place.pop(0)
            self._later(self._clock, Answer(worker=worker, result=self._node(worker)))

    def start(self, worker: int) -> None:
        self._pause()
        self.starts += 1
        self._later(self._clock + self._scenario.start, Answer(worker=worker, result=LABELER))
        self._resume()

    def label(self, worker: int, shard: Shard, run: Run, *, strikes: int, turn: int) -> None:
        self._pause(self._scenario.call)
        scenario, (luck, odds, when) = self._scenario, next(self._dice)
        assert turn == self._turns[worker], "a worker begins with the lower turn"
        assert self._node(worker) not in self._told, "a node that is to go takes no new work"
        self._turns[worker] += 1
        self.attempts += 1
        self.careful += strikes > 0
        if math.isnan(self.first):
            self.first = self._clock
        taken = scenario.seconds * shard.bytes / TYPICAL_BYTES * luck
        if worker < scenario.slow_workers:
            taken *= scenario.slowness
        kind = bisect(self._kinds, shard.number)
        begin = max(self._clock + scenario.around, self._busy[worker])
        call = Call(worker, shard, begin, begin + (math.inf if kind == HANGING else taken))
        if kind == UNREADABLE:
            call.error, call.end = DAMAGED, begin
        elif kind == POISON or odds < scenario.deaths:
            call.error, call.end = DIED, begin + when * taken
        elif odds < scenario.deaths + scenario.preemptions:
            call.error, call.end = GONE, begin + when * taken
        self._busy[worker] = call.end
        self._calls[worker].append(call)
        self._later(call.end if call.error else call.end + scenario.around, call)
        self._resume()

    def answers(self, timeout_s: float) -> list[Answer]:
        self._pause()
        found: list[Answer] = []
        next_one = self._coming[0][0] if self._coming else math.inf
        self._clock = max(self._clock, min(next_one, self._clock + timeout_s))
        while self._coming and self._coming[0][0] <= self._clock:
            found += self._answer(heapq.heappop(self._coming)[2])
        self.paid += self._scenario.brake * len(found)
        self._clock += self._scenario.brake * len(found)
        self._resume()
        return found

    def _answer(self, what: Answer | Call) -> list[Answer]:
        if what.worker not in self._calls:
            return []
        if isinstance(what, Answer):
            return [what]
        calls = self._calls[what.worker]
        if what.error in (DIED, GONE):
            self._forget(what.worker, what.end)
            return [Answer(worker=what.worker, shard=call.shard, error=what.error) for call in calls]
        calls.remove(what)
        if what.error:
            return [Answer(worker=what.worker, shard=what.shard, error=what.error)]
        if self._committed[what.shard.number]:
            self.wasted += what.end - what.begin
        else:
            self._committed[what.shard.number] = True
            self.useful += what.end - what.begin
        return [Answer(worker=what.worker, shard=what.shard, result=COMMIT)]

    def _forget(self, worker: int, now: float) -> None:
        """A worker has died, or is killed; what it did for shards that it has not committed is wasted."""
        for call in self._calls.pop(worker, ()):
            self.wasted += max(0.0, min(call.end, now) - call.begin)
        if worker in self._without_place:
            self._without_place.remove(worker)
        self._place()

    def dismiss(self, worker: int) -> None:
        self._pause()
        self._forget(worker, self._clock)
        self._resume()

    def draining(self) -> Collection[str]:
        self._pause(self._scenario.call)
        if self._clock > 10 * self._scenario.seconds:
            self._told = frozenset({DRAINED})
        self._resume()
        return self._told

    def _node(self, worker: int) -> str:
        return DRAINED if worker < self._scenario.drained else "node"

    def shortage(self) -> str:
        return "nothing"

    def close(self) -> float:
        """The end -> the time."""
        self._pause()
        self.drained = sum(self._node(worker) == DRAINED for worker in self._calls)
        for worker in list(self._calls):
            self._forget(worker, self._clock)
        return self._clock
