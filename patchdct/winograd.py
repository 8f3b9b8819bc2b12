"""3 x 3 convolutions with 2.25 times fewer multiplications, for CPUs (Lavin and Gray, 2016).

Winograd's minimal filtering F(2x2, 3x3): an output tile of 2 x 2 pixels comes from an input tile of 4 x 4 pixels by 16
multiplications for each pair of channels, where a plain convolution takes 36. With tiles d, weights g and outputs y:

    y = A^t [ (G g G^t) * (B^t d B) ] A

B and A hold only 0, 1 and -1, so that rounding stays that of a plain convolution in float32. The 16 products, over all
tiles and channels, are 16 matrix products. PyTorch's own kernels on CPUs convolve plainly.

Shape legend: N maps of H x W pixels with C channels in and K out; T tiles of a pass.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

_Array: TypeAlias = npt.NDArray[Any]

#: About as many tiles go through the matrix products at once: enough for these, few enough for caches.
_TILES = 512
#: Floats between the 16 matrices of a pass. At distances of a power of two, all of a tile shares one set of a cache.
_GAP = 16

_compiled = njit(nogil=True, cache=True, error_model="numpy")
_inlined = njit(nogil=True, cache=True, error_model="numpy", forceinline=True)


def transform_weights(weight: Tensor) -> Tensor:
    """Weights [K, C, 3, 3] -> G g G^t, float32 [16, C, K], for `convolve`."""
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
    wide = torch.einsum("ar,bs,kcrs->abck", g, g, weight.detach().double().cpu())
    return wide.flatten(0, 1).float().contiguous()


def convolve(x: Tensor, weights: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """A convolution of kernel 3, stride 1 and padding 1, without gradients.

    Args:
        x: float32 [N, C, H, W] on a CPU, fastest in channels_last.
        weights: from `transform_weights`.
        bias: float32 [K].
        relu: whether negative outputs become 0.

    Returns:
        float32 [N, K, H, W] in channels_last.
    """
    (n, channels, height, width), outputs = x.shape, weights.shape[2]
    down, across = -(-height // 2), -(-width // 2)
    maps = x.permute(0, 2, 3, 1).contiguous().numpy()
    bias = x.new_zeros(outputs) if bias is None else bias.detach()
    y = torch.empty((n, height, width, outputs))
    rows = max(1, _TILES // across)  # of tiles, over all maps
    band = np.zeros((4, 2 * across + 2, channels), np.float32)
    tiles, products = _matrices(rows * across, channels), _matrices(rows * across, outputs)
    for first in range(0, n * down, rows):
        count = min(rows, n * down - first)
        used, results = tiles[:, : count * across], products[:, : count * across]
        _cut(maps, first, count, band, used.unflatten(0, (4, 4)).numpy())
        torch.bmm(used, weights, out=results)
        _join(results.unflatten(0, (4, 4)).numpy(), first, count, bias.numpy(), relu, y.numpy())
    return y.permute(0, 3, 1, 2)


def _matrices(rows: int, columns: int) -> Tensor:
    """Room for 16 matrices."""
    distance = rows * columns + _GAP
    return torch.empty(16 * distance).as_strided((16, rows, columns), (distance, columns, 1))


@_inlined
def _spread(a: Any, b: Any, c: Any, d: Any) -> Any:
    """B^t of four pixels in a line."""
    return a - c, b + c, c - b, b - d


@_inlined
def _gather(a: Any, b: Any, c: Any, d: Any) -> Any:
    """A^t of four products in a line."""
    return a + b + c, b - c - d


@_compiled
def _cut(maps: _Array, first: int, count: int, band: _Array, tiles: _Array) -> None:
    """B^t d B of `count` rows of tiles from row `first` on: maps [N, H, W, C] -> tiles [4, 4, T, C].

    `band`, zeros at first, is room for the four rows of pixels of a row of tiles, in a ring of zeros.
    """
    _, height, width, channels = maps.shape
    down, across = -(-height // 2), -(-width // 2)
    x, t = band, 0
    for row in range(first, first + count):
        top = 2 * (row % down) - 1
        for i in range(4):
            if 0 <= top + i < height:
                for j in range(width):
                    for c in range(channels):
                        band[i, 1 + j, c] = maps[row // down, top + i, j, c]
            else:
                band[i, 1 : width + 1] = 0
        for j in range(0, 2 * across, 2):
            for c in range(channels):
                s0 = _spread(x[0, j, c], x[1, j, c], x[2, j, c], x[3, j, c])
                s1 = _spread(x[0, j + 1, c], x[1, j + 1, c], x[2, j + 1, c], x[3, j + 1, c])
                s2 = _spread(x[0, j + 2, c], x[1, j + 2, c], x[2, j + 2, c], x[3, j + 2, c])
                s3 = _spread(x[0, j + 3, c], x[1, j + 3, c], x[2, j + 3, c], x[3, j + 3, c])
                for a in range(4):
                    u0, u1, u2, u3 = _spread(s0[a], s1[a], s2[a], s3[a])
                    tiles[a, 0, t, c], tiles[a, 1, t, c], tiles[a, 2, t, c], tiles[a, 3, t, c] = u0, u1, u2, u3
            t += 1


@_compiled
def _join(products: _Array, first: int, count: int, bias: _Array, relu: bool, y: _Array) -> None:
    """A^t m A of the products m [4, 4, T, K], with bias, into rows of tiles of the maps y [N, H, W, K]."""
    _, height, width, outputs = y.shape
    down, across = -(-height // 2), -(-width // 2)
    floor = np.float32(0 if relu else -np.inf)
    m, t = products, 0
    for row in range(first, first + count):
        out, i = y[row // down], 2 * (row % down)
        for j in range(0, 2 * across, 2):
            # The odd last row and column of tiles hold pixels that are not there: they are written first, and over.
            below, right = min(i + 1, height - 1), min(j + 1, width - 1)
            for k in range(outputs):
                g0 = _gather(m[0, 0, t, k], m[1, 0, t, k], m[2, 0, t, k], m[3, 0, t, k])
                g1 = _gather(m[0, 1, t, k], m[1, 1, t, k], m[2, 1, t, k], m[3, 1, t, k])
                g2 = _gather(m[0, 2, t, k], m[1, 2, t, k], m[2, 2, t, k], m[3, 2, t, k])
                g3 = _gather(m[0, 3, t, k], m[1, 3, t, k], m[2, 3, t, k], m[3, 3, t, k])
                upper, lower = _gather(g0[0], g1[0], g2[0], g3[0]), _gather(g0[1], g1[1], g2[1], g3[1])
                out[below, right, k] = max(lower[1] + bias[k], floor)
                out[below, j, k] = max(lower[0] + bias[k], floor)
                out[i, right, k] = max(upper[1] + bias[k], floor)
                out[i, j, k] = max(upper[0] + bias[k], floor)
            t += 1
