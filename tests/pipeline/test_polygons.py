"""Masks as polygons: whatever the mask, its polygons are the mask again, for each rasteriser that they are made for."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as mask_api

from pipeline import masks, polygons

SIZES = st.tuples(st.integers(1, 14), st.integers(1, 14))
#: Noise has all that is awkward: single pixels, corners that touch, holes in holes, pieces at the border.
BITMAPS = SIZES.flatmap(lambda size: arrays.arrays(np.uint8, size, elements=st.integers(0, 1)))


def encode(bitmap):
    return mask_api.encode(np.asfortranarray(bitmap, np.uint8))["counts"].decode()


def decode(counts, shape):
    return masks.decode(counts, *shape).astype(np.uint8)


def by_coco(polygons, shape):
    """What pycocotools makes of polygons."""
    flat = [one.reshape(-1).astype(float).tolist() for one in polygons]
    if not flat:
        return np.zeros(shape, np.uint8)
    return mask_api.decode(mask_api.merge(mask_api.frPyObjects(flat, *shape)))


def by_opencv(polygons, shape):
    """What OpenCV makes of polygons, drawn one by one."""
    bitmap = np.zeros(shape, np.uint8)
    for one in polygons:
        cv2.fillPoly(bitmap, [one.astype(np.int32).reshape(-1, 1, 2)], 1)
    return bitmap


def area(ring):
    """Positive for a ring that runs clockwise, as one sees the image."""
    x, y = ring.astype(np.int64).T
    return (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2


@given(BITMAPS)
@settings(max_examples=400, deadline=None)
def test_rings_are_the_mask_again(bitmap):
    """A mask that comes back from a polygon one pixel larger is a correction that nobody made."""
    counts = encode(bitmap)
    found = polygons.trace(counts, *bitmap.shape)
    assert polygons.fill(found.rings, *bitmap.shape) == counts


@given(BITMAPS)
@settings(max_examples=400, deadline=None)
def test_holes_and_pieces_are_those_of_opencv(bitmap):
    """A hole that is taken for a piece of its own is filled by tools that know no holes."""
    found = polygons.trace(encode(bitmap), *bitmap.shape)
    pieces, _ = cv2.connectedComponents(bitmap, connectivity=8)
    around = np.pad(1 - bitmap, 1, constant_values=1)
    outside, _ = cv2.connectedComponents(around, connectivity=4)
    outer = [one for one, parent in zip(found.rings, found.parents, strict=True) if parent < 0]
    holes = [one for one, parent in zip(found.rings, found.parents, strict=True) if parent >= 0]
    assert (len(outer), len(holes)) == (pieces - 1, outside - 2)
    assert all(area(one) > 0 for one in outer)
    assert all(area(one) < 0 for one in holes)
    for ring, parent in zip(found.rings, found.parents, strict=True):
        if parent >= 0:
            assert found.parents[parent] < 0
            alone = decode(polygons.fill([found.rings[parent]], *bitmap.shape), bitmap.shape)
            hole = decode(polygons.fill([ring], *bitmap.shape), bitmap.shape)
            assert (alone & hole).sum() == hole.sum() > 0


@given(BITMAPS)
@settings(max_examples=400, deadline=None)
def test_polygons_with_bridges_keep_their_holes(bitmap):
    """COCO, CVAT and Label Studio know polygons without holes: what fills them must leave the holes free."""
    counts = encode(bitmap)
    found = polygons.outlines(counts, *bitmap.shape)
    assert len(found) == cv2.connectedComponents(bitmap, connectivity=8)[0] - 1
    assert (by_coco(found, bitmap.shape) == bitmap).all()
    assert polygons.fill(found, *bitmap.shape) == counts
    assert sum(decode(polygons.fill([one], *bitmap.shape), bitmap.shape).sum() for one in found) == bitmap.sum()


@given(BITMAPS)
@settings(max_examples=400, deadline=None)
def test_polygons_through_pixel_centres_are_exact_where_lines_are_drawn(bitmap):
    """OpenCV draws the outline too: along the edges of pixels it would get one more, right and below."""
    found = polygons.outlines(encode(bitmap), *bitmap.shape, centres=True)
    assert (by_opencv(found, bitmap.shape) == bitmap).all()


@given(BITMAPS)
@settings(max_examples=200, deadline=None)
def test_joined_pieces_stay_the_same_mask_without_drawn_lines(bitmap):
    """YOLO knows one polygon an instance; a piece that is left out or filled across is a wrong label."""
    counts = encode(bitmap)
    joined = polygons.join(polygons.outlines(counts, *bitmap.shape))
    assert joined.ndim == 2
    assert polygons.fill([joined], *bitmap.shape) == counts


@pytest.mark.parametrize(
    ("rows", "rings"),
    [
        (["."], []),
        (["#"], [[[1, 0], [1, 1], [0, 1], [0, 0]]]),
        (["#.", ".#"], [[[1, 0], [1, 1], [2, 1], [2, 2], [1, 2], [1, 1], [0, 1], [0, 0]]]),
        ([".#", "#."], [[[1, 1], [1, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2], [0, 1]]]),
    ],
)
def test_small_masks_have_the_rings_that_one_expects(rows, rings):
    """Vertices in the order of a rasteriser, or half a pixel off, could still come back to the same mask."""
    bitmap = np.array([[one == "#" for one in row] for row in rows], np.uint8)
    found = polygons.trace(encode(bitmap), *bitmap.shape)
    assert [ring.tolist() for ring in found.rings] == rings


def test_runs_of_no_pixels_part_nothing():
    """Encoders other than COCO's write runs of length zero, which are no border."""
    counts = mask_api.frPyObjects({"size": [6, 1], "counts": [1, 2, 0, 2, 1]}, 6, 1)["counts"].decode()
    assert [ring.tolist() for ring in polygons.trace(counts, 6, 1).rings] == [[[1, 1], [1, 5], [0, 5], [0, 1]]]


def test_polygons_of_people_are_filled_by_pixel_centres():
    """Corrections come with real vertices, partly outside the image, and with two points by a slip of the hand."""
    assert decode(polygons.fill([[(0.6, 0.6), (2.5, 0.6), (2.5, 1.6), (0.6, 1.6)]], 3, 3), (3, 3)).tolist() == [
        [0, 0, 0],
        [0, 1, 0],
        [0, 0, 0],
    ]
    assert decode(polygons.fill([[(-9, -9), (99, -9), (99, 1.5), (-9, 1.5)]], 3, 2), (3, 2)).tolist() == [
        [1, 1],
        [0, 0],
        [0, 0],
    ]
    assert decode(polygons.fill([[(0, 0), (3, 3)], []], 3, 3), (3, 3)).sum() == 0
    with pytest.raises(ValueError, match="not finite"):
        polygons.fill([[(0, 0), (np.nan, 3), (1, 1)]], 3, 3)


@given(arrays.arrays(np.float64, st.tuples(st.integers(3, 8), st.just(2)), elements=st.floats(-5, 25)))
@settings(max_examples=200, deadline=None)
def test_any_polygon_is_filled_by_the_even_odd_rule(ring):
    """A line that is counted twice where it meets the next one turns a mask inside out from there on."""
    height, width = 20, 17
    found = decode(polygons.fill([ring], height, width), (height, width))
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    near = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        between = (min(x0, x1) <= x) & (x < max(x0, x1))
        with np.errstate(all="ignore"):
            at = y0 + (x - x0) * (y1 - y0) / (x1 - x0)
        inside ^= between & (at <= y)
        near |= between & (abs(at - y) < 1e-6)
    assert ((found == inside) | near).all()


@pytest.mark.parametrize("counts", ["", "0", "zz", "P", "\u1234", "1" * 50, "ooooooooooooo0"])
def test_what_is_no_mask_is_refused(counts):
    """The strings of a file from elsewhere must not lead the tracer out of its arrays."""
    with pytest.raises(ValueError, match="cannot be decoded"):
        polygons.trace(counts, 5, 5)


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12), SIZES)
@settings(max_examples=400, deadline=None)
def test_a_string_is_traced_just_where_it_can_be_decoded(counts, size):
    """Two parsers that disagree on what a mask is refuse at export what verify called sound."""
    try:
        masks.check(counts, *size)
    except ValueError:
        with pytest.raises(ValueError, match="cannot be decoded"):
            polygons.trace(counts, *size)
    else:
        bitmap = decode(counts, size)
        assert (decode(polygons.fill(polygons.trace(counts, *size).rings, *size), size) == bitmap).all()
