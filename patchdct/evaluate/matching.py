"""Which prediction takes which annotation, and the curves that follow: the rules of COCO's evaluation, for any IoU.

Predictions of a category choose by descending score, each the free annotation of its image that it overlaps most. What
is excused (crowds, and objects out of the size in question) is chosen only where nothing else fits, and then the
prediction counts neither as right nor as wrong. Many predictions may lie in one crowd.

Legend of shapes: T IoU thresholds, R recall levels, K categories by ascending id, A size classes; D predictions and G
annotations of one image and category; N predictions of one category.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit
from pycocotools import mask as mask_api

from patchdct.evaluate.rows import Row, Rows

Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]

#: COCO's settings: IoU thresholds [T], recall levels [R], and the size classes [A] all, small, medium and large: the
#: least and the greatest area in pixels, both of which belong to the class.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
SIZES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))


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
class Group:
    """What one image has of one category; predictions by descending score, ties in the order of the results."""

    image_id: int
    annotations: list[Row]
    predictions: list[Row]

    @property
    def crowd(self) -> Flags:
        """Which annotations are crowd regions, bool [G]."""
        return np.array([row["iscrowd"] for row in self.annotations], bool)


Ious: TypeAlias = Callable[[Group], Floats]  # float64 [D, G]; of a crowd, the share of the prediction inside it


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The predictions of a category in one size class, by descending score, ties by image id.

    scores: float64 [N]. right, wrong: bool [T, N]; neither, where the prediction is excused. wanted: how many
    annotations there are to find.
    """

    scores: Floats
    right: Flags
    wrong: Flags
    wanted: int


def group_rows(rows: Rows, max_detections: int | None = None) -> dict[int, list[Group]]:
    """The groups of each category, both by ascending id, with at most `max_detections` predictions each."""
    annotations: dict[tuple[int, int], list[Row]] = defaultdict(list)
    predictions: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows.annotations:
        annotations[row["category_id"], row["image_id"]].append(row)
    for row in rows.predictions:
        predictions[row["category_id"], row["image_id"]].append(row)
    groups: dict[int, list[Group]] = {category_id: [] for category_id in rows.categories}
    for place in sorted(annotations.keys() | predictions.keys()):
        category_id, image_id = place
        best = sorted(predictions.get(place, []), key=lambda row: -row["score"])[:max_detections]
        groups[category_id].append(Group(image_id=image_id, annotations=annotations.get(place, []), predictions=best))
    return groups


def mask_ious(group: Group) -> Floats:
    """The IoU of masks, float64 [D, G]; of a crowd, the share of the prediction inside it."""
    masks = [[row["segmentation"] for row in rows] for rows in (group.predictions, group.annotations)]
    ious = mask_api.iou(*masks, [row["iscrowd"] for row in group.annotations])
    return np.asarray(ious, np.float64).reshape(len(group.predictions), len(group.annotations))


def accumulate(rows: Rows, ious: Ious, max_detections: int) -> Curves:
    """The curves of all categories, sizes and IoU thresholds, as COCOeval's `evaluate` and `accumulate` give them."""
    shape = (len(IOU_THRESHOLDS), len(RECALLS), len(rows.categories), len(SIZES))
    precision, scores, recall = np.full(shape, -1.0), np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
    for k, groups in enumerate(group_rows(rows, max_detections).values()):
        overlaps = [ious(one) for one in groups]
        for a, size in enumerate(SIZES):
            ranked = rank(groups, overlaps, IOU_THRESHOLDS, size)
            if ranked.wanted:
                precision[..., k, a], scores[..., k, a], recall[:, k, a] = _curve(ranked)
    return Curves(precision=precision, scores=scores, recall=recall)


def rank(
    groups: Sequence[Group], ious: Sequence[Floats], thresholds: Floats, size: tuple[float, float] = SIZES[0]
) -> Ranked:
    """Match the groups of a category, given their IoUs, and rank its predictions."""
    annotations = [row for one in groups for row in one.annotations]
    predictions = [row for one in groups for row in one.predictions]
    crowd = np.array([row["iscrowd"] for row in annotations], bool)
    excused = crowd | _outside(annotations, size)
    matches = np.full((len(thresholds), len(predictions)), -1)
    d = g = 0
    for overlap in ious:
        next_d, next_g = d + overlap.shape[0], g + overlap.shape[1]
        choices = match(overlap, crowd[g:next_g], excused[g:next_g], thresholds)
        matches[:, d:next_d] = np.where(choices < 0, -1, choices + g)
        d, g = next_d, next_g
    scores = np.array([row["score"] for row in predictions], np.float64)
    order = np.argsort(-scores, kind="stable")
    right = (matches >= 0) & ~np.append(excused, False)[matches]  # -1 reads the last
    # An unmatched prediction counts as wrong in its own size class only.
    wrong = (matches < 0) & ~_outside(predictions, size)
    return Ranked(
        scores=scores[order],
        right=right[:, order],
        wrong=wrong[:, order],
        wanted=int(np.count_nonzero(~excused)),
    )


def match(ious: Floats, crowd: Flags, excused: Flags, thresholds: Floats) -> npt.NDArray[np.int64]:
    """Let predictions choose.

    Args:
        ious: float64 [D, G], predictions by descending score.
        crowd: bool [G], which annotations may be chosen more than once; all of them are excused.
        excused: bool [G], which annotations are chosen only where no other fits.
        thresholds: float64 [T], the least IoU of a match.

    Returns:
        int64 [T, D], the index of the annotation that a prediction takes, or -1.
    """
    return _match(np.ascontiguousarray(ious), crowd, excused, thresholds)


@njit(nogil=True, cache=True)
def _match(ious: Floats, crowd: Flags, excused: Flags, thresholds: Floats) -> npt.NDArray[np.int64]:
    count, options = ious.shape
    matches = np.full((len(thresholds), count), -1)
    for t in range(len(thresholds)):
        taken = np.zeros(options, np.bool_)
        for d in range(count):
            best, choice = min(thresholds[t], 1 - 1e-10), -1
            for excuses in (False, True):
                if choice >= 0:
                    break
                for g in range(options):
                    # Among equals the last wins, as in COCOeval.
                    if excused[g] == excuses and (crowd[g] or not taken[g]) and ious[d, g] >= best:
                        best, choice = ious[d, g], g
            if choice >= 0:
                taken[choice] = True
                matches[t, d] = choice
    return matches


def _outside(rows: Sequence[Row], size: tuple[float, float]) -> Flags:
    areas = np.array([row["area"] for row in rows], np.float64)
    return (areas < size[0]) | (areas > size[1])


def _curve(ranked: Ranked) -> tuple[Floats, Floats, Floats]:
    """One category and size -> precision [T, R], scores [T, R], recall [T]."""
    right, wrong = np.cumsum(ranked.right, axis=1), np.cumsum(ranked.wrong, axis=1)
    recall = right / ranked.wanted
    precision = right / (right + wrong + np.spacing(1))
    # The best from here on; and zeros for the levels that are not reached.
    envelope = np.pad(np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1], ((0, 0), (0, 1)))
    reached = np.stack([np.searchsorted(one, RECALLS) for one in recall])
    highest = recall[:, -1] if recall.size else np.zeros(len(recall))
    return np.take_along_axis(envelope, reached, axis=1), np.append(ranked.scores, 0)[reached], highest
