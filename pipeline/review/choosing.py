"""Which images of a run people should look at: one pass in memory that the budget bounds.

A mask is as doubtful as it is likely to be wrong: 1 - `probability` where the labels are looked at through a
calibration, else 1 - `predicted_iou`, else 1 - score; without a calibration, which knows them, each flag (a duplicate,
in pieces, box and mask disagree) takes half of what the mask was good for. The most doubtful mask of an image counts
whole, the next one half, the one after that a quarter and so on.

The worst image comes first. With each quarter of the queue that a class, or a shard, has already, its further images
count half as bad; the class of an image is that of its most doubtful mask.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.calibration import PREDICTED_IOU, PROBABILITY
from pipeline.records import ImageLabels, Instances

RULE = (
    "The worst image comes first: its most doubtful mask counts whole, the next one half, and so on. With each quarter "
    "of the queue that a class or a shard has already, its further images count half as bad."
)

#: Of the queue; see RULE.
_PART = 4
#: Candidates that are kept for each image of the queue, whatever their class.
_KEPT = 4
#: When a mask is taken for a duplicate of another one, and when its box for that of something else.
_DUPLICATE, _BOX = 0.7, 0.7
#: Masks of an image that are named as reasons.
_NAMED = 3

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a mask is doubtful. index: its place among the masks of the row. doubt: 0..1. words: for people."""

    index: int
    category_id: int
    doubt: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An image that may be looked at.

    badness: 0..2. masks: how many it has. errors: how many of them are wrong by the calibration; None without one.
    reasons: its most doubtful masks, the worst first. lot: decides between equals.
    """

    badness: float
    lot: int
    shard_id: str
    key: str
    image_id: int
    masks: int
    errors: float | None
    reasons: tuple[Reason, ...] = field(compare=False)

    @property
    def category_id(self) -> int:
        """The class that it stands for."""
        return self.reasons[0].category_id


class Chooser:
    """Takes the rows of a run, those of a shard together, and keeps some candidates for each image of the queue.

    images, masks: what was taken. passed: images that people have corrected already. errors: how many of the masks are
    wrong by the calibration; None without one.
    """

    def __init__(self, budget: int, *, again: bool = False) -> None:
        """`budget`: of the queue, in images. `again`: with images that people have corrected."""
        self._budget, self._again = budget, again
        self._quota = -(-budget // _PART)
        self._all: list[tuple[float, int, Candidate]] = []
        self._classes: defaultdict[int, list[tuple[float, int, Candidate]]] = defaultdict(list)
        self._shard: list[tuple[float, int, Candidate]] = []
        self._shard_id = ""
        self.images = self.masks = self.passed = 0
        self.errors: float | None = None

    def add(self, shard_id: str, row: ImageLabels) -> None:
        """Take a row; quarantined ones and those without masks have nothing to look at."""
        if shard_id != self._shard_id:
            self._end_shard()
            self._shard_id = shard_id
        if not len(row.instances):
            return
        found = candidate(shard_id, row)
        self.images += 1
        self.masks += found.masks
        if found.errors is not None:
            self.errors = (self.errors or 0.0) + found.errors
        if row.corrected and not self._again:
            self.passed += 1
            return
        _keep(self._shard, self._budget, found)

    def _end_shard(self) -> None:
        for _, _, found in self._shard:
            _keep(self._all, _KEPT * self._budget, found)
            _keep(self._classes[found.category_id], self._quota, found)
        self._shard = []

    def chosen(self) -> list[Candidate]:
        """The queue, the first to be looked at first."""
        self._end_shard()
        heaps = [self._all, *self._classes.values()]
        pool = {(one.shard_id, one.key): one for heap in heaps for _, _, one in heap}
        return in_turn(list(pool.values()), self._budget)


def in_turn(candidates: Sequence[Candidate], budget: int) -> list[Candidate]:
    """At most `budget` of the candidates, by RULE."""
    quota = -(-budget // _PART)
    classes: Counter[int] = Counter()
    shards: Counter[str] = Counter()

    def value(one: Candidate) -> float:
        halves: int = classes[one.category_id] // quota + shards[one.shard_id] // quota
        return float(one.badness * 0.5**halves)

    heap = [(-one.badness, one.lot, number) for number, one in enumerate(candidates)]
    heapq.heapify(heap)
    queue: list[Candidate] = []
    while heap and len(queue) < budget:
        before, lot, number = heapq.heappop(heap)
        one = candidates[number]
        if (now := -value(one)) > before:  # others of its kind came first: values only fall
            heapq.heappush(heap, (now, lot, number))
            continue
        queue.append(one)
        classes[one.category_id] += 1
        shards[one.shard_id] += 1
    return queue


def candidate(shard_id: str, row: ImageLabels) -> Candidate:
    """What there is to doubt in an image, which has masks."""
    doubts, words = doubt(row.instances)
    order = np.argsort(-doubts, kind="stable")
    ranked = doubts[order]
    probability = row.instances.quality.get(PROBABILITY)
    return Candidate(
        badness=float((ranked * 0.5 ** np.arange(len(ranked))).sum()),
        lot=_lot(shard_id, row.key),
        shard_id=shard_id,
        key=row.key,
        image_id=row.image_id,
        masks=len(row.instances),
        errors=None if probability is None else float(np.nansum(1 - probability, dtype=np.float64)),
        reasons=tuple(
            Reason(
                index=index,
                category_id=int(row.instances.category_ids[index]),
                doubt=round(float(doubts[index]), 6),
                words=words[index],
            )
            for index in order[:_NAMED].tolist()
        ),
    )


def doubt(instances: Instances) -> tuple[_Floats, list[str]]:
    """How doubtful each of N masks is, float64 [N] in 0..1, and why, in words."""
    good = instances.scores.astype(np.float64)
    kinds = np.full(len(instances), "score", object)
    for name in (PREDICTED_IOU, PROBABILITY):
        values = instances.quality.get(name, instances.unknown())
        known = ~np.isnan(values)
        good, kinds = np.where(known, values, good), np.where(known, name, kinds)
    duplicate, fragments, box = (
        instances.quality.get(name, instances.unknown()) for name in ("duplicate_iou", "fragments", "box_iou")
    )
    # What is not known is NaN, and no comparison with it holds.
    flags = {"duplicate": duplicate >= _DUPLICATE, "in pieces": fragments >= 2, "box and mask disagree": box < _BOX}
    uncalibrated = kinds != PROBABILITY
    words = [f"{str(kind).replace('_', ' ')} {value:.2f}" for kind, value in zip(kinds, good, strict=True)]
    for name, raised in flags.items():
        good = np.where(raised & uncalibrated, good / 2, good)
        words = [f"{said}, {name}" if flag else said for said, flag in zip(words, raised, strict=True)]
    return (1 - good).clip(0, 1), words


def _keep(heap: list[tuple[float, int, Candidate]], size: int, found: Candidate) -> None:
    """Keep the worst `size`."""
    entry = (found.badness, -found.lot, found)
    if len(heap) < size:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _lot(shard_id: str, key: str) -> int:
    """A number that is as good as random, and always the same for an image."""
    digest = hashlib.blake2b(f"{shard_id}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
