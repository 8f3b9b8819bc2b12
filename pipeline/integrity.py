"""Whether masks are in one piece, without holes, clear of the border and of each other: by runs, no pixel decoded.

A mask is taken as closed pixels: those that share a side or a corner are connected (8-connected), and its holes are the
regions of other pixels, connected by sides (4-connected), that it cuts off from the border of the image.

The pixels of a mask in one column are intervals. Intervals of neighbouring columns touch where they overlap or meet at
a corner, and those of other columns never do, so a mask has the shape of the graph of its intervals: as many fragments
as that has components, and as many holes as it has independent circles, which are edges - nodes + components.

Legend of shapes: N masks of one image of height H and width W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline import masks

_Array: TypeAlias = npt.NDArray[Any]

#: Seven groups of 5 bits hold any difference of two run lengths; see `pipeline.masks`.
_MOST_GROUPS = 7

_compiled = njit(nogil=True, cache=True, error_model="numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrity:
    """What may be wrong with each of N masks.

    fragments: int64 [N], how many separate pieces it has. holes: int64 [N]. touches_border: bool [N], whether one of
    its pixels is in the first or last row or column. duplicate_iou: float64 [N], the greatest IoU with another of them,
    whatever its class; 0 where there is no other.
    """

    fragments: npt.NDArray[np.int64]
    holes: npt.NDArray[np.int64]
    touches_border: npt.NDArray[np.bool_]
    duplicate_iou: npt.NDArray[np.float64]


def measure(counts: Sequence[str], height: int, width: int) -> Integrity:
    """Examine the masks of an image.

    Args:
        counts: N compressed COCO RLE strings, from anywhere.
        height: H.
        width: W.

    Raises:
        ValueError: a string cannot be decoded, or has another number of pixels.
    """
    if len(counts) and not (height > 0 and width > 0):
        masks.check(counts[0], height, width)
    encoded = [one.encode("utf-8", "surrogatepass") for one in counts]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(one) for one in encoded], out=offsets[1:])
    chars = np.frombuffer(b"".join(encoded), np.uint8)
    bad, starts, ends, owners = _foreground(chars, offsets, int(height) * int(width))
    if bad >= 0:
        masks.check(counts[bad], height, width)
        raise ValueError("The mask cannot be decoded.")
    fragments, holes, touches = _shapes(starts, ends, owners, int(height), int(width))
    return Integrity(
        fragments=fragments, holes=holes, touches_border=touches, duplicate_iou=_duplicates(starts, ends, owners)
    )


@_compiled
def _foreground(chars: _Array, offsets: _Array, pixels: int) -> tuple[int, _Array, _Array, _Array]:
    """The runs of all masks as pixels from `start` up to `end`, counted down the columns, joined where they meet.

    Returns:
        The first mask that cannot be decoded, or -1; starts and ends int64 [R]; and where the runs of each mask begin
        among them, int64 [N + 1].
    """
    starts, ends = np.empty(len(chars), np.int64), np.empty(len(chars), np.int64)
    owners = np.zeros(len(offsets), np.int64)
    runs = 0
    for mask in range(len(offsets) - 1):
        place = position = before = two_before = 0
        at, last = int(offsets[mask]), int(offsets[mask + 1])
        first = runs
        if at == last:
            return mask, starts, ends, owners
        while at < last:
            value = groups = 0
            more = True
            while more:
                if at == last or groups == _MOST_GROUPS:
                    return mask, starts, ends, owners
                code = int(chars[at]) - 48
                if code < 0 or code > 63:
                    return mask, starts, ends, owners
                value |= (code & 31) << (5 * groups)
                more = code & 32 != 0
                groups += 1
                at += 1
                if not more and code & 16:
                    value -= 1 << (5 * groups)
            if place > 2:
                value += two_before
            two_before, before = before, value
            if value < 0 or value > pixels - position:
                return mask, starts, ends, owners
            if place % 2 == 1 and value > 0:
                if runs > first and ends[runs - 1] == position:
                    ends[runs - 1] = position + value
                else:
                    starts[runs], ends[runs] = position, position + value
                    runs += 1
            position += value
            place += 1
        if position != pixels:
            return mask, starts, ends, owners
        owners[mask + 1] = runs
    return -1, starts[:runs], ends[:runs], owners


@_compiled
def _root(parents: _Array, node: int) -> int:
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@_compiled
def _shapes(starts: _Array, ends: _Array, owners: _Array, height: int, width: int) -> tuple[_Array, _Array, _Array]:
    """The fragments and holes of masks, and which touch the border."""
    number = len(owners) - 1
    fragments, holes = np.zeros(number, np.int64), np.zeros(number, np.int64)
    touches = np.zeros(number, np.bool_)
    for mask in range(number):
        first, last = owners[mask], owners[mask + 1]
        nodes = 0
        for run in range(first, last):
            nodes += (ends[run] - 1) // height - starts[run] // height + 1
        columns, tops, bottoms = np.empty(nodes, np.int64), np.empty(nodes, np.int64), np.empty(nodes, np.int64)
        node = 0
        for run in range(first, last):
            for column in range(starts[run] // height, (ends[run] - 1) // height + 1):
                top, bottom = max(starts[run] - column * height, 0), min(ends[run] - column * height, height)
                columns[node], tops[node], bottoms[node] = column, top, bottom
                touches[mask] |= column == 0 or column == width - 1 or top == 0 or bottom == height
                node += 1
        parents = np.arange(nodes)
        components, edges, left = nodes, 0, 0
        for right in range(nodes):
            # Intervals of the column before that end above this one are above all that follow in this column, too.
            while left < right and (
                columns[left] < columns[right] - 1
                or (columns[left] == columns[right] - 1 and bottoms[left] < tops[right])
            ):
                left += 1
            other = left
            while columns[other] == columns[right] - 1 and tops[other] <= bottoms[right]:
                edges += 1
                a, b = _root(parents, other), _root(parents, right)
                if a != b:
                    parents[a] = b
                    components -= 1
                other += 1
        fragments[mask], holes[mask] = components, edges - nodes + components
    return fragments, holes, touches


@_compiled
def _duplicates(starts: _Array, ends: _Array, owners: _Array) -> _Array:
    """The greatest IoU of each mask with another, float64 [N]."""
    number = len(owners) - 1
    areas, best = np.zeros(number, np.int64), np.zeros(number)
    for mask in range(number):
        for run in range(owners[mask], owners[mask + 1]):
            areas[mask] += ends[run] - starts[run]
    for a in range(number):
        for b in range(a + 1, number):
            small, large = min(areas[a], areas[b]), max(areas[a], areas[b])
            if small == 0 or small <= large * min(best[a], best[b]):
                continue  # the IoU is at most small / large, which would change nothing
            i, j, last_i, last_j = owners[a], owners[b], owners[a + 1], owners[b + 1]
            if ends[last_i - 1] <= starts[j] or ends[last_j - 1] <= starts[i]:
                continue
            common = 0
            while i < last_i and j < last_j:
                common += max(0, min(ends[i], ends[j]) - max(starts[i], starts[j]))
                if ends[i] < ends[j]:
                    i += 1
                else:
                    j += 1
            iou = common / (areas[a] + areas[b] - common)
            best[a], best[b] = max(best[a], iou), max(best[b], iou)
    return best
