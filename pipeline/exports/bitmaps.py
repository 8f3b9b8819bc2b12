"""Masks as bitmaps of their boxes and as runs along rows, which is what other tools store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import polygons


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crop:
    """A mask within its tight box: pixels bool [h, w], with the image's column `left` and row `top` in the corner."""

    pixels: npt.NDArray[np.bool_]
    left: int
    top: int


def crop(counts: str, height: int, width: int) -> Crop:
    """The box of a mask; of one without pixels, an empty one.

    Raises:
        ValueError: the mask cannot be decoded.

    >>> crop("141", 3, 2)
    Crop(pixels=array([[False,  True],
           [ True,  True],
           [ True, False]]), left=0, top=0)
    """
    columns, tops, bottoms = polygons.spans(counts, height, width).T
    if not len(columns):
        return Crop(pixels=np.zeros((0, 0), np.bool_), left=0, top=0)
    left, top = int(columns.min()), int(tops.min())
    steps = np.zeros((int(bottoms.max()) - top + 1, int(columns.max()) - left + 1), np.int8)
    np.add.at(steps, (tops - top, columns - left), 1)
    np.subtract.at(steps, (bottoms - top, columns - left), 1)
    return Crop(pixels=np.cumsum(steps[:-1], axis=0, dtype=np.int8).astype(np.bool_), left=left, top=top)


def row_runs(found: Crop, height: int, width: int) -> npt.NDArray[np.int64]:
    """The lengths of runs along the rows of an image, background first, one after the other.

    Args:
        found: the mask.
        height: of the image, or of the crop where its runs alone are wanted; `found` then lies at 0, 0.
        width: likewise.

    >>> row_runs(crop("141", 3, 2), 3, 2).tolist()
    [1, 4, 1]
    """
    edges: npt.NDArray[Any] = np.diff(found.pixels, axis=1, prepend=False, append=False)
    rows, columns = np.nonzero(edges)  # beginnings and ends by turns, row by row
    places, times = np.unique((found.top + rows) * width + found.left + columns, return_counts=True)
    places = places[(times == 1) & (places < height * width)]
    lengths: npt.NDArray[np.int64] = np.diff(places, prepend=0, append=height * width)
    return lengths


def of_runs(lengths: Sequence[int], height: int, width: int) -> npt.NDArray[np.bool_]:
    """The pixels, bool [height, width], of runs along the rows, background first, from anywhere.

    Raises:
        ValueError: the runs do not add up to as many pixels.

    >>> of_runs([1, 4, 1], 3, 2).astype(int).tolist()
    [[0, 1], [1, 1], [1, 0]]
    """
    if min(lengths, default=0) < 0 or sum(lengths) != height * width:
        raise ValueError(f"its runs are not those of {width} x {height} pixels")
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, np.array(lengths, np.int64)).reshape(height, width)
