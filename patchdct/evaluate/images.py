"""How well each image was done, to see which to look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from patchdct.evaluate.matching import group_rows, mask_ious, match
from patchdct.evaluate.rows import Rows, read_rows

_THRESHOLD = np.array([0.5])


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageQuality:
    """How the predictions of one image agree with its objects.

    true_positives, missed, spurious: matched pairs, objects without a prediction, predictions without an object.
    mean_iou: of the matched, in 0.5..1; None where there are none. quality: panoptic quality, the sum of the IoUs of
    the matched over true_positives + missed / 2 + spurious / 2, in 0..1; None where there is neither object nor
    prediction.
    """

    image_id: int
    true_positives: int
    missed: int
    spurious: int
    mean_iou: float | None
    quality: float | None


def image_quality(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    score: float = 0.5,
    image_ids: Collection[int] | None = None,
) -> list[ImageQuality]:
    """Judge the images of a truth by COCO results, neither of which is changed; see `judge`.

    Args:
        truth: A COCO data set.
        results: COCO results.
        score: Predictions with a lower score are left out.
        image_ids: The images to judge; all of the truth's where None.

    Raises:
        DataError: As of `evaluate`.
    """
    return judge(read_rows(truth, results, image_ids), score=score)


def judge(rows: Rows, *, score: float = 0.5) -> list[ImageQuality]:
    """Judge images one by one, by ascending id.

    Predictions choose by descending score among the objects of their category, at mask IoU 0.5 or more. One that lies
    by half or more in a crowd region of its category, and matches nothing, is not counted. Quality is the panoptic
    quality of Kirillov et al., "Panoptic Segmentation" (CVPR 2019), of things, with the categories of an image taken
    together, and masks may overlap.

    Args:
        rows: The images, with their objects and predictions.
        score: Predictions with a lower score are left out.
    """
    rows = replace(rows, predictions=[row for row in rows.predictions if row["score"] >= score])
    ious: dict[int, list[float]] = defaultdict(list)
    missed: dict[int, int] = defaultdict(int)
    spurious: dict[int, int] = defaultdict(int)
    for groups in group_rows(rows).values():
        for group in groups:
            overlaps, crowd = mask_ious(group), group.crowd
            choices = match([overlaps], crowd, crowd[None], _THRESHOLD)[0, 0]
            found = np.flatnonzero((choices >= 0) & ~np.append(crowd, True)[choices])
            ious[group.image_id] += overlaps[found, choices[found]].tolist()
            missed[group.image_id] += int(np.count_nonzero(~crowd)) - len(found)
            spurious[group.image_id] += int(np.count_nonzero(choices < 0))
    return [_quality(row["id"], ious[row["id"]], missed[row["id"]], spurious[row["id"]]) for row in rows.images]


def worst(qualities: Iterable[ImageQuality], count: int) -> list[ImageQuality]:
    """The `count` images of lowest quality, lowest first, ties by id; without those that have nothing to judge."""
    judged = [one for one in qualities if one.quality is not None]
    return sorted(judged, key=lambda one: (one.quality, one.image_id))[:count]


def _quality(image_id: int, ious: list[float], missed: int, spurious: int) -> ImageQuality:
    total = len(ious) + (missed + spurious) / 2
    return ImageQuality(
        image_id=image_id,
        true_positives=len(ious),
        missed=missed,
        spurious=spurious,
        mean_iou=sum(ious) / len(ious) if ious else None,
        quality=sum(ious) / total if total else None,
    )
