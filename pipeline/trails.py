"""Where an attempt at a shard is: written before each step, once the shard has cost a worker.

    <run>/trails/<shard-id>.json    the last word of an attempt that may die without another; gone with the commit

Storage is the one channel that outlives a process, a node and a network, so the trail tells what a crash or a hang
cannot: at which image it was.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import StoreError
from pipeline.store import Store, join

Step: TypeAlias = Literal["reading", "decoding", "labeling"]

_LIMIT = 16 << 20
_SHOWN = 8  # images named in a sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """What an attempt was about to do.

    strikes: how many workers the shard had cost before this attempt. first, count: the rows of the shard, from 0.
    keys: their images, where they are known: they are not before they have been read.
    """

    strikes: int
    step: Step
    first: int
    count: int
    keys: tuple[str, ...] = ()

    @property
    def rows(self) -> range:
        """The rows of the shard."""
        return range(self.first, self.first + self.count)

    def __str__(self) -> str:
        """The step in words, from 1.

        >>> str(Trail(strikes=1, step="reading", first=16, count=8)), str(Trail(strikes=2, step="decoding", first=16,
        ...     count=1, keys=("a.jpg",)))
        ('reading the images 17 to 24 of the shard', "decoding the image 'a.jpg'")
        """
        if self.keys:
            named = ", ".join(repr(key) for key in self.keys[:_SHOWN]) + ", ..." * (len(self.keys) > _SHOWN)
            return f"{self.step} the image{'s' * (len(self.keys) > 1)} {named}"
        if self.count == 1:
            return f"{self.step} image {self.first + 1} of the shard"
        return f"{self.step} the images {self.first + 1} to {self.first + self.count} of the shard"


_trail: TypeAdapter[Trail] = TypeAdapter(Trail)


def note(store: Store, run_uri: str, shard_id: str, trail: Trail) -> None:
    """Write where an attempt is, in place of what was there."""
    store.put(_uri(run_uri, shard_id), _trail.dump_json(trail, indent=2) + b"\n")


def read(store: Store, run_uri: str, shard_id: str, *, strikes: int) -> Trail | None:
    """Where the attempt after so many strikes was; None where it is not known, since that is only a hint."""
    try:
        trail = _trail.validate_json(store.get(_uri(run_uri, shard_id), limit=_LIMIT), strict=True)
    except (StoreError, ValidationError):
        return None
    return trail if trail.strikes == strikes else None


def forget(store: Store, run_uri: str, shard_id: str) -> None:
    """Remove the trail of a shard that is done; one that stays harms nobody."""
    with suppress(StoreError):
        store.delete(_uri(run_uri, shard_id))


def _uri(run_uri: str, shard_id: str) -> str:
    return join(run_uri, "trails", f"{shard_id}.json")
