"""Which prediction takes which annotation: the rules of COCO's evaluation, for any IoU.

Predictions of a category choose by descending score, each the free annotation of its image that it overlaps most. What
is excused (crowds, and objects out of the size in question) is chosen only where nothing else fits, and then the
prediction counts neither as right nor as wrong. Many predictions may lie in one crowd.

Legend of shapes: T IoU thresholds, R recall levels, K categories by ascending id, A size classes; D predictions and G
annotations of one image and category; N predictions of one category.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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
class Group:
    """What one image has of one category; predictions by descending score, ties in the order of the results."""

    image_id: int
    annotations: list[Row]
    predictions: list[Row]

    @property
    def crowd(self) -> Flags:
        """Which annotations are crowd regions, bool [G]."""
        return np.array([row["iscrowd"] for row in self.annotations], bool)


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


def box_ious(group: Group) -> Floats:
    """The IoU of boxes, float64 [D, G]; of a crowd, the share of the prediction inside it."""
    boxes = [[row["bbox"] for row in rows] for rows in (group.predictions, group.annotations)]
    ious = mask_api.iou(*boxes, [row["iscrowd"] for row in group.annotations])
    return np.asarray(ious, np.float64).reshape(len(group.predictions), len(group.annotations))


def outside(areas: Sequence[float]) -> Flags:
    """Which areas, in pixels, are out of each size class: bool [A, len(areas)]."""
    sizes = np.array(SIZES)
    return np.asarray((areas < sizes[:, :1]) | (areas > sizes[:, 1:]))


def match(ious: Sequence[Floats], crowd: Flags, excused: Flags, thresholds: Floats) -> npt.NDArray[np.int64]:
    """Let the predictions of some groups choose, each among the annotations of its own group.

    Args:
        ious: of each group, float64 [D, G], predictions by descending score.
        crowd: bool [all G], which annotations may be chosen more than once; all of them are excused.
        excused: bool [C, all G], which annotations are chosen only where no other fits, in each of C cases.
        thresholds: float64 [T], the least IoU of a match.

    Returns:
        int64 [C, T, all D], the index among all annotations of the one that a prediction takes, or -1.
    """
    shapes = np.array([one.shape for one in ious]).reshape(-1, 2)
    flat = np.concatenate([np.empty(0), *(one.ravel() for one in ious)])
    return _match(flat, shapes, crowd, excused, thresholds)


@njit(nogil=True, cache=True)
def _match(
    ious: Floats, shapes: npt.NDArray[np.int64], crowd: Flags, excused: Flags, thresholds: Floats
) -> npt.NDArray[np.int64]:
    matches = np.full((len(excused), len(thresholds), shapes[:, 0].sum()), -1)
    for case in range(len(excused)):
        for t in range(len(thresholds)):
            taken = np.zeros(len(crowd), np.bool_)
            first_d = first_g = start = 0
            for group in range(len(shapes)):
                count, options = shapes[group, 0], shapes[group, 1]
                for d in range(first_d, first_d + count):
                    best, choice = min(thresholds[t], 1 - 1e-10), -1
                    for excuses in (False, True):
                        if choice >= 0:
                            break
                        for g in range(options):
                            # Among equals the last wins, as in COCOeval.
                            iou, place = ious[start + g], first_g + g
                            free = crowd[place] or not taken[place]
                            if excused[case, place] == excuses and free and iou >= best:
                                best, choice = iou, place
                    if choice >= 0:
                        taken[choice] = True
                        matches[case, t, d] = choice
                    start += options
                first_d, first_g = first_d + count, first_g + options
    return matches
