"""Checks and arithmetic on compressed COCO RLE, many masks at once, without decoding a pixel where none is asked for.

A mask is a list of run lengths, background first, down the columns of the image. In a `counts` string each is a number
in groups of 5 bits, lowest first, a character a group: 48 + group, and 32 more where another follows; the top bit of
the last group is the sign. From the fourth on, a number is the difference to the run length two before. pycocotools
trusts such strings and reads past their end, so what was not made here has to pass `measure` or `check` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

Ints: TypeAlias = npt.NDArray[np.int64]

#: Seven groups hold the difference of any two 32-bit run lengths.
_MOST_GROUPS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What N masks amount to.

    faults: by index, what is wrong with a mask, in words. areas: int64 [N] in pixels. boxes: float64 [N, 4], the tight
    box (x, y, w, h). A mask with a fault, and an empty one, has zeros.
    """

    faults: dict[int, str]
    areas: Ints
    boxes: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Runs:
    """The run lengths of several masks, one after the other.

    lengths: int64 [R]. owners: int64 [R], the index of the mask, ascending. places: int64 [R], which run of its mask.
    """

    lengths: Ints
    owners: Ints
    places: Ints


def measure(counts: Sequence[str], sizes: npt.ArrayLike) -> Measures:
    """Check masks, and find their areas and boxes.

    Args:
        counts: N compressed RLE strings, from anywhere.
        sizes: integers [N, 2], or [2] for all: (height, width) in pixels.
    """
    number = len(counts)
    heights, widths = np.broadcast_to(np.asarray(sizes, np.int64), (number, 2)).T
    runs, faults = _parse(counts)
    for owner in np.flatnonzero((heights < 1) | (widths < 1)).tolist():
        faults.setdefault(owner, f"its size is {heights[owner]} x {widths[owner]} (height x width)")
    pixels = heights * widths
    wrong = (runs.lengths < 0) | (runs.lengths > pixels[runs.owners])
    for owner, length in zip(runs.owners[wrong].tolist(), runs.lengths[wrong].tolist(), strict=True):
        faults.setdefault(owner, f"its counts hold a run of {length} pixels, and the image has {pixels[owner]}")
    runs = _without(runs, faults)
    ends = _running_sums(runs.lengths, runs.owners)
    totals = np.zeros(number, np.int64)
    totals[runs.owners] = ends  # the last one stays
    for owner in np.flatnonzero(totals != pixels).tolist():
        faults.setdefault(owner, f"its counts add up to {totals[owner]} pixels, and the image has {pixels[owner]}")
    sound = ~np.isin(runs.owners, list(faults))
    inside = sound & (runs.places % 2 == 1) & (runs.lengths > 0)
    owners, lengths, ends = runs.owners[inside], runs.lengths[inside], ends[inside]
    areas = np.zeros(number, np.int64)
    np.add.at(areas, owners, lengths)
    return Measures(faults=faults, areas=areas, boxes=_boxes(owners, ends - lengths, ends - 1, heights, number))


def check(counts: str, height: int, width: int) -> None:
    """Make sure that a mask can be decoded.

    Raises:
        ValueError: its characters are no counts, or these do not add up to height x width.
    """
    _sound([counts], height, width)


def area(counts: str, height: int, width: int) -> int:
    """The pixels of a mask. Raises ValueError as `check` does."""
    return int(_sound([counts], height, width).areas[0])


def box(counts: str, height: int, width: int) -> tuple[float, float, float, float]:
    """The tight box (x, y, w, h) of a mask; zeros for an empty one. Raises ValueError as `check` does."""
    x, y, w, h = _sound([counts], height, width).boxes[0].tolist()
    return x, y, w, h


def decode(counts: str, height: int, width: int) -> npt.NDArray[np.bool_]:
    """The pixels of a mask, bool [height, width]. Raises ValueError as `check` does."""
    check(counts, height, width)
    runs, _ = _parse([counts])
    return np.repeat(runs.places % 2 == 1, runs.lengths).reshape(width, height).T


def iou(first: Sequence[str], second: Sequence[str], height: int, width: int) -> npt.NDArray[np.float64]:
    """Intersection over union of each of N masks with each of M, float64 [N, M]. Raises ValueError as `check` does."""
    _sound([*first, *second], height, width)
    if not first or not second:
        return np.zeros((len(first), len(second)))
    left, right = ([{"size": [height, width], "counts": one} for one in masks] for masks in (first, second))
    return np.asarray(mask_api.iou(left, right, [0] * len(right)), np.float64)


def _sound(counts: Sequence[str], height: int, width: int) -> Measures:
    measures = measure(counts, (height, width))
    for fault in measures.faults.values():
        raise ValueError(f"The mask cannot be decoded: {fault}.")
    return measures


def _parse(counts: Sequence[str]) -> tuple[_Runs, dict[int, str]]:
    """The run lengths of the strings that are well-formed, and what is wrong with the others."""
    encoded = [one.encode("utf-8", "surrogatepass") for one in counts]
    groups = np.frombuffer(b"".join(encoded), np.uint8).astype(np.int64) - 48
    sizes = np.array([len(one) for one in encoded], np.int64)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    faults: dict[int, str] = {}

    def note(which: npt.NDArray[Any], fault: str) -> None:
        for owner in which.tolist():
            faults.setdefault(owner, fault)

    note(np.flatnonzero(sizes == 0), "it has no counts")
    note(np.unique(owners[(groups < 0) | (groups > 63)]), "its counts hold a character that is none of COCO's")
    last = groups[(np.cumsum(sizes) - 1)[sizes > 0]]
    note(np.flatnonzero(sizes > 0)[last & 32 != 0], "its counts break off")
    kept = ~np.isin(owners, list(faults))
    groups, owners = groups[kept], owners[kept]

    ends = np.flatnonzero(groups & 32 == 0)
    lengths = np.diff(ends, prepend=-1)
    position = np.arange(len(groups)) - np.repeat(ends - lengths + 1, lengths)
    note(np.unique(owners[position >= _MOST_GROUPS]), "its counts hold a number of more than 32 bits")
    shifts = 5 * np.minimum(position, _MOST_GROUPS)
    values = np.add.reduceat((groups & 31) << shifts, ends - lengths + 1) if len(ends) else np.zeros(0, np.int64)
    values -= np.where(groups[ends] & 16, np.int64(32) << shifts[ends], 0)

    owners = owners[ends]
    places = _running_sums(np.ones(len(owners), np.int64), owners) - 1
    for chain in (places % 2 == 1, (places % 2 == 0) & (places > 0)):
        values[chain] = _running_sums(values[chain], owners[chain])
    return _without(_Runs(lengths=values, owners=owners, places=places), faults), faults


def _without(runs: _Runs, faults: dict[int, str]) -> _Runs:
    if not faults:
        return runs
    kept = ~np.isin(runs.owners, list(faults))
    return _Runs(lengths=runs.lengths[kept], owners=runs.owners[kept], places=runs.places[kept])


def _running_sums(values: Ints, owners: Ints) -> Ints:
    """Cumulative sums that begin anew with each owner."""
    if not len(values):
        return values
    sums = np.cumsum(values)
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    return sums - np.repeat(sums[starts] - values[starts], np.diff(starts, append=len(values)))


def _boxes(owners: Ints, first: Ints, last: Ints, heights: Ints, number: int) -> npt.NDArray[np.float64]:
    """The tight boxes of masks whose runs go from pixel `first` to pixel `last`, counted down the columns."""
    boxes = np.zeros((number, 4))
    if not len(owners):
        return boxes
    (left, top), (right, bottom) = np.divmod(first, heights[owners]), np.divmod(last, heights[owners])
    across = left != right  # such a run touches both the lower and the upper edge
    top, bottom = np.where(across, 0, top), np.where(across, heights[owners] - 1, bottom)
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    x0, y0 = np.minimum.reduceat(left, starts), np.minimum.reduceat(top, starts)
    x1, y1 = np.maximum.reduceat(right, starts), np.maximum.reduceat(bottom, starts)
    boxes[owners[starts]] = np.stack([x0, y0, x1 - x0 + 1, y1 - y0 + 1], axis=1)
    return boxes
