"""A ResNet-FPN that may end before res5, for small models."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_short_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """detectron2's `build_resnet_fpn_backbone` over the stages that FPN.IN_FEATURES names, whichever is the last.

    detectron2 derives its topmost, pooled level from "p5" by name; here it is derived from the last level there is.
    """
    fpn = build_resnet_fpn_backbone(cfg, input_shape)
    fpn.top_block.in_feature = "p" + cfg.MODEL.FPN.IN_FEATURES[-1].removeprefix("res")
    return fpn
