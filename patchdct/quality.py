"""What the mask head knows of how good its masks are: a few figures a mask, nearly free, computed where the masks are.

Shape legend: n RoIs, m mask side, p patch side, s = m / p patches a side, P = n*s*s patches, E coefficients of a patch,
f pixels a side of the coarse mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchdct import patches

#: The columns of the evidence on a mask, in their order.
#:
#: expected_iou: the IoU of the mask with what the model expects, by patches: sum min(e, a) / sum max(e, a), where a is
#: the share of a patch's pixels that the mask has, and e = P(foreground) + P(mixed) * the mean of the patch's own
#: decoded vector, 0..1. Without patches each pixel is one, and e its value, clamped to 0..1.
#: boundary_uncertainty: the width of the doubtful band, in pixels of the m x m mask: how many values are within
#: 0.25 of the threshold 0.5, by how many pairs of neighbours lie on two sides of it.
#: mixed_share: the share of patches that were taken as mixed.
#: coarse_agreement: the IoU of the mask with that of the DCT-Mask stage, both at f x f.
COLUMNS = ("expected_iou", "boundary_uncertainty", "mixed_share", "coarse_agreement")

_THRESHOLD, _BAND = 0.5, 0.25


def of_patches(
    masks: Tensor, logits: Tensor, vectors: Tensor, classes: Tensor, coarse: Tensor, *, patch: int
) -> Tensor:
    """The evidence on masks that were put together from patches.

    Args:
        masks: [n, m, m], of the last stage.
        logits: [P, 3], the patch logits of that stage.
        vectors: [P, E], its patch vectors.
        classes: [P], as its patches were taken.
        coarse: [n, f, f], of the DCT-Mask stage.
        patch: p.

    Returns:
        float32 [n, 4], the figures of COLUMNS; 0 boundary_uncertainty where a mask has no boundary.
    """
    side = masks.shape[-1] // patch
    inside = masks >= _THRESHOLD
    _, mixed, foreground = logits.float().T.contiguous().softmax(0)  # along long rows, which is faster by far
    # The first DCT coefficient of a patch is p times its mean.
    expected = (foreground + mixed * (vectors[:, 0].float() / patch).clamp(0, 1)).view(-1, side**2)
    shares = inside.view(-1, side, patch, side * patch).float().sum(2).unflatten(2, (side, patch)).sum(3) / patch**2
    taken = (classes == patches.MIXED).view(-1, side**2).sum(1).float()
    return torch.stack(
        [
            _soft_iou(expected, shares.flatten(1)),
            _band_width(masks, inside),
            taken / side**2,
            _agreement(inside, coarse),
        ],
        1,
    )


def of_masks(masks: Tensor) -> Tensor:
    """The evidence on masks [n, m, m] of which only their values are known: NaN where patches would be needed."""
    masks = masks.float()
    inside = masks >= _THRESHOLD
    known = [_soft_iou(masks.clamp(0, 1).flatten(1), inside.flatten(1).float()), _band_width(masks, inside)]
    unknown = torch.full_like(known[0], float("nan"))
    return torch.stack([*known, unknown, unknown], 1)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """The IoU of masks [n, m, m] with others of the same RoIs, both at the threshold: float32 [n]; 1 if all empty."""
    first, second = (masks >= _THRESHOLD for masks in (first, second))
    union = (first | second).flatten(1).sum(1)
    return torch.where(union > 0, (first & second).flatten(1).sum(1) / union.clamp(min=1), 1.0)


def _soft_iou(expected: Tensor, shares: Tensor) -> Tensor:
    """Of [n, k] with [n, k], both in 0..1 -> [n]; 0 where both are 0."""
    return torch.minimum(expected, shares).sum(1) / torch.maximum(expected, shares).sum(1).clamp(min=1e-6)


def _band_width(masks: Tensor, inside: Tensor) -> Tensor:
    near = ((masks - _THRESHOLD).abs_() < _BAND).flatten(1).sum(1)
    across = (inside[:, :, 1:] ^ inside[:, :, :-1]).flatten(1).sum(1)
    down = (inside[:, 1:] ^ inside[:, :-1]).flatten(1).sum(1)
    edges = across + down
    return torch.where(edges > 0, near / edges.clamp(min=1), 0.0)


def _agreement(inside: Tensor, coarse: Tensor) -> Tensor:
    """The IoU of masks with coarse ones, at the pixels that nearest interpolation keeps."""
    size = coarse.shape[-1]
    kept = torch.arange(size, device=inside.device) * inside.shape[-1] // size
    fine = inside[:, kept[:, None], kept]
    coarse = coarse >= _THRESHOLD
    union = (fine | coarse).flatten(1).sum(1)
    return torch.where(union > 0, (fine & coarse).flatten(1).sum(1) / union.clamp(min=1), 1.0)
