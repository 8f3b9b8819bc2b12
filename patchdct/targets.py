"""From ground-truth masks to what the mask head learns (PatchDCT).

Shape legend: N foreground RoIs, s x s patches each, D coefficients of the mask, E of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor

from patchdct import dct, patches


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """vectors float32 [N, D]; patch_classes int64 [N*s*s]; patch_vectors float32 [N*s*s, E] (used where mixed)."""

    vectors: Tensor
    patch_classes: Tensor
    patch_vectors: Tensor


def crop(masks: BitMasks | PolygonMasks, boxes: Boxes, size: int) -> Tensor:
    """Instance masks cropped to their boxes at `size` x `size`, bool [N, size, size] (detectron2's crop_and_resize)."""
    cropped: Tensor = masks.crop_and_resize(boxes.tensor, size)
    return cropped.to(boxes.device)


def encode(masks: Tensor, *, dim: int, patch: int, patch_dim: int) -> Targets:
    """Binary masks [N, m, m] -> targets of the DCT-Mask stage and of every PatchDCT block."""
    cells = patches.split(masks, patch)
    return Targets(
        vectors=dct.encode(masks, dim).float(),
        patch_classes=patches.label(cells),
        patch_vectors=dct.encode(cells, patch_dim).float(),
    )


def from_proposals(instances: Sequence[Instances], *, size: int, dim: int, patch: int, patch_dim: int) -> Targets:
    """Targets of foreground proposals (fields gt_masks, proposal_boxes), in order; images without any add nothing."""
    crops = [crop(x.gt_masks, x.proposal_boxes, size) for x in instances if len(x)]
    device = instances[0].proposal_boxes.device if len(instances) else None
    masks = torch.cat(crops) if crops else torch.zeros((0, size, size), dtype=torch.bool, device=device)
    return encode(masks, dim=dim, patch=patch, patch_dim=patch_dim)
