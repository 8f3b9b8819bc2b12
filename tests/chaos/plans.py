"""What happens in a round: drawn from a seed before it begins. Who is at hand to die then, is not."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["worker", "upload", "driver", "raylet", "node", "drain", "cut", "stall", "store"]

#: Seconds from one to the next, on average. worker, driver, raylet, store: SIGKILL. upload: SIGKILL to all workers, the
#: moment that a file of one has arrived in storage. node: SIGKILL to all of it at once. drain: a notice, then SIGKILL
#: to all of it. cut: its cable is pulled, and plugged in again later. stall: its raylet stands still, so that the
#: cluster gives up a node whose worker goes on.
MEAN_S: Mapping[Kind, float] = {
    **{"worker": 2.0, "upload": 8.0, "driver": 7.0, "raylet": 15.0, "node": 30.0, "drain": 30.0, "cut": 20.0},
    **{"stall": 30.0, "store": 10.0},
}
#: How long the store stays away, a cable unplugged, a raylet still.
LASTS_S: Mapping[Kind, tuple[float, float]] = {"store": (0.0, 12.0), "cut": (3.0, 25.0), "stall": (3.0, 25.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens `at` seconds into a round, to whom `pick` (0 to 1) names of those at hand."""

    at: float
    kind: Kind
    pick: float
    lasts: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A round as it is drawn. slow: how many times longer everything takes, for the real model."""

    number: int
    seed: int
    storage: Literal["disk", "s3"]
    drivers: int
    coco: bool
    slow: float
    events: tuple[Event, ...]


def draw(
    number: int,
    seed: int,
    *,
    storage: Literal["disk", "s3"],
    kinds: Sequence[Kind],
    seconds: float,
    slow: float = 1.0,
) -> Plan:
    """Draw a round: in four of ten, two drivers work on one output."""
    rng = random.Random(f"{seed}/{number}")
    events = []
    for kind in kinds:
        at = rng.expovariate(1 / MEAN_S[kind])
        while at < seconds:
            lasts = rng.uniform(*LASTS_S[kind]) if kind in LASTS_S else 0.0
            events.append(Event(at=at * slow, kind=kind, pick=rng.random(), lasts=lasts))
            at += rng.expovariate(1 / MEAN_S[kind])
    return Plan(
        number=number,
        seed=seed,
        storage=storage,
        drivers=2 if rng.random() < 0.4 else 1,
        coco=rng.random() < 0.5,
        slow=slow,
        events=tuple(sorted(events, key=lambda event: event.at)),
    )
