"""Which images of a run are shown: the worst, and an even sample of the rest, found in one pass in bounded memory."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.records import Commit, ImageLabels, Instances

#: Masks from this score on are those that one would use; what scores less is doubtful by its score alone.
USABLE = 0.5

#: Of the images shown, the share that are the worst of the run.
_WORST = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Images of one shard to be shown. worst: by key, whether it is among the worst of the run or from the sample."""

    commit: Commit
    worst: Mapping[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class _Candidate:
    """An image. Of two, the one with the lesser `stays` goes first. place: of its shard in the run."""

    stays: tuple[float, int]
    place: int
    key: str
    commit: Commit = field(compare=False)

    @property
    def image(self) -> tuple[int, str]:
        return self.place, self.key


class Chooser:
    """Takes all rows of a run, and keeps at most `1.5 * limit` of their keys.

    The choice depends on the rows alone: half of it are the images with the worst masks, and the others are drawn by a
    hash of shard and key, each of those that are not among the worst with the same chance.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: how many images are chosen, if there are so many."""
        self._limit = limit
        self._worst: list[_Candidate] = []
        self._sample: list[_Candidate] = []
        self._shards = 0
        self._shard_id = ""
        self.images = self.masks = self.labelled = self.usable = 0

    def add(self, commit: Commit, row: ImageLabels) -> None:
        """Take a row; those of a shard come together."""
        if commit.shard_id != self._shard_id:
            self._shard_id, self._shards = commit.shard_id, self._shards + 1
        scores = row.instances.scores
        self.images += 1
        self.masks += len(row.instances)
        self.labelled += len(scores) > 0
        self.usable += bool((scores >= USABLE).any())
        lot, place = _lot(commit.shard_id, row.key), self._shards
        if len(scores):
            bad = _Candidate(stays=(-worst_value(row.instances), -lot), place=place, key=row.key, commit=commit)
            _keep(self._worst, math.ceil(self._limit * _WORST), bad)
        _keep(self._sample, self._limit, _Candidate(stays=(0.0, -lot), place=place, key=row.key, commit=commit))

    def chosen(self) -> Iterator[Chosen]:
        """What was chosen, by shard, in the order of the run."""
        worst = {one.image: one for one in self._worst}
        rest = (one for one in sorted(self._sample, reverse=True) if one.image not in worst)
        sample = [one for one, _ in zip(rest, range(self._limit - len(worst)), strict=False)]
        found: dict[int, tuple[Commit, dict[str, bool]]] = {}
        for one in sorted([*worst.values(), *sample], key=lambda one: one.image):
            found.setdefault(one.place, (one.commit, {}))[1][one.key] = one.image in worst
        for commit, keys in found.values():
            yield Chosen(commit=commit, worst=keys)


def worst_value(instances: Instances) -> float:
    """How bad the worst mask of an image is, the less the worse: the least `predicted_iou`, or score where it has none.

    Masks that score 0.5 or more count; where there are none, the best scored one.
    """
    scores = instances.scores
    values = instances.quality.get("predicted_iou", scores)
    values = np.where(np.isnan(values), scores, values)
    counted = scores >= USABLE
    return float(values[counted].min() if counted.any() else values[scores.argmax()])


def _keep(heap: list[_Candidate], size: int, candidate: _Candidate) -> None:
    """Keep the `size` that stay longest."""
    if len(heap) < size:
        heapq.heappush(heap, candidate)
    elif heap:
        heapq.heappushpop(heap, candidate)


def _lot(shard_id: str, key: str) -> int:
    """A number that is as good as random, and always the same for an image."""
    digest = hashlib.blake2b(f"{shard_id}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
