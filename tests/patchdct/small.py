"""Mask heads, models and ground truth that are small enough for tests on one core."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from patchdct.build import build_model
from patchdct.config import load_config
from patchdct.mask_head import MaskRCNNPatchDCTHead

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "model"
CLASSES, CHANNELS, IMAGE = 3, 8, 64


def head(*, blocks: int = 1, **changes: Any) -> MaskRCNNPatchDCTHead:
    """A narrow mask head with the masks, patches and vectors of the full one; its patches fall into all classes.

    The layers end in values of order 1, which PyTorch's initialisation of layers so narrow does not give.
    """
    settings = {
        **{"input_shape": ShapeSpec(channels=CHANNELS, width=14, height=14), "num_classes": CLASSES, "conv_norm": ""},
        **{"conv_dims": [CHANNELS] * 5, "hidden_features": 16, "pooler_resolution": 14, "fine_features_resolution": 42},
        **{"mask_size": 112, "mask_size_assemble": 112, "patch_size": 8, "dct_vector_dim": 300},
        **{"patch_dct_vector_dim": 6, "patch_threshold": 0.3, "num_stage": blocks + 1, "eval_gt": False},
        **{"mask_loss_para": 1.0, "mask_loss_para_each_stage": [1.0] * (blocks + 1), "dct_loss_type": "l1"},
    }
    built = MaskRCNNPatchDCTHead(**{**settings, **changes})
    gains = {"predictor.4": 30, "fusion.0": 3, "fusion.1": 3, "downsample.0": 3, "downsample.1": 3}
    with torch.no_grad():
        for name, gain in {**gains, "predictor1": 3, "predictor_bfg": 3}.items():
            built.get_submodule(name).weight *= gain
    return built.eval()


def pooled(count: int) -> tuple[Tensor, Tensor]:
    """Random pooled features and fine features of `count` RoIs."""
    return torch.randn(count, CHANNELS, 14, 14), torch.randn(count, CHANNELS, 42, 42)


def ellipses(count: int, size: int = IMAGE) -> tuple[Tensor, Tensor]:
    """Random filled ellipses: bool [count, size, size], and their boxes float32 [count, 4]."""
    centres, radii = size * (0.3 + 0.4 * torch.rand(count, 2)), size * (0.15 + 0.1 * torch.rand(count, 2))
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    offsets = torch.stack([x, y], -1)[None] - centres[:, None, None]
    masks = ((offsets / radii[:, None, None]) ** 2).sum(-1) < 1
    return masks, torch.cat([centres - radii, centres + radii], 1)


def proposals(counts: Sequence[int]) -> list[Instances]:
    """Foreground proposals of each image, so many, their boxes a little off; where none, without ground-truth masks."""
    images = []
    for count in counts:
        image = Instances((IMAGE, IMAGE))
        masks, boxes = ellipses(count)
        image.proposal_boxes = Boxes(boxes + 2 * torch.rand(count, 4) - 1)
        image.gt_classes = torch.randint(CLASSES, (count,))
        if count:
            image.gt_masks = BitMasks(masks)
        images.append(image)
    return images


def detections(counts: Sequence[int]) -> list[Instances]:
    """Detections of each image, so many."""
    images = []
    for count in counts:
        image = Instances((IMAGE, IMAGE))
        image.pred_boxes = Boxes(ellipses(count)[1])
        image.pred_classes = torch.randint(CLASSES, (count,))
        image.scores = torch.rand(count)
        images.append(image)
    return images


def config(*overrides: object) -> CfgNode:
    """The demo's model config, narrowed and for images of 64 to 96 pixels."""
    narrow = [
        *("MODEL.FPN.OUT_CHANNELS", 8, "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
        *("MODEL.ROI_MASK_HEAD.HIDDEN_FEATURES", 16, "MODEL.RPN.PRE_NMS_TOPK_TEST", 50),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5),
        *("INPUT.MIN_SIZE_TRAIN", "(64, 96)", "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96),
    ]
    return load_config(CONFIGS / "patchdct_demo.yaml", [*narrow, *overrides])


def model(cfg: CfgNode) -> GeneralizedRCNN:
    """The model of `cfg` with random weights, whose masks are not all alike."""
    built, _ = build_model(cfg)
    if not cfg.MODEL.MASK_ON:
        return built
    with torch.no_grad():
        mask_head = built.roi_heads.mask_head
        mask_head.predictor_bfg.weight *= 1000
        mask_head.predictor1.weight *= 30
    return built


def find(predictor, images):
    """What a `Predictor` or `TtaPredictor` finds in images as they are."""
    return predictor.find([predictor.prepare(image) for image in images])
