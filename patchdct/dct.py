"""Two-dimensional DCT-II of square masks, in zigzag order, as in DCT-Mask and PatchDCT.

With the orthonormal matrix T (n x n), T[k, m] = a_k cos(pi k (2m + 1) / 2n):

    F = T M T^t    (encode)        M = T^t F T    (decode)

Row index = frequency along rows (vertical), column index = frequency along columns. A vector holds the first `dim`
coefficients in JPEG's zigzag order; the rest are zero, so decoding needs only the first few rows of T.

Shape legend: B masks, n pixels a side, K frequencies a side that a vector can reach, D coefficients.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def zigzag(n: int, dim: int) -> tuple[tuple[int, int], ...]:
    """The first `dim` (row, column) frequencies of an n x n transform in zigzag order.

    >>> zigzag(8, 6)
    ((0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2))

    Raises:
        ValueError: `dim` is not in 1..n*n.
    """
    if not 1 <= dim <= n * n:
        raise ValueError(f"an {n}x{n} mask has 1 to {n * n} DCT coefficients, not {dim}")
    order = []
    for d in range(2 * n - 1):
        rows = range(max(0, d - n + 1), min(d, n - 1) + 1)
        order += [(r, d - r) for r in (reversed(rows) if d % 2 == 0 else rows)]
        if len(order) >= dim:
            break
    return tuple(order[:dim])


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II matrix T, float64 [n, n]; rows are frequencies."""
    k = torch.arange(n, dtype=torch.float64)[:, None]
    m = torch.arange(n, dtype=torch.float64)[None, :]
    t = math.sqrt(2 / n) * torch.cos(math.pi * k * (2 * m + 1) / (2 * n))
    t[0] = math.sqrt(1 / n)
    return t


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a table that was made in inference serves training later
def _tables(n: int, dim: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """T's reachable rows [K, n], and each coefficient's place in a flattened K x K spectrum [D]."""
    order = zigzag(n, dim)
    reach = 1 + max(max(pair) for pair in order)
    places = torch.tensor([r * reach + c for r, c in order], device=device)
    return dct_matrix(n)[:reach].to(device=device, dtype=dtype), places


def encode(masks: Tensor, dim: int) -> Tensor:
    """Masks [B, n, n] of any dtype -> the first `dim` coefficients, float64 [B, D]."""
    t, places = _tables(masks.shape[-1], dim, masks.device, torch.float64)
    spectra = t @ masks.to(torch.float64) @ t.T
    return spectra.flatten(1)[:, places]


def decode(vectors: Tensor, n: int) -> Tensor:
    """Coefficients [B, D] -> masks, float32 [B, n, n]: pixel intensities of about 0..1, over- and undershoot included.

    Computed in float32 whatever autocast says.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        t, places = _tables(n, vectors.shape[1], vectors.device, torch.float32)
        spectra = vectors.new_zeros((len(vectors), len(t) ** 2), dtype=torch.float32)
        spectra = spectra.index_copy(1, places, vectors.float()).unflatten(1, (len(t), len(t)))
        return t.T @ spectra @ t


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _decoding_map(n: int, dim: int, size: int, device: torch.device) -> Tensor:
    t, places = _tables(n, dim, torch.device("cpu"), torch.float64)
    sampled = t[:, torch.arange(size) * n // size]  # what nearest interpolation from n to `size` pixels keeps
    return torch.einsum("ri,cj->rcij", sampled, sampled).flatten(2).flatten(0, 1)[places].float().to(device)


def decode_resized(vectors: Tensor, n: int, size: int) -> Tensor:
    """Decode [B, D] at n x n and resize to float32 [B, size, size] by nearest neighbour, as one linear map.

    Equal to `F.interpolate(decode(vectors, n)[:, None], size)` up to float rounding; one matrix product for all RoIs.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        maps = _decoding_map(n, vectors.shape[1], size, vectors.device)
        return (vectors.float() @ maps).unflatten(1, (size, size))
