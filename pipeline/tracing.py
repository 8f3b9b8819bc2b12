"""How `polygons` goes along the runs of a mask; compiled, without a pixel being decoded.

Each run, down a column, has a top and a bottom edge one pixel long: edge 2 r is the top of run r, from (x, y) to
(x + 1, y), and edge 2 r + 1 its bottom. On each line between two columns, the end points of edges are joined in pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_compiled: Any = njit(nogil=True, cache=True)


@_compiled  # type: ignore[untyped-decorator]
def run_ends(codes: Any, height: int, width: int) -> Any:
    """Columns and rows where the runs of the mask begin and end; runs are cut where a column ends."""
    ends = np.empty(len(codes) + 1, np.int64)  # of runs of equal pixels, counted down the columns
    number = at = 0
    place = np.int64(0)
    older, old = np.int64(0), np.int64(0)
    while at < len(codes):
        value, shift, more = np.int64(0), 0, True
        while more:
            if at == len(codes) or not 48 <= codes[at] < 112 or shift > 30:
                return False, np.empty(0, np.int32), np.empty(0, np.int32)
            group = np.int64(codes[at]) - 48
            value |= (group & 31) << shift
            shift += 5
            more = group & 32 != 0
            if not more and group & 16:
                value -= np.int64(1) << shift
            at += 1
        value += older if number > 2 else 0
        if value < 0 or value > height * width - place:
            return False, np.empty(0, np.int32), np.empty(0, np.int32)
        older, old = old, value
        place += value
        ends[number] = place
        number += 1
    if place != height * width or height < 1 or width < 1:
        return False, np.empty(0, np.int32), np.empty(0, np.int32)
    size = 0
    for run in range(1, number, 2):
        size += 2 * ((ends[run] - 1) // height - ends[run - 1] // height + 1)
    xs, ys = np.empty(size, np.int32), np.empty(size, np.int32)
    size = 0
    for run in range(1, number, 2):
        first, last = ends[run - 1], ends[run]
        while first < last:
            column = first // height
            stop = min(last, (column + 1) * height)
            if size and xs[size - 1] == column and ys[size - 1] == first - column * height:
                size -= 2  # a run of no pixels parts it from the one before
            else:
                ys[size] = first - column * height
            xs[size] = xs[size + 1] = column
            ys[size + 1] = stop - column * height
            size += 2
            first = stop
    return True, xs[:size], ys[:size]


@_compiled  # type: ignore[untyped-decorator]
def join_ends(starts: Any, xs: Any, ys: Any) -> Any:
    """Go down each line between two columns, and join the edges that end there; starts: the first edge of a column."""
    left, right = np.full(len(xs), -1), np.full(len(xs), -1)
    width = len(starts) - 1
    for line in range(width + 1):
        a, a_end = (starts[line - 1], starts[line]) if line > 0 else (0, 0)
        b, b_end = (starts[line], starts[line + 1]) if line < width else (0, 0)
        waiting = -1  # an edge that is joined with the next one below, by a line down
        while a < a_end or b < b_end:
            has_a, has_b = a < a_end, b < b_end
            if has_a and has_b and ys[a] == ys[b]:
                if a % 2 == b % 2:  # the outline goes straight on
                    right[a], left[b] = b, a
                else:  # two pixels touch at a corner: the upper line goes to the top, and the lower one to the bottom
                    top, bottom = (a, b) if a % 2 == 0 else (b, a)
                    for one, other in ((waiting, top), (top, waiting)):
                        if xs[one] == line:
                            left[one] = other
                        else:
                            right[one] = other
                    waiting = bottom
                a, b = a + 1, b + 1
                continue
            edge = a if has_a and (not has_b or ys[a] < ys[b]) else b
            if waiting < 0:
                waiting = edge
            else:
                for one, other in ((waiting, edge), (edge, waiting)):
                    if xs[one] == line:
                        left[one] = other
                    else:
                        right[one] = other
                waiting = -1
            if edge == a and has_a:
                a += 1
            else:
                b += 1
    return left, right


@_compiled  # type: ignore[untyped-decorator]
def walk(xs: Any, ys: Any, left: Any, right: Any, bridges: Any, centres: bool) -> Any:
    """Go around: tops to the right and bottoms to the left, so that the mask is always to the right hand.

    A bridge between the top and the bottom of a run leads from the left end of one to that of the other.

    Returns:
        points int32 [P, 2]; starts int64 [R], where each ring begins in them; firsts int64 [R], the first edge of each;
        owners int64, the ring of each edge.
    """
    points = np.empty((6 * len(xs), 2), np.int32)
    starts, firsts = np.empty(len(xs), np.int64), np.empty(len(xs), np.int64)
    owners = np.full(len(xs), -1)
    size = rings = 0
    for first in range(len(xs)):
        if owners[first] >= 0:
            continue
        start, edge = size, first
        while owners[edge] < 0:
            owners[edge] = rings
            leaves = edge
            if bridges[edge // 2]:
                leaves = edge ^ 1
                for one in (edge, leaves):
                    size = _append(points, start, size, xs[one], ys[one] - (one % 2 if centres else 0))
            bottom = leaves % 2
            to = left[leaves] if bottom else right[leaves]
            line, y, y_to = xs[leaves] + 1 - bottom, ys[leaves], ys[to]
            if y != y_to and centres:
                down = y < y_to
                size = _append(points, start, size, xs[leaves], y - bottom)
                size = _append(points, start, size, line - down, y if down else y - 1)
                size = _append(points, start, size, line - down, y_to - 1 if down else y_to)
                size = _append(points, start, size, xs[to], y_to - to % 2)
            elif y != y_to:
                size = _append(points, start, size, line, y)
                size = _append(points, start, size, line, y_to)
            edge = to
        if size > start + 1 and points[start, 0] == points[size - 1, 0] and points[start, 1] == points[size - 1, 1]:
            size -= 1
        starts[rings], firsts[rings] = start, first
        rings += 1
    return points[:size], starts[:rings], firsts[:rings], owners


@_compiled  # type: ignore[untyped-decorator]
def _append(points: Any, start: int, size: int, x: int, y: int) -> Any:
    """Add a point to a ring, unless it is the last one again."""
    if size > start and points[size - 1, 0] == x and points[size - 1, 1] == y:
        return size
    points[size, 0], points[size, 1] = x, y
    return size + 1
