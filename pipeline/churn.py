"""How the labels of two models differ in the same images: what stayed, moved, changed class, went and came. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline import masks
from pipeline.records import Instances

#: From this IoU on two masks are of the same object, and from the other on they are as good as the same mask.
SAME_OBJECT, SAME_MASK = 0.5, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How the instances of an image differ.

    pairs: (old, new, IoU) of masks of the same object and class. reclassified: the same of another class. lost, gained:
    indices of old and of new instances without a partner.
    """

    pairs: tuple[tuple[int, int, float], ...]
    reclassified: tuple[tuple[int, int, float], ...]
    lost: tuple[int, ...]
    gained: tuple[int, ...]

    @property
    def size(self) -> float:
        """How much changed, to rank images by: an instance that goes, comes or changes its class counts 1."""
        moved = sum(1 - iou for _, _, iou in self.pairs)
        return len(self.lost) + len(self.gained) + len(self.reclassified) + moved


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassChurn:
    """What became of the instances of a class.

    old, new: how many there were and are. kept: of the same mask; reshaped: of the same object; mean_iou: of both, None
    where there are none. left, joined: those that went to other classes, and came from them. lost, gained: the others.
    """

    old: int = 0
    new: int = 0
    kept: int = 0
    reshaped: int = 0
    mean_iou: float | None = None
    left: int = 0
    joined: int = 0
    lost: int = 0
    gained: int = 0

    @property
    def churn(self) -> float | None:
        """The share of instances, old and new, without a partner of their class, 0..1; None where there are none."""
        total = self.old + self.new
        return None if not total else 1 - 2 * (self.kept + self.reshaped) / total


@dataclass(slots=True)
class Tally:
    """Sums differences by class."""

    _counts: dict[int, Counter[str]] = field(default_factory=dict)
    _ious: dict[int, float] = field(default_factory=dict)

    def add(self, old: Instances, new: Instances, found: Difference) -> None:
        """Count an image."""
        for name, one in (("old", old), ("new", new)):
            self._count(name, one.category_ids.tolist())
        for first, _, iou in found.pairs:
            category = int(old.category_ids[first])
            self._count("kept" if iou >= SAME_MASK else "reshaped", [category])
            self._ious[category] = self._ious.get(category, 0.0) + iou
        self._count("left", [int(old.category_ids[first]) for first, _, _ in found.reclassified])
        self._count("joined", [int(new.category_ids[second]) for _, second, _ in found.reclassified])
        self._count("lost", [int(old.category_ids[index]) for index in found.lost])
        self._count("gained", [int(new.category_ids[index]) for index in found.gained])

    def classes(self) -> Mapping[int, ClassChurn]:
        """By category id, of those that occurred."""
        return {id_: _churn(counts, self._ious.get(id_, 0.0)) for id_, counts in sorted(self._counts.items())}

    def total(self) -> ClassChurn:
        """All classes together."""
        sums = sum(self._counts.values(), Counter())
        return _churn(sums, sum(self._ious.values()))

    def _count(self, name: str, categories: Iterable[int]) -> None:
        for category in categories:
            self._counts.setdefault(category, Counter())[name] += 1


def difference(old: Instances, new: Instances, height: int, width: int) -> Difference:
    """How the new instances of an image differ from the old ones.

    Each takes one partner at most, the pairs of highest IoU first: those of the same class, then those of another.

    Args:
        old: with masks of the image's size.
        new: the same.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    ious = masks.iou(old.counts, new.counts, height, width)
    same = old.category_ids[:, None] == new.category_ids[None]
    pairs = _partners(np.where(same, ious, 0.0))
    taken = [first for first, _, _ in pairs], [second for _, second, _ in pairs]
    rest = ious.copy()
    rest[taken[0], :] = 0.0
    rest[:, taken[1]] = 0.0
    reclassified = _partners(rest)
    gone = {first for first, _, _ in (*pairs, *reclassified)}
    come = {second for _, second, _ in (*pairs, *reclassified)}
    return Difference(
        pairs=tuple(pairs),
        reclassified=tuple(reclassified),
        lost=tuple(index for index in range(len(old)) if index not in gone),
        gained=tuple(index for index in range(len(new)) if index not in come),
    )


def _partners(ious: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[tuple[int, int, float]]:
    """Pairs of rows and columns by descending IoU, none twice, at SAME_OBJECT or more."""
    pairs: list[tuple[int, int, float]] = []
    first, second = np.nonzero(ious >= SAME_OBJECT)
    order = np.argsort(-ious[first, second], kind="stable")
    rows: set[int] = set()
    columns: set[int] = set()
    for row, column in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            pairs.append((row, column, float(ious[row, column])))
    return pairs


def _churn(counts: Counter[str], ious: float) -> ClassChurn:
    matched = counts["kept"] + counts["reshaped"]
    return ClassChurn(mean_iou=ious / matched if matched else None, **counts)
