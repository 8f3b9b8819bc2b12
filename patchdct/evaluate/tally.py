"""The matches of images that come some at a time, kept as what COCO's curves need: some fifty bytes a prediction.

Matching is within an image and a category; only the ranking, at the end, is over all images. Legend of shapes: as in
`matching`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from patchdct.evaluate.boundary import boundary_ious
from patchdct.evaluate.matching import (
    IOU_THRESHOLDS,
    RECALLS,
    SIZES,
    Flags,
    Floats,
    Group,
    box_ious,
    group_rows,
    mask_ious,
    match,
    outside,
)
from patchdct.evaluate.rows import Row, Rows

Kind: TypeAlias = Literal["mask", "box", "boundary"]
_Bytes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """What COCOeval accumulates; -1 where a category has no annotation to find.

    precision: float64 [T, R, K, A], the best precision at this recall or a higher one; 0 where it is not reached.
    scores: float64 [T, R, K, A], the score down to which predictions count for that recall; 0 where it is not reached.
    recall: float64 [T, K, A], the highest recall.
    """

    precision: Floats
    scores: Floats
    recall: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The predictions of a category at one IoU in one size class, by descending score, ties by image id.

    scores: float64 [N]. right, wrong: bool [N]; neither, where the prediction is excused. wanted: how many annotations
    there are to find.
    """

    scores: Floats
    right: Flags
    wrong: Flags
    wanted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What some images have of one category: N predictions, those of an image together and by descending score.

    image_ids: int64 [N]. scores: float64 [N]. flags: by kind, uint8 [N, A, 2 T / 8], whether right and whether wrong,
    a bit each, at every threshold. wanted: int64 [A], annotations to find.
    """

    image_ids: npt.NDArray[np.int64]
    scores: Floats
    flags: Mapping[Kind, _Bytes]
    wanted: npt.NDArray[np.int64]


class Tally:
    """Takes images, some at a time and in any order, and gives the curves over all of them."""

    def __init__(self, categories: Collection[int], kinds: Collection[Kind], max_detections: int) -> None:
        """Begin without images.

        Args:
            categories: The ids, ascending.
            kinds: What is measured.
            max_detections: How many predictions of one image and category count, the best scored first.
        """
        self._kinds, self._max_detections = kinds, max_detections
        self._parts: dict[int, list[_Part]] = {category_id: [] for category_id in categories}

    def add(self, rows: Rows) -> None:
        """Match further images, with all predictions on them."""
        for category_id, groups in group_rows(rows, self._max_detections).items():
            if groups:
                self._parts[category_id].append(_part(groups, self._kinds))

    def curves(self, kind: Kind) -> Curves:
        """The curves of all categories, sizes and IoU thresholds, as COCOeval's `accumulate` has them."""
        shape = (len(IOU_THRESHOLDS), len(RECALLS), len(self._parts), len(SIZES))
        precision, scores, recall = np.full(shape, -1.0), np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
        for k, parts in enumerate(self._parts.values()):
            order = _order(parts) if parts else np.empty(0, np.int64)
            for a in range(len(SIZES)):
                for t, ranked in enumerate(_ranked(parts, order, kind, a)):
                    precision[t, :, k, a], scores[t, :, k, a], recall[t, k, a] = _curve(ranked)
        return Curves(precision=precision, scores=scores, recall=recall)

    def ranked_masks(self, category_id: int) -> Ranked:
        """The masks of a category that has something to find, at the lowest IoU threshold, of all sizes."""
        parts = self._parts[category_id]
        return next(_ranked(parts, _order(parts), "mask", 0))


def _part(groups: Sequence[Group], kinds: Collection[Kind]) -> _Part:
    """The groups of a category, matched."""
    annotations = [row for one in groups for row in one.annotations]
    predictions = [row for one in groups for row in one.predictions]
    crowd = np.array([row["iscrowd"] for row in annotations], bool)
    excused = crowd | outside([row["area"] for row in annotations])
    ious = _ious(groups, kinds)
    return _Part(
        image_ids=np.repeat([one.image_id for one in groups], [len(one.predictions) for one in groups]),
        scores=np.array([row["score"] for row in predictions], np.float64),
        flags={kind: _flags(ious[kind], crowd, excused, _areas(predictions, kind)) for kind in kinds},
        wanted=np.count_nonzero(~excused, axis=1),
    )


def _ious(groups: Sequence[Group], kinds: Collection[Kind]) -> dict[Kind, list[Floats]]:
    """The IoUs of each group, by kind."""
    ious: dict[Kind, list[Floats]] = {}
    if "box" in kinds:
        ious["box"] = [box_ious(one) for one in groups]
    if "mask" in kinds or "boundary" in kinds:
        ious["mask"] = [mask_ious(one) for one in groups]
    if "boundary" in kinds:
        ious["boundary"] = [boundary_ious(one, overlaps) for one, overlaps in zip(groups, ious["mask"], strict=True)]
    return ious


def _areas(predictions: Sequence[Row], kind: Kind) -> list[float]:
    """What decides to which size class an unmatched prediction belongs: its own area, of mask or of box."""
    return [row["bbox"][2] * row["bbox"][3] if kind == "box" else row["area"] for row in predictions]


def _flags(ious: Sequence[Floats], crowd: Flags, excused: Flags, areas: Sequence[float]) -> _Bytes:
    """Which predictions of some groups are right and which are wrong, as in `_Part`."""
    matches = match(ious, crowd, excused, IOU_THRESHOLDS)  # [A, T, N]
    excuses = np.pad(excused, ((0, 0), (0, 1)))  # where -1 reads
    right = (matches >= 0) & ~np.stack([one[taken] for one, taken in zip(excuses, matches, strict=True)])
    # An unmatched prediction counts as wrong in its own size class only.
    wrong = (matches < 0) & ~outside(areas)[:, None]
    return np.packbits(np.concatenate([right, wrong], axis=1), axis=1, bitorder="little").transpose(2, 0, 1).copy()


def _order(parts: Sequence[_Part]) -> npt.NDArray[np.int64]:
    """The ranking of all predictions: by descending score, ties by image id, those of one image as they are."""
    return np.lexsort(
        (np.concatenate([one.image_ids for one in parts]), -np.concatenate([one.scores for one in parts]))
    )


def _ranked(parts: Sequence[_Part], order: npt.NDArray[np.int64], kind: Kind, a: int) -> Iterator[Ranked]:
    """The predictions of a category in one size class, at each threshold; nothing where there is nothing to find."""
    wanted = sum(int(one.wanted[a]) for one in parts)
    if not wanted:
        return
    scores = np.concatenate([one.scores for one in parts])[order]
    flags = np.concatenate([one.flags[kind][:, a] for one in parts])[order]
    for t in range(len(IOU_THRESHOLDS)):
        right, wrong = (flags[:, bit // 8] >> bit % 8 & 1 != 0 for bit in (t, t + len(IOU_THRESHOLDS)))
        yield Ranked(scores=scores, right=right, wrong=wrong, wanted=wanted)


def _curve(ranked: Ranked) -> tuple[Floats, Floats, float]:
    """One category, size and threshold -> precision [R], scores [R], the highest recall.

    Precision is highest, and recall rises, where a prediction is right: the others need no place on the curve.
    """
    hits = np.flatnonzero(ranked.right)
    right = np.arange(1, len(hits) + 1)
    recall = right / ranked.wanted
    precision = right / (right + np.cumsum(ranked.wrong)[hits] + np.spacing(1))
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)  # the best from here on
    reached = np.searchsorted(recall, RECALLS)  # and zeros for the levels that are not
    places = np.append(hits, len(ranked.scores))[reached]
    places[0] = 0  # no recall at all is reached by the first prediction, right or wrong
    return envelope[reached], np.append(ranked.scores, 0)[places], recall[-1] if len(hits) else 0.0
