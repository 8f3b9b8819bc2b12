"""The mask head: one DCT-Mask stage, then PatchDCT blocks that refine its mask (PatchDCT).

Without blocks (NUM_STAGE 1) it is DCT-Mask (Shen et al., CVPR 2021), the method that PatchDCT refines.

Shape legend: N RoIs over all images, C channels, R pooled resolution (14), f fine resolution (42), s patches a side
(14), P = N*s*s patches, D and E coefficients of a mask (300) and of a patch (6), H hidden features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, cat, get_norm
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY, BaseMaskRCNNHead
from detectron2.structures import Instances
from einops import rearrange
from fvcore.nn import weight_init
from torch import Tensor, nn

from patchdct import dct, losses, patches, quality, targets

#: So many RoIs go through the convolutions at once on a CPU: what is between the layers then stays in its caches. The
#: kernels of a CPU keep memory for each new number, for good; of these there are few.
_PIECE = 8


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNPatchDCTHead(BaseMaskRCNNHead):
    """Predicts 112 x 112 masks of pixel intensities (about 0..1, neither logits nor clamped).

    Parameter names are those of published PatchDCT checkpoints. The blocks share all weights, so that a state dict does
    not depend on their number, as long as there is one.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: Sequence[int],
        conv_norm: str,
        dct_vector_dim: int,
        mask_size: int,
        pooler_resolution: int,
        hidden_features: int,
        fine_features_resolution: int,
        mask_size_assemble: int,
        patch_size: int,
        patch_dct_vector_dim: int,
        mask_loss_para: float,
        dct_loss_type: str,
        num_stage: int,
        mask_loss_para_each_stage: Sequence[float],
        patch_threshold: float,
        eval_gt: bool,
        vis_period: int = 0,
    ) -> None:
        """Arguments are the keys of `MODEL.ROI_MASK_HEAD` of the same names; `num_stage` counts the DCT-Mask stage.

        What a user can get wrong, `config.check_config` has refused before.
        """
        super().__init__(vis_period=vis_period)
        side = mask_size // patch_size
        assert mask_size == mask_size_assemble == side * patch_size, (mask_size, mask_size_assemble, patch_size)
        assert fine_features_resolution % side == 0, (fine_features_resolution, side)
        assert len(mask_loss_para_each_stage) == num_stage >= 1, (mask_loss_para_each_stage, num_stage)

        self.num_blocks = num_stage - 1
        self.mask_size, self.patch_size, self.side = mask_size, patch_size, side
        self.fine_size = fine_features_resolution
        self.dct_vector_dim, self.patch_dct_vector_dim = dct_vector_dim, patch_dct_vector_dim
        self.patch_threshold = patch_threshold
        self.loss_weights = tuple(mask_loss_para_each_stage)
        self.loss_scale, self.loss_kind = mask_loss_para, dct_loss_type
        self.eval_gt = eval_gt

        def conv(inputs: int, width: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> Conv2d:
            return Conv2d(
                inputs,
                width,
                kernel_size=kernel,
                stride=stride,
                padding=padding,
                bias=not conv_norm,
                norm=get_norm(conv_norm, width),
                activation=F.relu,
            )

        self.mask_fcns = []
        channels = input_shape.channels
        for i, width in enumerate(conv_dims[:-1], start=1):
            layer = conv(channels, width)
            weight_init.c2_msra_fill(layer)
            self.add_module(f"mask_fcn{i}", layer)
            self.mask_fcns.append(layer)
            channels = width
        self.predictor = nn.Sequential(
            nn.Linear(channels * pooler_resolution**2, hidden_features),
            nn.ReLU(),
            nn.Linear(hidden_features, hidden_features),
            nn.ReLU(),
            nn.Linear(hidden_features, dct_vector_dim),
        )
        if self.num_blocks:
            fine, hidden, ratio = input_shape.channels, hidden_features, fine_features_resolution // side
            self.reshape = conv(1, fine)
            self.fusion = nn.Sequential(conv(fine, fine), conv(fine, fine))
            self.downsample = nn.Sequential(
                conv(fine, hidden, kernel=ratio, stride=ratio, padding=0), conv(hidden, hidden)
            )
            self.predictor_bfg = nn.Conv2d(hidden, 3 * num_classes, 1)
            self.predictor1 = nn.Conv2d(hidden, patch_dct_vector_dim * num_classes, 1)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """The constructor's arguments from a config that `add_patchdct_config` prepared."""
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            "input_shape": input_shape,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [head.CONV_DIM] * (head.NUM_CONV + 1),
            "conv_norm": head.NORM,
            "dct_vector_dim": head.DCT_VECTOR_DIM,
            "mask_size": head.MASK_SIZE,
            "pooler_resolution": head.POOLER_RESOLUTION,
            "hidden_features": head.HIDDEN_FEATURES,
            "fine_features_resolution": head.FINE_FEATURES_RESOLUTION,
            "mask_size_assemble": head.MASK_SIZE_ASSEMBLE,
            "patch_size": head.PATCH_SIZE,
            "patch_dct_vector_dim": head.PATCH_DCT_VECTOR_DIM,
            "mask_loss_para": head.MASK_LOSS_PARA,
            "dct_loss_type": head.DCT_LOSS_TYPE,
            "num_stage": head.NUM_STAGE,
            "mask_loss_para_each_stage": head.MASK_LOSS_PARA_EACH_STAGE,
            "patch_threshold": head.PATCH_THRESHOLD,
            "eval_gt": head.EVAL_GT,
            "vis_period": cfg.VIS_PERIOD,
        }

    def forward(
        self, x: Tensor, fine: Tensor | None, instances: Sequence[Instances]
    ) -> dict[str, Tensor] | Sequence[Instances]:
        """Losses in training, masks in inference.

        Args:
            x: pooled features [N, C, R, R].
            fine: pooled fine features [N, C, f, f], for the same boxes in the same order; None without blocks.
            instances: of each image; together N. Training needs gt_classes, gt_masks and proposal_boxes, inference
                pred_classes (and gt_masks with pred_boxes under EVAL_GT).

        Returns:
            {"loss_mask": scalar} in training. In inference the instances, each with `pred_masks` float32 [n, 1, m, m],
            and `evidence` on them, float32 [n, len(quality.COLUMNS)] (not under EVAL_GT).
        """
        if self.training:
            vectors = self.whole_mask(x)
            classes = cat([i.gt_classes for i in instances])
            blocks = self.refine(vectors, fine, classes)
            truth = targets.from_proposals(instances, **self._encoding())
            return {
                "loss_mask": losses.mask_loss(
                    vectors, blocks, truth, weights=self.loss_weights, scale=self.loss_scale, kind=self.loss_kind
                )
            }
        if self.eval_gt:
            for per_image in instances:
                per_image.pred_masks = self._upper_bound(per_image)[:, None]
            return instances
        numbers = [len(i) for i in instances]
        found = self._masks(x, fine, cat([i.pred_classes for i in instances]))
        for per_image, mask, evidence in zip(instances, *(part.split(numbers) for part in found), strict=True):
            per_image.pred_masks, per_image.evidence = mask[:, None], evidence
        return instances

    def _masks(self, x: Tensor, fine: Tensor | None, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Inference on pooled features of N RoIs and their classes -> masks float32 [N, m, m], and their evidence."""
        size = _PIECE if x.device.type == "cpu" else max(1, len(x))
        vectors = self.predictor(torch.cat([self._convolved(piece).flatten(1) for piece in x.split(size)]))
        found = []
        for first in range(0, max(1, len(x)), size):
            piece = slice(first, first + size)
            coarse = self._coarse(vectors[piece])
            blocks = self._refine(coarse, None if fine is None else _for_kernels(fine[piece]), classes[piece])
            found.append(self._last_masks(vectors[piece], coarse, blocks))
        masks, evidence = zip(*found, strict=True)
        return torch.cat(masks), torch.cat(evidence)

    def whole_mask(self, x: Tensor) -> Tensor:
        """The DCT-Mask stage: pooled features [N, C, R, R] -> DCT vectors [N, D]."""
        return self.predictor(self._convolved(x).flatten(1))

    def _convolved(self, x: Tensor) -> Tensor:
        for layer in self.mask_fcns:
            x = layer(x)
        return x

    def refine(self, vectors: Tensor, fine: Tensor | None, classes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The PatchDCT blocks: (patch logits [P, 3], patch vectors [P, E]) of each, for each RoI's class [N].

        Between blocks a patch takes its most probable class; nothing is detached.
        """
        return self._refine(self._coarse(vectors), fine, classes)

    def _coarse(self, vectors: Tensor) -> Tensor | None:
        """The masks [N, f, f] that blocks begin with; None without blocks."""
        return dct.decode_resized(vectors, self.mask_size, self.fine_size) if self.num_blocks else None

    def _refine(self, coarse: Tensor | None, fine: Tensor | None, classes: Tensor) -> list[tuple[Tensor, Tensor]]:
        blocks: list[tuple[Tensor, Tensor]] = []
        if coarse is None:
            return blocks
        assert fine is not None, "blocks refine with fine features"
        for _ in range(self.num_blocks):
            if blocks:
                logits, patch_vectors = blocks[-1]
                mask = self._assemble(logits.argmax(1), patch_vectors)
                coarse = F.interpolate(mask[:, None], self.fine_size)[:, 0]
            features = self.downsample(self.fusion(fine + self.reshape(coarse[:, None])))
            logits = self._predict(self.predictor_bfg, 3, features, classes)
            patch_vectors = self._predict(self.predictor1, self.patch_dct_vector_dim, features, classes)
            blocks.append((logits, patch_vectors))
        return blocks

    @staticmethod
    def _predict(layer: nn.Conv2d, components: int, features: Tensor, classes: Tensor) -> Tensor:
        """A 1x1 convolution with class-major outputs, only for each RoI's class: [N, H, s, s] -> [P, components]."""
        assert layer.bias is not None
        weight = rearrange(layer.weight, "(c k) h 1 1 -> c k h", k=components)[classes]
        bias = rearrange(layer.bias, "(c k) -> c k 1", k=components)[classes]
        return rearrange(weight @ features.flatten(2) + bias, "n k p -> (n p) k")

    def _last_masks(
        self, vectors: Tensor, coarse: Tensor | None, blocks: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """The masks of the last stage, float32 [N, m, m], and the evidence on them."""
        if coarse is None:
            masks = dct.decode(vectors, self.mask_size)
            return masks, quality.of_masks(masks)
        logits, patch_vectors = blocks[-1]
        classes = patches.classify(logits, self.patch_threshold)
        masks = self._assemble(classes, patch_vectors)
        return masks, quality.of_patches(masks, logits, patch_vectors, classes, coarse, patch=self.patch_size)

    def _assemble(self, classes: Tensor, vectors: Tensor) -> Tensor:
        """Patch classes [P] and vectors [P, E] -> masks float32 [N, m, m]."""
        return patches.assemble(patches.decode(classes, vectors, self.patch_size), self.side)

    def _upper_bound(self, instances: Instances) -> Tensor:
        """What perfect predictions would give for `instances`: float32 [n, m, m]; zeros without ground truth."""
        boxes = instances.pred_boxes
        if not instances.has("gt_masks"):
            return torch.zeros((len(instances), self.mask_size, self.mask_size), device=boxes.device)
        crops = targets.crop(instances.gt_masks, boxes, self.mask_size)
        truth = targets.encode(crops, **{k: v for k, v in self._encoding().items() if k != "size"})
        if not self.num_blocks:
            return dct.decode(truth.vectors, self.mask_size)
        return self._assemble(truth.patch_classes, truth.patch_vectors)

    def _encoding(self) -> dict[str, int]:
        return {
            "size": self.mask_size,
            "dim": self.dct_vector_dim,
            "patch": self.patch_size,
            "patch_dim": self.patch_dct_vector_dim,
        }


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNPatchDCTHead_NSTAGE(MaskRCNNPatchDCTHead):  # noqa: N801 - as the authors wrote it
    """The head under the name that configs from before February 2023 give it."""


def _for_kernels(maps: Tensor) -> Tensor:
    """Maps [N, C, H, W] in the layout and type in which convolutions compute, so that they are rearranged once."""
    kind = maps.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else maps.dtype
    return maps.to(dtype, memory_format=torch.channels_last)
