"""Masks as RLE, against pycocotools, and what is said of strings that are none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as mask_api

from pipeline import masks


def encode(mask):
    return mask_api.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


@st.composite
def some_masks(draw, most=6):
    number = draw(st.integers(0, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for _ in range(number):
        height, width, scale = rng.integers(1, 12), rng.integers(1, 12), rng.integers(1, 9)
        mask = rng.random((height, width)) < rng.choice([0, 0.05, 0.5, 0.95, 1])
        found.append(np.kron(mask, np.ones((scale, rng.integers(1, 9)), bool)) > 0)
    return found


@given(some_masks())
def test_areas_and_boxes_are_those_of_pycocotools(found):
    """A wrong area or box would condemn sound runs, or pass damaged ones."""
    rles = [mask_api.encode(np.asfortranarray(mask, np.uint8)) for mask in found]
    measured = masks.measure([encode(mask) for mask in found], [mask.shape for mask in found] or np.zeros((0, 2)))
    assert measured.faults == {}
    assert measured.areas.tolist() == [int(mask.sum()) for mask in found]
    assert measured.boxes.tolist() == [mask_api.toBbox(rle).tolist() for rle in rles]


@given(some_masks())
def test_decode_is_the_inverse_of_encode(found):
    """A transposed or shifted mask would look like a mask."""
    for mask in found:
        np.testing.assert_array_equal(masks.decode(encode(mask), *mask.shape), mask)
        assert masks.area(encode(mask), *mask.shape) == mask.sum()


@given(st.lists(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12), max_size=6), st.data())
def test_any_text_is_a_mask_or_a_fault(texts, data):
    """Counts from outside must neither crash the process nor pass with an area that is not theirs."""
    sizes = [data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9))) for _ in texts]
    measured = masks.measure(texts, sizes or np.zeros((0, 2)))
    for index, (text, (height, width)) in enumerate(zip(texts, sizes, strict=True)):
        if index in measured.faults:
            with pytest.raises(ValueError, match="cannot be decoded"):
                masks.decode(text, height, width)
        else:
            assert masks.decode(text, height, width).sum() == measured.areas[index]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ("", "no counts"),
        ("4" + chr(47), "character that is none"),
        ("4\u00e9", "character that is none"),
        ("4\0", "character that is none"),
        ("4P", "break off"),
        ("P" * 7 + "1", "more than 32 bits"),
        ("O", "a run of -1 pixels"),
        ("a0", "a run of 17 pixels"),
        ("44", "add up to 8 pixels, and the image has 16"),
        ("888", "add up to 24 pixels"),
    ],
)
def test_malformed_counts_are_named_and_harm_no_neighbour(counts, words):
    """One broken mask of a batch must not move the runs of the others."""
    sound = encode(np.eye(4))
    measured = masks.measure([sound, counts, sound], (4, 4))
    assert list(measured.faults) == [1]
    assert words in measured.faults[1]
    assert measured.areas.tolist() == [4, 0, 4]
    assert measured.boxes.tolist() == [[0, 0, 4, 4], [0, 0, 0, 0], [0, 0, 4, 4]]
    with pytest.raises(ValueError, match=words):
        masks.check(counts, 4, 4)


def test_a_size_without_pixels_is_a_fault():
    """A row with height 0 must be reported, not divide by zero."""
    measured = masks.measure(["0", encode(np.eye(2))], [(0, 4), (2, 2)])
    assert list(measured.faults) == [0]
    assert "0 x 4" in measured.faults[0]


def test_a_large_image_is_measured_exactly():
    """A run over many columns, or an area beyond 32 bits, must not wrap around."""
    height, width = 70_000, 70_000
    assert masks.measure(["0" + _number(height * width)], (height, width)).areas.tolist() == [height * width]
    assert masks.box("5" + _number(height) + _number(height * width - height - 5), height, width) == (0, 0, 2, height)


def _number(value):
    """A run length as COCO writes the first three."""
    text = ""
    while True:
        group, value = value & 31, value >> 5
        if value == 0 and not group & 16:
            return text + chr(48 + group)
        text += chr(48 + group + 32)


def test_iou_is_that_of_the_pixels():
    """A transposed table of overlaps would match the wrong masks."""
    left, right, far = np.zeros((3, 4, 6), bool)
    left[:, :4], right[:, 2:], far[3, 5] = True, True, True
    table = masks.iou([encode(left)], [encode(left), encode(right), encode(far)], 4, 6)
    np.testing.assert_allclose(table, [[1, 8 / 24, 0]])
    assert masks.iou([], [encode(left)], 4, 6).shape == (0, 1)
