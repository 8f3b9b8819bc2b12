"""Resizing as Pillow does it, value for value, several times faster; and the same on any device that PyTorch knows.

Pillow's bilinear filter is a triangle that reaches as far as the pixels of the smaller image are apart. An output value
is a weighted sum of neighbours, along the rows and then down the columns (or the other way round, where a height is
reduced much more than the width), rounded to a whole number after each of the two. The weights are whole multiples of
2^-22, so that all sums are of integers: they come out the same in any order, on a GPU as on a CPU. On a GPU, though,
nobody has looked yet.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

_BITS = 22
_ONE, _HALF, _SHIFT = np.uint32(1 << _BITS), np.uint32(1 << (_BITS - 1)), np.uint32(_BITS)

_compiled = njit(nogil=True, cache=True, error_model="numpy")


def resize(image: npt.NDArray[np.uint8], size: tuple[int, int], *, reverse: bool = False) -> npt.NDArray[np.uint8]:
    """Resize an image to the values of Pillow's `Image.resize`, BILINEAR; the GIL is not held.

    Args:
        image: uint8 [H, W, 3], in any memory layout.
        size: height and width, h and w, at least 1.
        reverse: whether to reverse the order of the colours.

    Returns:
        uint8 [3, h, w], contiguous.
    """
    if image.shape[:2] == size:
        return np.ascontiguousarray(image[:, :, :: -1 if reverse else 1].transpose(2, 0, 1))
    (height, width), (to_height, to_width) = image.shape[:2], size
    image = np.ascontiguousarray(image)
    resized = np.empty((3, *size), np.uint8)
    if _columns_first((height, width), size):
        low = np.empty((1, to_height, 3 * width), np.uint8)
        _resize_columns(_read_only(image.reshape(1, height, -1)), *_neighbours(height, to_height), low)
        _resize_rows(_read_only(low[0]), *_neighbours(width, to_width), reverse, resized)
    else:
        narrow = np.empty((3, height, to_width), np.uint8)
        _resize_rows(_read_only(image.reshape(height, -1)), *_neighbours(width, to_width), reverse, narrow)
        _resize_columns(_read_only(narrow), *_neighbours(height, to_height), resized)
    return resized


def resize_tensor(images: Tensor, size: tuple[int, int], *, reverse: bool = False) -> Tensor:
    """Resize images of one size to the values that `resize` gives, on the device where they are.

    Args:
        images: uint8 [N, H, W, 3].
        size: height and width, h and w, at least 1. Time grows with the factor by which images are reduced.
        reverse: whether to reverse the order of the colours.

    Returns:
        uint8 [N, 3, h, w], contiguous.
    """
    planes = images.movedim(3, 1)
    if reverse:
        planes = planes.flip(1)
    for dim in (2, 3) if _columns_first((planes.shape[2], planes.shape[3]), size) else (3, 2):
        if planes.shape[dim] != size[dim - 2]:
            planes = _resize_along(planes, dim, size[dim - 2])
    return planes.contiguous()


def _read_only(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """`array`, of one type for the compiler, whether it may be written to or not."""
    view = array.view()
    view.flags.writeable = False
    return view


def _columns_first(size: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Whether Pillow, from version 13 on, resizes heights before widths; earlier ones never do."""
    lost_height, lost_width = size[0] - wanted[0], size[1] - wanted[1]
    return lost_height > 0 and lost_height > 2 * lost_width


def _resize_along(planes: Tensor, dim: int, size: int) -> Tensor:
    places, weights = _neighbours_on(planes.shape[dim], size, planes.device)
    shape = [-1 if d == dim else 1 for d in range(planes.ndim)]
    products = (planes.index_select(dim, at) * weight.view(shape) for at, weight in zip(places, weights, strict=True))
    total = functools.reduce(Tensor.add_, products)  # int32: weights add up to 1, so it is below 2^30
    return ((total + int(_HALF)) >> _BITS).to(torch.uint8)


@functools.lru_cache(maxsize=256)
def _neighbours_on(size: int, wanted: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`_neighbours`, by turns: the k-th neighbour of all output values, int64 [K, wanted], and its weights, int32."""
    first, _, weights = _neighbours(size, wanted)
    places = np.minimum(first[None].astype(np.int64) + np.arange(weights.shape[1])[:, None], size - 1)
    both = torch.from_numpy(places), torch.from_numpy(weights.T.astype(np.int32))
    if device.type == "cuda":  # from where a copy to the GPU does not wait
        both = both[0].pin_memory(), both[1].pin_memory()
    return both[0].to(device, non_blocking=True), both[1].to(device, non_blocking=True)


@_compiled
def _neighbours(
    size: int, wanted: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """What each of `wanted` output values is made of, among `size` values: the first of them, their number, weights.

    As Pillow computes it, step by step in float64: uint64 [wanted] twice, and uint32 [wanted, K] in units of 2^-22.
    """
    scale = size / wanted
    reach = max(scale, 1.0)
    first, count = np.empty(wanted, np.uint64), np.empty(wanted, np.uint64)
    weights = np.zeros((wanted, 2 * int(np.ceil(reach)) + 1), np.uint32)
    shares = np.empty(weights.shape[1])
    for i in range(wanted):
        centre = (i + 0.5) * scale
        begin = max(int(centre - reach + 0.5), 0)
        number = min(int(centre + reach + 0.5), size) - begin
        total = 0.0
        for k in range(number):
            shares[k] = max(1.0 - abs((k + begin - centre + 0.5) * (1.0 / reach)), 0.0)
            total += shares[k]
        for k in range(number):
            weights[i, k] = int(0.5 + shares[k] / total * _ONE)
        first[i], count[i] = begin, number
    return first, count, weights


@_compiled
def _resize_rows(image, first, count, weights, reverse, resized):  # type: ignore[no-untyped-def]
    """uint8 [H, 3 W], colours together -> `resized`, uint8 [3, H, w], colours apart.

    Indices are unsigned, as a signed one is looked at for being negative each time.
    """
    step, one, two = np.uint64(3), np.uint64(1), np.uint64(2)
    for y in range(resized.shape[1]):
        row = image[y]
        to_a, to_b, to_c = resized[2 if reverse else 0, y], resized[1, y], resized[0 if reverse else 2, y]
        for x in range(resized.shape[2]):
            at = step * first[x]
            a = b = c = _HALF
            for k in range(count[x]):
                weight = weights[x, k]
                a += np.uint32(row[at]) * weight
                b += np.uint32(row[at + one]) * weight
                c += np.uint32(row[at + two]) * weight
                at += step
            to_a[x], to_b[x], to_c[x] = a >> _SHIFT, b >> _SHIFT, c >> _SHIFT


@_compiled
def _resize_columns(planes, first, count, weights, resized):  # type: ignore[no-untyped-def]
    """uint8 [P, H, W] -> `resized`, uint8 [P, h, W]."""
    totals = np.empty(resized.shape[2], np.uint32)
    for p in range(resized.shape[0]):
        for y in range(resized.shape[1]):
            totals[:] = _HALF
            for k in range(count[y]):
                row, weight = planes[p, first[y] + k], weights[y, k]
                for x in range(len(totals)):
                    totals[x] += np.uint32(row[x]) * weight
            target = resized[p, y]
            for x in range(len(totals)):
                target[x] = totals[x] >> _SHIFT
