"""Pieces, holes, borders and duplicates of masks, by their runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as mask_api
from scipy import ndimage

from pipeline import integrity

_SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def encoded(*masks: np.ndarray) -> list[str]:
    return [mask_api.encode(np.asfortranarray(mask, np.uint8))["counts"].decode() for mask in masks]


def drawn(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


@given(st.data())
def test_like_the_pixels(data):
    """Runs that are joined, or cut off, otherwise than the pixels that they stand for."""
    height, width = data.draw(_SIZES)
    masks = data.draw(st.lists(arrays.arrays(bool, (height, width)), min_size=0, max_size=5))
    found = integrity.measure(encoded(*masks), height, width)
    for i, mask in enumerate(masks):
        assert found.fragments[i] == ndimage.label(mask, np.ones((3, 3)))[1]
        around = np.pad(~mask, 1, constant_values=True)  # what reaches the border of the image is no hole
        assert found.holes[i] == ndimage.label(around)[1] - 1
        assert found.touches_border[i] == (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
        ious = [(mask & other).sum() / max(1, (mask | other).sum()) for j, other in enumerate(masks) if j != i]
        assert found.duplicate_iou[i] == pytest.approx(max(ious, default=0.0))


def test_by_eye():
    """Corners: pixels that meet at one are one piece, and a hole does not leak through one."""
    ring = drawn("......", ".###..", ".#.##.", ".##.#.", "..###.", "......")
    corner = drawn("......", ".##...", ".##...", "...##.", "...##.", "......")
    pieces = drawn("......", ".#.#..", "......", ".#.#..", "......", ".....#")
    found = integrity.measure(encoded(ring, corner, pieces), 6, 6)
    assert found.fragments.tolist() == [1, 1, 5]
    assert found.holes.tolist() == [2, 0, 0]
    assert found.touches_border.tolist() == [False, False, True]


def test_whole_and_empty_masks():
    """Runs over several columns, an image that is one run, and masks without a pixel."""
    full, none = np.ones((5, 4), bool), np.zeros((5, 4), bool)
    found = integrity.measure(encoded(full, none, full, none), 5, 4)
    assert found.fragments.tolist() == [1, 0, 1, 0]
    assert found.holes.tolist() == [0, 0, 0, 0]
    assert found.touches_border.tolist() == [True, False, True, False]
    assert found.duplicate_iou.tolist() == [1, 0, 1, 0]
    assert len(integrity.measure([], 5, 4).holes) == 0


def test_runs_that_are_cut_in_two():
    """RLE from elsewhere may have runs of length zero, which split no mask and make no piece."""
    counts = encoded(drawn("##", "##"))[0]
    split = mask_api.frPyObjects({"size": [2, 2], "counts": [0, 1, 0, 3]}, 2, 2)["counts"].decode()
    assert split != counts
    found = integrity.measure([split, counts], 2, 2)
    assert found.fragments.tolist() == [1, 1]
    assert found.duplicate_iou.tolist() == [1, 1]


@pytest.mark.parametrize("counts", ["", "3", "~~", "9" * 9, "o" * 9, "0é", "n"])
def test_bad_counts(counts):
    """A string from outside that is read past its end, or believed."""
    with pytest.raises(ValueError, match="mask cannot be decoded"):
        integrity.measure([*encoded(drawn("##", "##")), counts], 2, 2)


def test_another_size():
    """A mask of another image, whose columns would be taken for others."""
    with pytest.raises(ValueError, match="add up to 4 pixels, and the image has 6"):
        integrity.measure(encoded(drawn("##", "##")), 2, 3)
    with pytest.raises(ValueError, match="its size is 0 x 3"):
        integrity.measure(encoded(drawn("##", "##")), 0, 3)
