"""Masks as polygons along the edges of their pixels, and polygons as masks; both exact.

Coordinates are those of the image plane: the pixel in row r and column c is the square from (c, r) to (c + 1, r + 1).
So vertices are whole numbers, and a mask that fills its image has the corners (0, 0) and (width, height). Pixels that
touch at a corner belong together (8-connectivity), and so those of a hole do not (4-connectivity).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

from pipeline import masks, tracing

#: Vertices [P, 2] as (x, y); the last one is joined to the first.
Ring: TypeAlias = npt.NDArray[np.int32]

_NEAR = 1 << 22  # pairs of vertices whose distances are held at once


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rings:
    """The outlines of a mask: outer rings run clockwise, as one sees the image, and those of holes the other way.

    rings: by their leftmost, then topmost point. parents: by ring, the index of the outer ring around this hole; -1 for
    an outer ring.
    """

    rings: tuple[Ring, ...]
    parents: tuple[int, ...]


def trace(counts: str, height: int, width: int) -> Rings:
    """The outlines of a mask, those of holes for themselves; `fill` makes them the same mask again, pixel for pixel.

    Args:
        counts: compressed COCO RLE.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Raises:
        ValueError: the mask cannot be decoded; see `masks.check`.

    >>> ring = np.asfortranarray([[1, 1, 1], [1, 0, 1], [1, 1, 1]], np.uint8)
    >>> found = trace(mask_api.encode(ring)["counts"].decode(), 3, 3)
    >>> [one.tolist() for one in found.rings], found.parents
    ([[[3, 0], [3, 3], [0, 3], [0, 0]], [[1, 1], [1, 2], [2, 2], [2, 1]]], (-1, 0))
    """
    edges = _edges(counts, height, width)
    points, starts, firsts, owners = tracing.walk(*edges, np.zeros(len(edges[0]) // 2, np.bool_), False)
    parents: list[int] = []
    for first in firsts.tolist():
        if first % 2:  # a hole begins with the bottom of a run, and that belongs to what is around the hole
            around = int(owners[first - 1])
            parents.append(around if parents[around] < 0 else parents[around])
        else:
            parents.append(-1)
    return Rings(rings=_split(points, starts), parents=tuple(parents))


def outlines(counts: str, height: int, width: int, *, centres: bool = False) -> tuple[Ring, ...]:
    """A polygon for each connected piece of a mask; its holes are joined to it by bridges without width.

    A bridge is gone over once in either direction, so the polygon keeps its holes wherever it is filled by the even-odd
    or by the non-zero rule. Together the polygons are the mask, pixel for pixel, both for `fill` and for COCO's
    rasteriser (`pycocotools.mask.frPyObjects` and `merge`).

    Args:
        counts: compressed COCO RLE.
        height: of the image, in pixels.
        width: of the image, in pixels.
        centres: go through the middle of the outermost pixels, given as (column, row), and not along their edges. That
            is the mask for rasterisers that draw the line as well, such as `cv2.fillPoly`. What is one pixel wide has
            no area then, and a single pixel is a single point.

    Raises:
        ValueError: the mask cannot be decoded; see `masks.check`.
    """
    edges = _edges(counts, height, width)
    bridges = np.zeros(len(edges[0]) // 2, np.bool_)
    _, _, firsts, _ = tracing.walk(*edges, bridges, False)
    bridges[firsts[firsts % 2 == 1] // 2] = True  # from the top of a hole to the top of the run above it
    points, starts, _, _ = tracing.walk(*edges, bridges, centres)
    return _split(points, starts)


def fill(rings: Sequence[npt.ArrayLike], height: int, width: int) -> str:
    """The pixels whose centres are inside, by the even-odd rule over all rings together, as compressed COCO RLE.

    A centre on a line counts to what is right of the line, or below it. What is outside the image is cut off.

    Args:
        rings: polygons and holes [P, 2] as (x, y), with any real vertices. Fewer than three of them hold nothing.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Raises:
        ValueError: a vertex is no pair of finite numbers.
    """
    points = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in rings]
    if not all(np.isfinite(one).all() for one in points):
        raise ValueError("A polygon has a vertex that is not finite.")
    ends = [np.stack([one, np.roll(one, -1, axis=0)]) for one in points if len(one)]
    crossings = _crossings(np.concatenate(ends, axis=1), height, width) if ends else np.zeros(0, np.int64)
    places, times = np.unique(crossings, return_counts=True)
    places = places[(times % 2 == 1) & (places < height * width)]
    runs = np.diff(places, prepend=0, append=height * width)
    encoded = mask_api.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return str(encoded["counts"], "ascii")


def join(pieces: Sequence[Ring], worth: Sequence[float] | None = None) -> Ring:
    """One polygon of several, for formats that know no more: bridges join the vertices that are nearest to each other.

    A bridge has no width, but what draws the lines of a polygon draws it as well.

    Args:
        pieces: polygons.
        worth: of each piece, in pixels; the one that is worth most comes first, and one that is worth no more than the
            bridge to it, in pixels, is left out. None: all are joined.
    """
    if not pieces:
        return np.zeros((0, 2), np.int32)
    values = [math.inf] * len(pieces) if worth is None else list(worth)
    first, *others = sorted(range(len(pieces)), key=lambda index: -values[index])
    joined = pieces[first]
    for index in others:
        here, there, gap = _nearest(joined, pieces[index])
        if gap - 1 < values[index]:
            around = np.roll(pieces[index], -there, axis=0)
            joined = np.concatenate([joined[: here + 1], around, around[:1], joined[here:]])
    return joined


def area(ring: Ring) -> float:
    """What a polygon encloses, in pixels; negative where it runs counterclockwise, as one sees the image."""
    x, y = ring.astype(np.int64).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def spans(counts: str, height: int, width: int) -> npt.NDArray[np.int32]:
    """The runs of a mask [R, 3] as (column, first row, row after the last), cut where a column ends.

    Raises:
        ValueError: the mask cannot be decoded; see `masks.check`.
    """
    xs, ys = _spans(counts, height, width)
    return np.stack([xs[::2], ys[::2], ys[1::2]], axis=1)


def _spans(counts: str, height: int, width: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Column and row of the top and the bottom of each run, by turns."""
    codes = np.frombuffer(counts.encode("utf-8", "surrogatepass"), np.uint8)
    sound, xs, ys = tracing.run_ends(codes, height, width)
    if not sound:
        masks.check(counts, height, width)
        raise AssertionError("masks.check takes what cannot be traced")
    return xs, ys


def _edges(counts: str, height: int, width: int) -> tuple[npt.NDArray[Any], ...]:
    """The edges of a mask's runs: x, y, and to which edge each one is joined at its left and at its right end.

    Edge 2 r is the top of run r, from (x, y) to (x + 1, y), and edge 2 r + 1 is its bottom.
    """
    xs, ys = _spans(counts, height, width)
    left, right = tracing.join_ends(np.searchsorted(xs, np.arange(width + 1)), xs, ys)
    return xs, ys, left, right


def _split(points: npt.NDArray[Any], starts: npt.NDArray[Any]) -> tuple[Ring, ...]:
    return tuple(np.split(points, starts[1:])) if len(starts) else ()


def _crossings(ends: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.int64]:
    """Where lines [2, L, 2] cross the middle of columns: the first pixel below, counted down the columns."""
    (x0, y0), (x1, y1) = ends[0].T, ends[1].T
    begin = np.clip(np.ceil(np.minimum(x0, x1) - 0.5), 0, width).astype(np.int64)
    end = np.clip(np.ceil(np.maximum(x0, x1) - 0.5), 0, width).astype(np.int64)
    number = end - begin
    line = np.repeat(np.arange(len(number)), number)
    columns = np.arange(len(line)) - np.repeat(np.cumsum(number) - number, number) + begin[line]
    slope = (y1 - y0)[line] / (x1 - x0)[line]
    rows = np.ceil(y0[line] + (columns + 0.5 - x0[line]) * slope - 0.5)
    crossings: npt.NDArray[np.int64] = columns * height + np.clip(rows, 0, height).astype(np.int64)
    return crossings


def _nearest(first: Ring, second: Ring) -> tuple[int, int, int]:
    """The indices of the vertices of two polygons that are nearest to each other, and how far that is, in pixels."""
    best = (0, 0, np.iinfo(np.int32).max)
    step = max(1, _NEAR // len(second))
    for begin in range(0, len(first), step):
        gaps = np.abs(first[begin : begin + step, None] - second[None]).max(axis=2)
        index = int(gaps.argmin())
        if gaps.flat[index] < best[2]:
            best = (begin + index // len(second), index % len(second), int(gaps.flat[index]))
    return best
