"""A mask as a grid of patches, and the three classes of a patch (PatchDCT).

Shape legend: B masks, P patches of all of them, m = mask side, p = patch side, s = m / p patches a side; patch (i, j)
covers rows i*p.. and columns j*p.., and stands at place i*s + j of its mask.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from patchdct import dct

BACKGROUND, MIXED, FOREGROUND = 0, 1, 2


def split(masks: Tensor, patch: int) -> Tensor:
    """[B, m, m] -> [B * s * s, p, p], row-major."""
    return rearrange(masks, "b (i p) (j q) -> (b i j) p q", p=patch, q=patch)


def assemble(patches: Tensor, side: int) -> Tensor:
    """[B * s * s, p, p] with s = `side` -> [B, m, m]; the inverse of `split`."""
    return rearrange(patches, "(b i j) p q -> b (i p) (j q)", i=side, j=side)


def label(patches: Tensor) -> Tensor:
    """The class of each binary patch [P, p, p] -> int64 [P]: background if no pixel is set, foreground if all are."""
    ones = patches.flatten(1).sum(1)
    full = patches[0].numel() if len(patches) else 0
    return torch.where(ones == 0, BACKGROUND, torch.where(ones == full, FOREGROUND, MIXED))


def classify(logits: Tensor, threshold: float) -> Tensor:
    """Patch logits [P, 3] -> classes int64 [P] by the rule of inference.

    A pure class wins as soon as its probability exceeds `threshold` (0.3 in the paper), even against a larger one for
    mixed; the larger of the two wins if both do, background on a tie. If neither does, the most probable class wins,
    which is mixed for any threshold below 1/3.
    """
    probabilities = logits.float().softmax(1)
    background, _, foreground = probabilities.unbind(1)
    pure = torch.where(foreground > background, FOREGROUND, BACKGROUND)
    return torch.where(torch.maximum(background, foreground) > threshold, pure, probabilities.argmax(1))


def decode(classes: Tensor, vectors: Tensor, patch: int) -> Tensor:
    """Patch classes [P] and DCT vectors [P, D] -> float32 patches [P, p, p].

    Background is all 0, foreground all 1 (a DC coefficient of p, all others 0); only mixed patches use their vector.
    The decisions carry no gradient, the vectors do.
    """
    vectors = vectors.float()
    vectors = torch.where((classes == MIXED)[:, None], vectors, 0.0)
    dc = torch.where(classes == FOREGROUND, float(patch), 0.0)
    vectors = vectors + torch.nn.functional.pad(dc[:, None], (0, vectors.shape[1] - 1))
    return dct.decode_resized(vectors, patch, patch)
