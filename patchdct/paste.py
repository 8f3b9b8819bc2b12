"""Boxes and mask values to COCO RLE at image size, without making a mask of image size.

The result is, to the last bit, that of detectron2's `_do_paste_mask(skip_empty=False)` (grid_sample with zero padding
over the whole image) on a CPU, `>= threshold` and pycocotools' encode. The method:

1. The mask values are the nodes of a grid, in a ring of zeros (the zero padding). A node is high or low where it is
   clear of the threshold by more than rounding could bridge. Bilinear weights are positive and sum to 1, so a cell
   between four high or four low nodes has one class throughout. Only the others, the boundary cells, are looked at. A
   word has a bit for each of 32 nodes of a grid column, so that 31 cells between two columns are sorted out at once.
2. Pixels are mapped to cells and weights in float32 by detectron2's formula.
3. Each pixel column is swept down the boundary cells of its grid column. The class changes nowhere else, so it is known
   at the upper line of each cell. Where it is the same at the lower line, the cell is passed over. Else the values in
   between are linear: the turn is computed, and believed where the pixels above and below it, sampled with the
   operations of grid_sample in their order, are clear of the threshold. Short cells, and those where that fails, are
   sampled pixel by pixel.
4. An edge is the offset x * H + y of a pixel where the class changes, counted down the columns as COCO does. Two equal
   edges cancel, which also joins columns of full height. Counts are differences of edges; the characters of all
   instances go into one buffer.

Legend of shapes: N instances, M mask side, H and W image height and width in pixels. The grid has M + 2 nodes and M + 1
cells a side. Grid row (or column) r lies between nodes r and r + 1; node r has the mask values of row (column) r - 1.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_Array: TypeAlias = npt.NDArray[Any]

_HALF, _ONE, _TWO = np.float32(0.5), np.float32(1), np.float32(2)
#: How far from the threshold a high or low node is, relative to it. A sample rounds six times, at 2^-24 each. Negative
#: terms stay negative, so that a low node may be as low, and a high node as high, as it likes.
_BAND = 2.0**-20
#: How far from the threshold a sample speaks for those beyond it, relative to the greatest corner of the cell.
_SLACK = 2.0**-19
#: Cells of a word: its 32 nodes have 31 cells between them, and neighbouring words share a node.
_CELLS = 31
#: Up to so many pixels in a cell, to sample them all is faster than to compute the turn.
_SHORT = 4
#: The most characters of a count, at 5 bits each. pycocotools has counts of 32 bits; a difference has a sign as well.
_MAX_CHARS = 7
_MAX_PIXELS = 2**32 - 1
_MIN_THRESHOLD, _MAX_THRESHOLD = 1e-6, 1e6

_compiled = njit(nogil=True, cache=True, error_model="numpy")
_inlined = njit(nogil=True, cache=True, error_model="numpy", forceinline=True)


def paste_rle(
    values: npt.NDArray[np.float32],
    boxes: npt.NDArray[np.float32],
    height: int,
    width: int,
    threshold: float = 0.5,
) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Paste square masks into their boxes and encode them as compressed COCO RLE.

    As in detectron2, a box without width or height gives an empty mask, and one with x1 < x0 or y1 < y0 a mirrored one.

    Args:
        values: float32 [N, M, M], M >= 1; usually in 0..1, but any finite values are right.
        boxes: float32 [N, 4] (x0, y0, x1, y1) in pixels; may be less than a pixel or reach outside of the image.
        height: H, at least 1.
        width: W, at least 1; H * W below 2^32, as for pycocotools.
        threshold: a pixel belongs to the mask where its value is at least this; from 1e-6 to 1e6.

    Returns:
        counts: N strings, the `counts` of COCO's compressed RLE of size (H, W).
        areas: int64 [N] in pixels, as pycocotools' `area`.
        boxes: float64 [N, 4] (x, y, w, h) in pixels, tight, as pycocotools' `toBbox`; zeros for an empty mask.

    Raises:
        ValueError: for another shape or dtype, an entry that is not finite, or a size or threshold out of range.
    """
    _check(values, boxes, height, width, threshold)
    values, boxes = (
        np.require(array, requirements=("C", "A", "W")) for array in (values, boxes)
    )  # one form to compile
    bad, chars, offsets, areas, tight = _paste_all(values, boxes, int(height), int(width), np.float32(threshold))
    if bad >= 0:
        name = "values" if np.isfinite(boxes[bad]).all() else "boxes"
        raise ValueError(f"{name}[{bad}] must be finite, but has an infinite or NaN entry.")
    ends = offsets.tolist()
    text = chars[: ends[-1]].tobytes().decode("ascii")
    return [text[begin:end] for begin, end in pairwise(ends)], areas, tight


def _check(values: Any, boxes: Any, height: int, width: int, threshold: float) -> None:
    for name, array in (("values", values), ("boxes", boxes)):
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{name} must be a float32 numpy array, not {kind}.")
    if values.ndim != 3 or values.shape[1] != values.shape[2] or values.shape[1] < 1:
        raise ValueError(f"values must have the shape [N, M, M] with M at least 1, not {list(values.shape)}.")
    if boxes.shape != (len(values), 4):
        raise ValueError(f"boxes must have the shape [{len(values)}, 4] to go with values, not {list(boxes.shape)}.")
    for name, size in (("height", height), ("width", width)):
        if not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {size!r}.")
    if int(height) * int(width) > _MAX_PIXELS:
        raise ValueError(f"height * width must be at most {_MAX_PIXELS}, not {height} * {width}.")
    if not _MIN_THRESHOLD <= threshold <= _MAX_THRESHOLD:
        raise ValueError(f"threshold must be from {_MIN_THRESHOLD:g} to {_MAX_THRESHOLD:g}, not {threshold!r}.")


def _fma_code(_context: Any, _a: Any, _b: Any, _c: Any) -> Any:
    def code(_: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), code


def _zeros_above_code(_context: Any, _word: Any) -> Any:
    def code(_: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), code


#: a * b + c in float32, rounded once, as in the compiled grid_sample.
_fma: Any = intrinsic(_fma_code)
#: How many bits above the highest set bit of an int64 are zero; 64 for 0.
_zeros_above: Any = intrinsic(_zeros_above_code)


@_compiled
def _paste_all(
    values: _Array, boxes: _Array, height: int, width: int, threshold: Any
) -> tuple[int, _Array, _Array, _Array, _Array]:
    """All instances -> (index of the first not finite or -1, characters, offsets int64 [N + 1], areas, boxes)."""
    count = values.shape[0]
    edges, chars = np.empty(4096, np.int64), np.empty(4096 + 512 * count, np.uint8)
    offsets, areas, tight = np.zeros(count + 1, np.int64), np.zeros(count, np.int64), np.zeros((count, 4))
    for i in range(count):
        cells, finite = _boundary_cells(values[i], threshold)
        if not (finite and np.isfinite(boxes[i]).all()):
            return i, chars, offsets, areas, tight
        edges, used = _sweep(values[i], cells, boxes[i], height, width, threshold, edges)
        areas[i] = _measure(edges[:used], height, tight[i])
        chars = _with_room(chars, offsets[i], (used + 1) * _MAX_CHARS)
        offsets[i + 1] = _encode(edges[:used], height * width, chars, offsets[i])
    return -1, chars, offsets, areas, tight


@_compiled
def _with_room(array: _Array, used: int, more: int) -> _Array:
    """The array, or a longer copy where it has no room for `more` entries behind the first `used` ones."""
    if used + more <= len(array):
        return array
    longer = np.empty(2 * (used + more), array.dtype)
    for k in range(used):
        longer[k] = array[k]
    return longer


@_compiled
def _boundary_cells(mask: _Array, threshold: Any) -> tuple[_Array, bool]:
    """Bits of the cells that may hold both classes, and whether all values are finite.

    The bits are uint32 [word, grid column]; bit b of word w is that of grid row 31 w + b.
    """
    side, none, finite = mask.shape[0], np.uint32(0), True
    least_high, most_low = np.float32(threshold * (1 + _BAND)), np.float32(threshold * (1 - _BAND))
    cells = np.empty((side // _CELLS + 1, side + 1), np.uint32)
    high, low = np.empty(side + 2, np.uint32), np.empty(side + 2, np.uint32)
    for word in range(cells.shape[0]):
        high[:], low[:] = 0, 0
        for bit in range(min(_CELLS + 1, side + 2 - word * _CELLS)):
            node, row = np.uint32(1 << bit), word * _CELLS + bit - 1
            if row < 0 or row == side:
                low |= node
            else:
                low[0] |= node
                low[side + 1] |= node
                for c in range(side):
                    value = mask[row, c]
                    high[c + 1] |= node if value >= least_high else none
                    low[c + 1] |= node if value <= most_low else none
                    finite &= value - value == 0
        all_rows = np.uint32((1 << min(_CELLS, side + 1 - word * _CELLS)) - 1)
        for c in range(side + 1):
            both_high, both_low = high[c] & high[c + 1], low[c] & low[c + 1]
            cells[word, c] = ~((both_high & (both_high >> 1)) | (both_low & (both_low >> 1))) & all_rows
    return cells, finite


@_compiled
def _mask_position(pixel: int, near: Any, far: Any, side: int) -> Any:
    """Where the centre of a pixel lies on the mask: detectron2's grid, then grid_sample's, operation by operation."""
    grid = (np.float32(pixel) + _HALF - near) / (far - near) * _TWO - _ONE
    return _fma(grid + _ONE, np.float32(side) / _TWO, -_HALF)


@_compiled
def _grid_cell(position: Any, side: int) -> Any:
    """Grid row or column of a mask position: 0 to M; -1 before the grid, M + 1 behind it or for NaN (no width)."""
    whole = np.floor(position)
    if whole < -1:
        return -1
    return np.int64(whole) + 1 if whole < side else side + 1


@_compiled
def _pixel_range(near: Any, far: Any, side: int, size: int) -> tuple[Any, Any]:
    """The pixels that may lie on the grid, which ends half a mask cell outside of the box; the rest is for rounding."""
    low, high = np.float64(min(near, far)), np.float64(max(near, far))
    margin = (high - low) / side + 2
    return np.int64(min(max(low - margin, 0), size)), np.int64(max(min(high + margin, size), 0))


@_compiled
def _place_rows(y0: Any, y1: Any, side: int, height: int) -> tuple[_Array, _Array]:
    """Weight of each pixel row, and the first pixel row of each grid row, counted in the order of the image."""
    weights, first = np.empty(height, np.float32), np.empty(side + 2, np.int64)
    begin, end = _pixel_range(y0, y1, side, height)
    placed = 0
    for y in range(begin, end):
        position = _mask_position(y, y0, y1, side)
        weights[y] = position - np.floor(position)
        cell = _grid_cell(position, side)
        order = side - cell if y1 < y0 else cell
        while placed <= order:
            first[placed] = y
            placed += 1
    first[placed:] = end
    return weights, first


@_compiled
def _node(mask: _Array, row: int, column: int) -> Any:
    """Value of a grid node; 0 in the ring around the mask."""
    inside = 0 < row <= mask.shape[0] and 0 < column <= mask.shape[0]
    return mask[row - 1, column - 1] if inside else np.float32(0)


@_compiled
def _list_cells(
    mask: _Array, cells: _Array, column: int, mirrored: bool, first: _Array, rows: _Array, corners: _Array
) -> int:
    """List the boundary cells of a grid column in the order of the image, and return how many there are.

    rows int64 [M + 1, 2]: the first pixel row of a cell and the one behind its last. corners float32 [M + 1, 5]: the
    nodes nw, ne, sw and se, and the slack of samples between them.
    """
    side, words, listed = mask.shape[0], cells.shape[0], 0
    for step in range(words):
        word = words - 1 - step if mirrored else step
        bits = np.int64(cells[word, column])
        while bits:
            bit = 63 - _zeros_above(bits if mirrored else bits & -bits)
            bits ^= 1 << bit
            row = word * _CELLS + bit
            order = side - row if mirrored else row
            nw, ne = _node(mask, row, column), _node(mask, row, column + 1)
            sw, se = _node(mask, row + 1, column), _node(mask, row + 1, column + 1)
            greatest = max(max(abs(nw), abs(ne)), max(abs(sw), abs(se)))
            rows[listed, 0], rows[listed, 1] = first[order], first[order + 1]
            corners[listed, 0], corners[listed, 1], corners[listed, 2], corners[listed, 3] = nw, ne, sw, se
            corners[listed, 4] = np.float32(_SLACK) * greatest
            listed += 1
    return listed


@_compiled
def _sweep(
    mask: _Array, cells: _Array, box: _Array, height: int, width: int, threshold: Any, edges: _Array
) -> tuple[_Array, int]:
    """Sample one mask -> (edges, in a longer array where they need it, and how many they are)."""
    x0, y0, x1, y1 = box
    side, mirrored, used = mask.shape[0], y1 < y0, 0
    weights, first = _place_rows(y0, y1, side, height)
    rows, corners = np.empty((side + 1, 2), np.int64), np.empty((side + 1, 5), np.float32)
    listed, listed_column, pitch = 0, -1, (y1 - y0) / np.float32(side)
    begin, end = _pixel_range(x0, x1, side, width)
    for x in range(begin, end):
        position = _mask_position(x, x0, x1, side)
        column = _grid_cell(position, side)
        if column < 0 or column > side:
            continue
        if column != listed_column:
            listed, listed_column = _list_cells(mask, cells, column, mirrored, first, rows, corners), column
        if used + height + listed > len(edges):
            edges = _with_room(edges, used, height + listed)
        east = position - np.floor(position)
        used = _sweep_column(listed, rows, corners, weights, east, pitch, threshold, x * height, edges, used)
    return edges, _cancel(edges[:used])


@_inlined
def _sweep_column(
    listed: int,
    rows: _Array,
    corners: _Array,
    weights: _Array,
    east: Any,
    pitch: Any,
    threshold: Any,
    top: int,
    edges: _Array,
    used: int,
) -> int:
    """Append the edges of one pixel column, and return how many edges are used.

    east: weight of the eastern nodes. pitch: pixel rows for each grid row, negative for a mirrored mask. top: offset of
    the first pixel of the column.
    """
    inside, west = False, _ONE - east
    for k in range(listed):
        nw, ne, sw, se, slack = corners[k, 0], corners[k, 1], corners[k, 2], corners[k, 3], corners[k, 4]
        northern, southern = _fma(ne, east, nw * west) - threshold, _fma(se, east, sw * west) - threshold
        inside_below = (northern if pitch < 0 else southern) >= 0
        clear = min(abs(northern), abs(southern)) > slack
        if clear and inside == inside_below:
            continue
        begin, end = rows[k, 0], rows[k, 1]
        if clear and end - begin > _SHORT:
            way = np.ceil((northern / (northern - southern) - weights[begin]) * pitch)
            if 1 <= way < end - begin:
                turn = begin + np.int64(way)
                above = _sample(nw, ne, sw, se, east, weights[turn - 1]) - threshold
                below = _sample(nw, ne, sw, se, east, weights[turn]) - threshold
                if min(abs(above), abs(below)) > slack and (above >= 0) == inside and (below >= 0) == inside_below:
                    edges[used] = top + turn
                    used += 1
                    inside = inside_below
                    continue
        for y in range(begin, end):
            hit = _sample(nw, ne, sw, se, east, weights[y]) >= threshold
            edges[used] = top + y  # stays only where the class changes: a branch would often be mispredicted
            used += hit != inside
            inside = hit
        edges[used] = top + end
        used += inside != inside_below
        inside = inside_below
    return used


@_compiled
def _sample(nw: Any, ne: Any, sw: Any, se: Any, east: Any, south: Any) -> Any:
    """The value that grid_sample gives, with its operations in their order."""
    west, north = _ONE - east, _ONE - south
    value = _fma(ne, east * north, nw * (west * north))
    return _fma(se, east * south, _fma(sw, west * south, value))


@_compiled
def _cancel(edges: _Array) -> int:
    """Take pairs of equal edges out, in place, and return how many edges are left."""
    left = 0
    for edge in edges:
        if left > 0 and edges[left - 1] == edge:
            left -= 1
        else:
            edges[left] = edge
            left += 1
    return left


@_compiled
def _measure(edges: _Array, height: int, tight: _Array) -> int:
    """Area between the edges; their tight box (x, y, w, h) goes to `tight`."""
    if len(edges) == 0:
        return 0
    area, upper, lower = 0, height, 0
    left, right = edges[0] // height, (edges[-1] - 1) // height
    top = left * height  # offset of the first pixel of the column in which the run starts
    for k in range(0, len(edges), 2):
        start, end = edges[k], edges[k + 1]
        area += end - start
        while start >= top + height:
            top += height
        if end > top + height:  # the run goes on in the next column
            upper, lower = 0, height
        else:
            upper, lower = min(upper, start - top), max(lower, end - top)
    tight[0], tight[1], tight[2], tight[3] = left, upper, right - left + 1, lower - upper
    return area


@_compiled
def _encode(edges: _Array, pixels: int, chars: _Array, at: int) -> int:
    """Write COCO's compressed counts to `chars` from index `at`, and return the index behind them.

    A count is the way from edge to edge; from the fourth on it is written as its difference to the count two before.
    A character is 48 + 5 bits, the lowest first, and 32 more where another follows. The last one's top bit is the sign.
    """
    counts = len(edges) if len(edges) > 0 and edges[-1] == pixels else len(edges) + 1
    edge = before = two_before = 0
    for k in range(counts):
        next_edge = edges[k] if k < len(edges) else pixels
        count = next_edge - edge
        rest = count - two_before if k > 2 else count
        edge, before, two_before = next_edge, count, before
        magnitude_bits = 64 - _zeros_above(rest ^ (rest >> 63))
        last = magnitude_bits // 5
        for c in range(_MAX_CHARS):  # all, as a varying number is mispredicted; the next count overwrites
            chars[at + c] = 48 + ((rest >> (5 * c)) & 31) + (32 if c < last else 0)
        at += last + 1
    return at
