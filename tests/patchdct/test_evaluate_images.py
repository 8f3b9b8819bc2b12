"""The quality of single images."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_api

from patchdct.evaluate import ImageQuality, image_quality, worst
from tests.patchdct.evaluated import accumulated, block, nasty

SIDE = 100


def an_object(image_id: int, *place: int, category_id: int = 1, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "segmentation": block(SIDE, *place), **more}


TRUTH: dict[str, Any] = {
    "images": [{"id": i, "height": SIDE, "width": SIDE} for i in (3, 1, 2, 5, 4)],
    "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    "annotations": [
        an_object(1, 0, 0, 10, 10),
        an_object(1, 20, 0, 10, 10, category_id=2),
        an_object(1, 40, 0, 10, 10),
        an_object(2, 0, 0, 10, 10),
        an_object(3, 0, 0, 50, 50, iscrowd=1),
        an_object(3, 60, 0, 10, 10),
    ],
}


def quality(number: int, *results: dict[str, Any], **settings: float) -> ImageQuality:
    """The quality of one image of TRUTH."""
    return {one.image_id: one for one in image_quality(TRUTH, results, **settings)}[number]


def test_counts_and_quality_of_an_image() -> None:
    """A wrong denominator, or a match across categories, would put the wrong images before the user's eyes."""
    found = quality(
        1,
        an_object(1, 0, 0, 10, 8, score=0.9),  # IoU 0.8
        an_object(1, 20, 0, 10, 10, score=0.9),  # of the other category
        an_object(1, 40, 0, 10, 10, score=0.5),
        an_object(1, 80, 0, 10, 10, score=0.49),  # too low
    )

    assert (found.true_positives, found.missed, found.spurious) == (2, 1, 1)
    assert found.mean_iou == pytest.approx(0.9)
    assert found.quality == pytest.approx(1.8 / 3)


def test_the_better_scored_prediction_takes_the_object() -> None:
    """Two predictions of one object are one too many, and it is the less certain one that is spurious."""
    better, worse = an_object(2, 0, 0, 10, 6, score=0.8), an_object(2, 0, 0, 10, 10, score=0.7)

    found = quality(2, worse, better)

    assert (found.true_positives, found.missed, found.spurious) == (1, 0, 1)
    assert found.mean_iou == pytest.approx(0.6)


def test_predictions_in_a_crowd_are_not_counted() -> None:
    """In a crowd nobody told the objects apart, so that predictions there are neither right nor wrong."""
    inside = [an_object(3, 5 * i, 5, 20, 5, score=0.9) for i in range(3)]
    beside = an_object(3, 0, 40, 20, 30, score=0.9)  # one third of it inside

    found = quality(3, *inside)
    assert (found.true_positives, found.missed, found.spurious, found.quality) == (0, 1, 0, 0)
    assert quality(3, beside).spurious == 1


def test_the_score_decides_who_counts() -> None:
    """The report shows what a user would keep, at the score that the user names."""
    result = an_object(2, 0, 0, 10, 10, score=0.3)

    assert quality(2, result).quality == 0
    assert quality(2, result, score=0.3).quality == 1


def test_the_worst_come_first_and_empty_images_not_at_all() -> None:
    """Images that are right to be empty would fill the page where the failures should be."""
    results = [an_object(1, 0, 0, 10, 10, score=0.9), an_object(5, 0, 0, 9, 9, score=0.9)]

    qualities = image_quality(TRUTH, results)

    assert [one.image_id for one in qualities] == [1, 2, 3, 4, 5]
    assert (qualities[3].quality, qualities[3].mean_iou, qualities[1].mean_iou) == (None, None, None)
    assert [one.image_id for one in worst(reversed(qualities), 9)] == [2, 3, 5, 1]
    assert [one.image_id for one in worst(qualities, 2)] == [2, 3]
    assert worst(qualities, 0) == []


def test_images_that_were_never_labelled_are_left_out() -> None:
    """They would all be the worst."""
    assert [one.image_id for one in image_quality(TRUTH, [], image_ids=[2, 1])] == [1, 2]


@pytest.mark.parametrize("seed", [4, 6, 7])
def test_matches_are_those_of_pycocotools(seed: int) -> None:
    """Ties, crowds and overlaps decide who is matched, and the AP beside the images counts by COCO's rules."""
    truth, results = nasty(seed, images=8)
    for row in truth["annotations"]:
        row.pop("area", None)
    before = copy.deepcopy((truth, results))

    qualities = image_quality(truth, results, score=0.3)

    kept = [row for row in results if row["score"] >= 0.3]
    evaluator = accumulated(truth, kept, "segm")
    counted = {row["id"]: [0, 0, 0, 0.0] for row in truth["images"]}
    for one in evaluator.evalImgs:
        if one is None or one["aRng"] != evaluator.params.areaRng[0]:
            continue
        ignored, matches = one["dtIgnore"][0], one["dtMatches"][0].astype(int)
        right = np.flatnonzero((matches > 0) & ~ignored)
        pairs = [(kept[one["dtIds"][d] - 1], truth["annotations"][matches[d] - 1]) for d in right]
        sums = counted[one["image_id"]]
        sums[0] += len(right)
        sums[1] += int((one["gtIgnore"] == 0).sum()) - len(right)
        sums[2] += int(((matches == 0) & ~ignored).sum())
        sums[3] += sum(float(mask_api.iou([a["segmentation"]], [b["segmentation"]], [0])[0, 0]) for a, b in pairs)
    for found in qualities:
        right, missed, spurious, ious = counted[found.image_id]
        assert (found.true_positives, found.missed, found.spurious) == (right, missed, spurious)
        assert found.mean_iou == (pytest.approx(ious / right) if right else None)
        total = right + missed / 2 + spurious / 2
        assert found.quality == (pytest.approx(ious / total) if total else None)
    assert sum(found.true_positives for found in qualities) > 5
    assert (truth, results) == before
