"""Swin-B as a backbone: names, shapes, outputs and stochastic depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import nn

from patchdct.config import load_config
from patchdct.errors import ModelError
from patchdct.swin import StochasticDepth, SwinBackbone

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "model" / "patchdct_swinb_3x.yaml"

#: A Swin small enough for a forward pass in a test, with all parts of the large one.
SMALL = {"embed_dim": 8, "depths": (2, 2, 4, 2), "num_heads": (1, 2, 4, 8)}


@pytest.fixture(scope="module")
def swinb_fpn() -> nn.Module:
    """The backbone of the published config, in full size."""
    return build_backbone(load_config(CONFIG))


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published checkpoint's backbone, from the specification."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name, weight, bias=True):
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    add("bottom_up.patch_embed.proj", (128, 3, 4, 4))
    add("bottom_up.patch_embed.norm", (128,))
    for i, (depth, heads) in enumerate(zip((2, 2, 18, 2), (4, 8, 16, 32), strict=True)):
        d = 128 * 2**i
        for j in range(depth):
            block = f"bottom_up.layers.{i}.blocks.{j}"
            add(f"{block}.norm1", (d,))
            add(f"{block}.attn.qkv", (3 * d, d))
            add(f"{block}.attn.proj", (d, d))
            shapes[f"{block}.attn.relative_position_bias_table"] = (169, heads)
            shapes[f"{block}.attn.relative_position_index"] = (49, 49)
            add(f"{block}.norm2", (d,))
            add(f"{block}.mlp.fc1", (4 * d, d))
            add(f"{block}.mlp.fc2", (d, 4 * d))
        if i < 3:
            add(f"bottom_up.layers.{i}.downsample.norm", (4 * d,))
            add(f"bottom_up.layers.{i}.downsample.reduction", (2 * d, 4 * d), bias=False)
        add(f"bottom_up.norm{i}", (d,))
        add(f"fpn_lateral{i + 2}", (256, d, 1, 1))
        add(f"fpn_output{i + 2}", (256, 256, 3, 3))
    return shapes


def test_names_and_shapes(swinb_fpn):
    """Any other name or shape, and published weights do not load."""
    state = swinb_fpn.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected_shapes()
    assert len(state) == 373
    assert round(sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point()) / 1e6, 1) == 89.6
    assert state["bottom_up.layers.0.blocks.0.attn.relative_position_index"].dtype == torch.int64


def test_levels(swinb_fpn):
    """The heads find their features by these names and strides."""
    levels = swinb_fpn.bottom_up.output_shape()
    assert {name: (s.channels, s.stride) for name, s in levels.items()} == {
        f"stage{i}": (2 ** (i + 5), 2**i) for i in range(2, 6)
    }
    assert {name: s.stride for name, s in swinb_fpn.output_shape().items()} == {f"p{i}": 2**i for i in range(2, 7)}
    assert swinb_fpn.size_divisibility == 32


def test_drop_path_rates(swinb_fpn):
    """Without stochastic depth, or with other rates, training is not the published one."""
    blocks = [block for layer in swinb_fpn.bottom_up.layers for block in layer.blocks]
    rates = [block.drop_path.rate if isinstance(block.drop_path, StochasticDepth) else 0.0 for block in blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.2, 24).tolist())


def test_features_are_those_of_detectron2():
    """Renaming outputs must not change or swap them; odd image sizes are padded, not refused."""
    ours = SwinBackbone(**SMALL).eval()
    theirs = SwinTransformer(**SMALL, drop_path_rate=0.0).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 75, 101)
    with torch.no_grad():
        features, expected = ours(images), theirs(images)
    assert list(features) == ["stage2", "stage3", "stage4", "stage5"]
    assert [tuple(f.shape) for f in features.values()] == [
        (2, 8, 19, 26),
        (2, 16, 10, 13),
        (2, 32, 5, 7),
        (2, 64, 3, 4),
    ]
    for i, feature in enumerate(features.values()):
        assert torch.equal(feature, expected[f"p{i}"])


def test_stochastic_depth_in_training_only():
    """Labels must not depend on chance; training must."""
    model = SwinBackbone(**SMALL, drop_path_rate=0.5)
    image = torch.rand(1, 3, 32, 32).expand(16, -1, -1, -1)

    def distinct() -> int:
        with torch.no_grad():
            return len(model(image)["stage5"].flatten(1).unique(dim=0))

    assert model.eval() is model
    assert distinct() == 1
    assert model.train() is model
    assert distinct() > 1


def test_stochastic_depth_keeps_the_mean():
    """Each image is dropped whole or kept, scaled so that evaluation sees what training saw on average."""
    layer, x = StochasticDepth(0.2), torch.ones(10_000, 2, 3)
    out = layer(x)
    assert out.flatten(1).unique(dim=0).tolist() == [[0.0] * 6, [1.25] * 6]
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(layer.eval()(x), x)


def test_subset_of_stages():
    """MODEL.SWINT.OUT_FEATURES may leave stages out, but must name those that exist."""
    model = SwinBackbone(**SMALL, out_features=("stage5", "stage3"))
    with torch.no_grad():
        assert set(model(torch.rand(1, 3, 32, 32))) == {"stage3", "stage5"} == set(model.output_shape())
    with pytest.raises(ModelError, match="OUT_FEATURES must be among stage2, stage3, stage4, stage5, not"):
        SwinBackbone(**SMALL, out_features=("stage6",))


def test_frozen_stages_stay_frozen():
    """MODEL.BACKBONE.FREEZE_AT: `train()` must not switch dropping back on in what does not train."""
    cfg = load_config(CONFIG, ["MODEL.BACKBONE.FREEZE_AT", 3, "MODEL.SWINT.EMBED_DIM", 32])
    model = build_backbone(cfg, ShapeSpec(channels=3)).bottom_up.train()
    assert [layer.training for layer in model.layers] == [False, False, True, True]
    assert not any(p.requires_grad for p in model.layers[1].parameters())
    assert all(p.requires_grad for p in model.layers[2].parameters())


def test_bare_backbone():
    """`build_swinb_backbone` gives the stages without an FPN."""
    overrides = ["MODEL.BACKBONE.NAME", "build_swinb_backbone", "MODEL.SWINT.EMBED_DIM", 32]
    model = build_backbone(load_config(CONFIG, overrides))
    assert isinstance(model, SwinBackbone)
    assert model.size_divisibility == 32
