"""What differs between the labels of two models."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as mask_api

from pipeline.churn import Tally, difference
from pipeline.records import Instances

SIZE = (40, 60)
CAT, DOG = 1, 2


def instances(*boxes: tuple[int, int, int, int, int]) -> Instances:
    """Rectangles (category, x, y, w, h), best score first."""
    counts, areas = [], []
    for _, x, y, w, h in boxes:
        mask = np.zeros(SIZE, np.uint8, order="F")
        mask[y : y + h, x : x + w] = 1
        counts.append(mask_api.encode(mask)["counts"].decode())
        areas.append(w * h)
    return Instances(
        category_ids=np.array([box[0] for box in boxes], np.int32),
        scores=np.linspace(1, 0.5, len(boxes), dtype=np.float32),
        boxes=np.array([box[1:] for box in boxes], np.float32).reshape(-1, 4),
        areas=np.array(areas, np.int64),
        counts=tuple(counts),
    )


OLD = instances((CAT, 0, 0, 10, 10), (CAT, 20, 0, 10, 10), (DOG, 40, 0, 10, 10), (DOG, 0, 20, 10, 10))
NEW = instances((DOG, 40, 0, 10, 7), (CAT, 0, 0, 10, 10), (DOG, 20, 0, 10, 10), (CAT, 30, 20, 10, 10))


def test_each_instance_is_told_once() -> None:
    """A mask that is counted as lost and gained, though it only moved, makes a manager stop a good model."""
    found = difference(OLD, NEW, *SIZE)
    assert [pair[:2] for pair in found.pairs] == [(0, 1), (2, 0)]
    assert [iou for _, _, iou in found.pairs] == pytest.approx([1.0, 0.7])
    assert [pair[:2] for pair in found.reclassified] == [(1, 2)]
    assert (found.lost, found.gained) == ((3,), (3,))
    assert found.size == pytest.approx(3.3)


def test_the_sums_add_up_by_class() -> None:
    """Every mask is somewhere, or a class seems to shrink that did not."""
    tally = Tally()
    tally.add(OLD, NEW, difference(OLD, NEW, *SIZE))
    tally.add(NEW, OLD, difference(NEW, OLD, *SIZE))
    classes = tally.classes()
    for one in (*classes.values(), tally.total()):
        assert one.old == one.kept + one.reshaped + one.left + one.lost
        assert one.new == one.kept + one.reshaped + one.joined + one.gained
    assert tally.total().old == 8
    cat = classes[CAT]
    assert (cat.old, cat.kept, cat.left, cat.joined, cat.lost, cat.gained) == (4, 2, 1, 1, 1, 1)
    assert cat.churn == pytest.approx(0.5)
    assert classes[DOG].mean_iou == pytest.approx(0.7)


def test_the_best_pair_goes_first() -> None:
    """Two overlapping masks: taken in the wrong order, one would have no partner."""
    old = instances((CAT, 0, 0, 10, 10), (CAT, 2, 0, 10, 10))
    new = instances((CAT, 2, 0, 10, 10), (CAT, 0, 0, 10, 10))
    assert {pair[:2] for pair in difference(old, new, *SIZE).pairs} == {(0, 1), (1, 0)}


def test_nothing_against_nothing() -> None:
    """Empty images are most of some data sets."""
    found = difference(instances(), instances(), *SIZE)
    assert (found.pairs, found.lost, found.gained, found.size) == ((), (), (), 0)
    tally = Tally()
    tally.add(instances(), instances(), found)
    assert tally.classes() == {}
    assert tally.total().churn is None
