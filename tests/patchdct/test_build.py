"""Whole models from their configs: the names and shapes that published checkpoints have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from detectron2 import modeling
from torch import nn

from patchdct.build import build_model
from patchdct.checkpoint import save_checkpoint
from patchdct.config import load_config
from patchdct.errors import ModelError

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "model"

#: Config, classes, entries and elements of the state dict.
PUBLISHED = [
    ("r50_1x", 80, 323, 110_624_092),
    ("r50_1x_2stage", 80, 323, 110_624_092),
    ("r101_3x", 80, 578, 129_668_444),
    ("rx101_3x", 80, 578, 174_008_156),
    ("swinb_3x", 80, 415, 173_374_060),
    ("r50_city_1x", 8, 323, 109_590_892),
    ("r50_city_1x_fine", 8, 323, 109_590_892),
]

#: A model that builds and runs in a moment.
TINY = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 8),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    *("MODEL.ROI_MASK_HEAD.HIDDEN_FEATURES", 32, "MODEL.ROI_HEADS.NUM_CLASSES", 3),
]


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def outline(name: str) -> nn.Module:
    """The model of a published config without memory for its weights, where detectron2 can build it so."""
    cfg = load_config(CONFIGS / f"patchdct_{name}.yaml", ["MODEL.DEVICE", "meta"])
    if "swin" in name:
        return build_model(cfg)[0]
    with torch.device("meta"):
        return modeling.build_model(cfg)


def mask_head_shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """The mask head's tensors, from the specification."""
    weights = {
        **{f"mask_fcn{i}": (256, 256, 3, 3) for i in range(1, 5)},
        "predictor.0": (1024, 50176),
        "predictor.2": (1024, 1024),
        "predictor.4": (300, 1024),
        "reshape": (256, 1, 3, 3),
        "fusion.0": (256, 256, 3, 3),
        "fusion.1": (256, 256, 3, 3),
        "downsample.0": (1024, 256, 3, 3),
        "downsample.1": (1024, 1024, 3, 3),
        "predictor1": (6 * classes, 1024, 1, 1),
        "predictor_bfg": (3 * classes, 1024, 1, 1),
    }
    named = {}
    for name, shape in weights.items():
        named[f"roi_heads.mask_head.{name}.weight"] = shape
        named[f"roi_heads.mask_head.{name}.bias"] = shape[:1]
    return named


@pytest.mark.parametrize(("name", "classes", "entries", "elements"), PUBLISHED)
def test_published_model(name, classes, entries, elements):
    """Any other name, shape or count, and the authors' checkpoint of this config does not load."""
    found = shapes(outline(name))
    assert len(found) == entries
    assert sum(torch.Size(shape).numel() for shape in found.values()) == elements

    head = {key: shape for key, shape in found.items() if key.startswith("roi_heads.mask_head.")}
    assert head == mask_head_shapes(classes)
    assert len(head) == 28
    if classes == 80:
        assert sum(torch.Size(shape).numel() for shape in head.values()) == 68_817_916

    others = {
        key: shape for key, shape in found.items() if key not in head and not key.startswith("backbone.bottom_up.")
    }
    expected = {
        "proposal_generator.rpn_head.conv": (256, 256, 3, 3),
        "proposal_generator.rpn_head.objectness_logits": (3, 256, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas": (12, 256, 1, 1),
        "roi_heads.box_head.fc1": (1024, 12544),
        "roi_heads.box_head.fc2": (1024, 1024),
        "roi_heads.box_predictor.cls_score": (classes + 1, 1024),
        "roi_heads.box_predictor.bbox_pred": (4 * classes, 1024),
        **{f"backbone.fpn_output{i}": (256, 256, 3, 3) for i in range(2, 6)},
    }
    widths = (128, 256, 512, 1024) if "swin" in name else (256, 512, 1024, 2048)
    expected |= {f"backbone.fpn_lateral{i}": (256, width, 1, 1) for i, width in zip(range(2, 6), widths, strict=True)}
    assert others == {
        **{f"{key}.weight": shape for key, shape in expected.items()},
        **{f"{key}.bias": shape[:1] for key, shape in expected.items()},
    }


def test_resnet_names():
    """The backbone's names as in detectron2's model zoo."""
    found = shapes(outline("r50_1x"))
    layers = {key.removeprefix("backbone.bottom_up.").rsplit(".", 1)[0] for key in found if ".bottom_up." in key}
    expected = {"stem.conv1"}
    for stage, blocks in zip(range(2, 6), (3, 4, 6, 3), strict=True):
        expected |= {f"res{stage}.{block}.conv{i}" for block in range(blocks) for i in (1, 2, 3)}
        expected.add(f"res{stage}.0.shortcut")
    assert layers == expected | {f"{layer}.norm" for layer in expected}
    norm = "backbone.bottom_up.res5.0.shortcut.norm."
    assert {key.removeprefix(norm) for key in found if key.startswith(norm)} == {
        *("weight", "bias", "running_mean", "running_var")
    }


def test_two_blocks_share_their_weights():
    """A checkpoint of one block must load into two blocks, and the reverse."""
    assert shapes(outline("r50_1x")) == shapes(outline("r50_1x_2stage"))


def test_build_and_load(tmp_path):
    """A saved model builds again to the same detections, in evaluation mode, without touching the config."""
    cfg = load_config(CONFIGS / "patchdct_r50_1x.yaml", TINY)
    model, none = build_model(cfg)
    assert none is None
    assert not model.training
    save_checkpoint(tmp_path / "m.pth", model.state_dict(), categories=[(1, "a")], config_text=None, provenance=None)
    torch.manual_seed(1)
    again, checkpoint = build_model(cfg, weights=tmp_path / "m.pth")
    assert not again.training
    assert checkpoint is not None
    assert checkpoint.categories == ((1, "a"),)
    image = torch.rand(3, 64, 96) * 255
    with torch.no_grad():
        first, second = (m([{"image": image}])[0]["instances"] for m in (model, again))
    assert len(first) > 0
    assert torch.equal(first.pred_boxes.tensor, second.pred_boxes.tensor)
    assert torch.equal(first.scores, second.scores)
    assert cfg.MODEL.DEVICE == "cuda"


def test_weights_of_other_classes(tmp_path):
    """Labeling with weights of other classes is refused; training from them starts the rest anew."""
    path = CONFIGS / "patchdct_r50_1x.yaml"
    model, _ = build_model(load_config(path, TINY))
    save_checkpoint(tmp_path / "m.pth", model.state_dict(), categories=None, config_text=None, provenance=None)
    other = load_config(path, [*TINY, "MODEL.ROI_HEADS.NUM_CLASSES", 5])
    with pytest.raises(
        ModelError, match=re.escape("8 have another shape (roi_heads.box_predictor.cls_score.weight is (4, ")
    ):
        build_model(other, weights=tmp_path / "m.pth")
    again, _ = build_model(other, weights=tmp_path / "m.pth", strict=False)
    for name in ("backbone.bottom_up.stem.conv1.weight", "roi_heads.mask_head.predictor.0.weight"):
        assert torch.equal(again.state_dict()[name], model.state_dict()[name])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["MODEL.ROI_MASK_HEAD.MASK_SIZE", 128], "MODEL.ROI_MASK_HEAD.MASK_SIZE (128) and "),
        (["MODEL.BACKBONE.NAME", "build_vit"], "No object named 'build_vit' found in 'BACKBONE' registry!"),
        (["MODEL.ROI_BOX_HEAD.NAME", "X"], "No object named 'X' found in 'ROI_BOX_HEAD' registry!"),
        (["MODEL.META_ARCHITECTURE", "X"], "No object named 'X' found in 'META_ARCH' registry!"),
        (["MODEL.RESNETS.DEPTH", 51], "detectron2 cannot build the model of this config (KeyError: 51)"),
        (["MODEL.FPN.IN_FEATURES", ["res9"]], "detectron2 cannot build the model of this config ("),
        (["MODEL.ROI_HEADS.NUM_CLASSES", -4], "detectron2 cannot build the model of this config ("),
    ],
)
def test_config_that_makes_no_model(overrides, expected):
    """What detectron2 trips over in a config reaches the user as a sentence."""
    cfg = load_config(CONFIGS / "patchdct_r50_1x.yaml", [*TINY, *overrides])
    with pytest.raises(ModelError, match=re.escape(expected)) as caught:
        build_model(cfg)
    assert "\n" not in str(caught.value)


def test_device_that_is_not_there():
    """A device that PyTorch does not see is refused before anything is built."""
    cfg = load_config(CONFIGS / "patchdct_r50_1x.yaml", TINY)
    with pytest.raises(ModelError, match="device 'gpu' is not one that PyTorch knows, such as cpu, cuda or cuda:1"):
        build_model(cfg, device="gpu")
    with pytest.raises(ModelError, match=r"device 'cuda:99' is not there: PyTorch sees \d+ CUDA devices"):
        build_model(cfg, device="cuda:99")
