"""The mask loss of PatchDCT, pure.

Shape legend: N RoIs, P = N*s*s patches, D and E coefficients of a mask and of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from patchdct.patches import MIXED
from patchdct.targets import Targets

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "sl1": F.smooth_l1_loss,
    "l2": F.mse_loss,
}


def distance(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean distance between coefficients that `DCT_LOSS_TYPE` names.

    Raises:
        ValueError: `kind` is none of l1, sl1, l2.
    """
    if kind not in DISTANCES:
        raise ValueError(f"MODEL.ROI_MASK_HEAD.DCT_LOSS_TYPE is {kind!r}; accepted are {', '.join(DISTANCES)}")
    return DISTANCES[kind]


def mask_loss(
    vectors: Tensor,
    blocks: Sequence[tuple[Tensor, Tensor]],
    targets: Targets,
    *,
    weights: Sequence[float],
    scale: float = 1.0,
    kind: str = "l1",
) -> Tensor:
    """The scalar scale * (w0 * L_dct + sum over blocks of w_s * (L_cls + L_vec)).

    Args:
        vectors: DCT-Mask prediction [N, D].
        blocks: per block, patch logits [P, 3] and patch vectors [P, E].
        targets: see `targets.Targets`; a patch's vector counts only where the ground truth is mixed.
        weights: one for the DCT-Mask stage and one a block.
        scale: MASK_LOSS_PARA.
        kind: see `distance`.

    Without RoIs, or without mixed patches, the terms concerned are 0 and still have a gradient (of zeros), so that
    every parameter takes part in a distributed step.
    """
    far = distance(kind)
    loss = weights[0] * (far(vectors.float(), targets.vectors) if len(vectors) else vectors.sum())
    mixed = targets.patch_classes == MIXED
    any_mixed = bool(mixed.any())
    for weight, (logits, patch_vectors) in zip(weights[1:], blocks, strict=True):
        cls = F.cross_entropy(logits.float(), targets.patch_classes) if len(logits) else logits.sum()
        if any_mixed:
            vec = far(patch_vectors[mixed].float(), targets.patch_vectors[mixed])
        else:
            vec = 0.0 * patch_vectors.sum()
        loss = loss + weight * (cls + vec)
    return scale * loss
