"""Swin-B (Liu et al., ICCV 2021) as a detectron2 backbone, alone and under an FPN."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor, nn

from patchdct.errors import ModelError


class StochasticDepth(nn.Module):
    """In training, drop the residual branch of an image with probability `rate`, and scale up those that stay.

    Without parameters (Huang et al., ECCV 2016).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """One draw for each image of x (B, ...)."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)


class SwinBackbone(SwinTransformer):
    """detectron2's Swin Transformer with the outputs named as in published PatchDCT configs: stage2 to stage5.

    Stage i + 2 is the output of layer i before patch merging, through a LayerNorm of its own, with embed_dim * 2^i
    channels at the stride 2^(i + 2). Input sides need not be multiples of anything: they are padded with zeros.

    Stochastic depth is put in afterwards, as detectron2 would import timm for it.
    """

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    def __init__(
        self,
        *,
        in_channels: int = 3,
        embed_dim: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (4, 8, 16, 32),
        window_size: int = 7,
        mlp_ratio: float = 4,
        drop_path_rate: float = 0.2,
        absolute_position: bool = False,
        out_features: Sequence[str] = ("stage2", "stage3", "stage4", "stage5"),
        frozen_stages: int = -1,
    ) -> None:
        """Build with random weights; `drop_path_rate` is that of the last block, the first has 0, linear in between."""
        stages = {f"stage{i + 2}": i for i in range(len(depths))}
        if not out_features or not set(out_features) <= set(stages):
            raise ModelError(f"MODEL.SWINT.OUT_FEATURES must be among {', '.join(stages)}, not {list(out_features)}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)  # detectron2's call
            super().__init__(
                in_chans=in_channels,
                embed_dim=embed_dim,
                depths=depths,
                num_heads=num_heads,
                window_size=window_size,
                mlp_ratio=mlp_ratio,
                drop_path_rate=0.0,
                ape=absolute_position,
                out_indices=sorted(stages[name] for name in out_features),
                frozen_stages=frozen_stages,
            )
        blocks = [block for layer in self.layers for block in layer.blocks]
        for i, block in enumerate(blocks[1:], start=1):
            block.drop_path = StochasticDepth(drop_path_rate * i / (len(blocks) - 1))

        self._out_features = [_stage(name) for name in self._out_features]
        self._out_feature_channels = {_stage(name): n for name, n in self._out_feature_channels.items()}
        self._out_feature_strides = {_stage(name): n for name, n in self._out_feature_strides.items()}
        self._size_divisibility = 32  # detectron2 sets it under a misspelt name

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps by stage of images (B, 3, H, W)."""
        return {_stage(name): features for name, features in super().forward(x).items()}

    def train(self, mode: bool = True) -> SwinBackbone:
        """As in PyTorch, but frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        return self


def _stage(name: str) -> str:
    """detectron2's name of an output to ours: "p0" to "stage2"."""
    return f"stage{int(name.removeprefix('p')) + 2}"


@BACKBONE_REGISTRY.register()
def build_swinb_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinBackbone:
    """The bare backbone, from `MODEL.SWINT` and `MODEL.BACKBONE.FREEZE_AT`."""
    swin = cfg.MODEL.SWINT
    return SwinBackbone(
        in_channels=input_shape.channels,
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        window_size=swin.WINDOW_SIZE,
        mlp_ratio=swin.MLP_RATIO,
        drop_path_rate=swin.DROP_PATH_RATE,
        absolute_position=swin.APE,
        out_features=swin.OUT_FEATURES,
        frozen_stages=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_swinb_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Swin under detectron2's FPN: levels p2 to p5 from the four stages, and p6 by max pooling."""
    return FPN(
        bottom_up=build_swinb_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
