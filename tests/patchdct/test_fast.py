"""What is done to a model before inference changes its speed, and neither its masks nor the model itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from detectron2.modeling import GeneralizedRCNN
from pycocotools import mask as mask_api
from torch import nn

from patchdct import fast, scenes
from patchdct.build import build_model
from patchdct.checkpoint import read_checkpoint
from patchdct.config import load_config
from patchdct.predict import Prediction, Predictor
from tests.patchdct import small


@pytest.fixture(scope="module")
def trained() -> tuple[GeneralizedRCNN, Any]:
    """The demo's model and its config, with detections that are worth keeping."""
    checkpoint = read_checkpoint(small.CONFIGS / "patchdct_demo.pth")
    assert checkpoint.config is not None
    cfg = load_config(text=checkpoint.config, overrides=["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.5"])
    return build_model(cfg, weights=checkpoint)[0], cfg


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [scenes.draw_scene(seed).image for seed in range(6)]


def with_statistics(norm: nn.Module) -> nn.Module:
    """As after training: nothing is 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
    return norm.eval()


@pytest.mark.parametrize("kind", ["FrozenBN", "BN", "naiveSyncBN"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [None, F.relu, torch.tanh])
def test_folded_normalisation(kind, bias, activation):
    """Statistics, gain, shift, epsilon and bias all go into the convolution, and what follows it stays."""
    torch.manual_seed(0)
    conv = Conv2d(4, 6, 3, bias=bias, norm=with_statistics(get_norm(kind, 6)), activation=activation).eval()
    x = torch.randn(2, 4, 8, 8)
    quick = fast.optimised(nn.Sequential(conv))
    with torch.inference_mode():
        torch.testing.assert_close(quick(x), conv(x), atol=1e-5, rtol=0)
    assert not any(isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d) for module in quick.modules())


def test_normalisation_of_the_input():
    """GN normalises by what it sees: it cannot be folded, and must not be lost."""
    torch.manual_seed(0)
    conv = Conv2d(4, 32, 3, norm=get_norm("GN", 32), activation=F.relu).eval()
    x = torch.randn(2, 4, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(fast.optimised(conv)(x), conv(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("geometry", [(1, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 2)])
def test_wide_convolutions(geometry, groups):
    """Only the geometry for which Winograd's algorithm is written may go by it."""
    stride, padding, dilation = geometry
    torch.manual_seed(0)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "activation": F.relu}
    conv = Conv2d(128, 128, 3, **options).eval()
    quick = fast.optimised(conv)
    assert isinstance(quick, fast.WinogradConv2d) == (geometry == (1, 1, 1) and groups == 1)
    x = torch.randn(2, 128, 9, 12)
    with torch.inference_mode():
        torch.testing.assert_close(quick(x), conv(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("blocks", [1, 2])
def test_masks_of_the_head(blocks, monkeypatch):
    """The mask head gives the same masks when all its 3 x 3 convolutions go by Winograd's algorithm."""
    torch.manual_seed(0)
    monkeypatch.setattr(fast, "_WIDE", small.CHANNELS)
    head = small.head(blocks=blocks)
    quick = fast.optimised(head)
    kinds = [type(module).__name__ for module in quick.modules()]
    assert (kinds.count("WinogradConv2d"), kinds.count("FusedConv2d")) == (7, 2)
    (x, fine), found = small.pooled(11), small.detections([11])
    with torch.inference_mode():
        expected, masks = (one(x, fine, found)[0].pred_masks.clone() for one in (head, quick))
    assert masks.shape == (11, 1, 112, 112)
    torch.testing.assert_close(masks, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_no_rois(dtype, monkeypatch):
    """An image without detections must not stop a batch: the kernels have to take maps of none."""
    monkeypatch.setattr(fast, "_WIDE", small.CHANNELS)
    quick = fast.optimised(small.head(), dtype=dtype)
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        [found] = quick(*small.pooled(0), small.detections([0]))
    assert found.pred_masks.shape == (0, 1, 112, 112)
    assert found.pred_masks.dtype == torch.float32


def test_same_labels(trained, pictures):
    """The optimised model labels scenes as the model does, to the character of each RLE but for rounding."""
    model, cfg = trained
    expected = Predictor(model, cfg)(pictures)
    found = Predictor(fast.optimised(model), cfg)(pictures)
    pairs = [pair for a, b in zip(expected, found, strict=True) for pair in zip(a.counts, b.counts, strict=True)]
    assert len(pairs) > 40
    assert sum(a != b for a, b in pairs) <= 1
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.classes, b.classes)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)


def test_model_stays_as_it_is(trained):
    """A training that is measured in between goes on with its own weights, names and gradients."""
    model, _ = trained
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quick = fast.optimised(model.train(), dtype=torch.bfloat16)
    assert model.training
    assert not quick.training
    after = model.eval().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(isinstance(module, fast.FusedConv2d | fast.WinogradConv2d) for module in model.modules())
    assert quick.roi_heads.box_predictor.cls_score.weight is model.roi_heads.box_predictor.cls_score.weight


def test_half_precision(trained, pictures):
    """bfloat16 moves edges a little; with boxes rounded to it, as by autocast alone, masks are plainly worse."""
    model, cfg = trained
    expected = Predictor(model, cfg)(pictures)
    found = Predictor(fast.optimised(model, dtype=torch.bfloat16), cfg, precision="bf16")(pictures)
    ours, plain = (_overlap(expected, other) for other in (found, Predictor(model, cfg, precision="bf16")(pictures)))
    assert ours > 0.98 > plain


def _overlap(expected: list[Prediction], found: list[Prediction]) -> float:
    """The mean IoU of each expected mask with the nearest that was found."""
    overlaps: list[float] = []
    for a, b in zip(expected, found, strict=True):
        first, second = ([{"size": [256, 256], "counts": counts.encode()} for counts in x.counts] for x in (a, b))
        overlaps += mask_api.iou(first, second, [0] * len(second)).max(1).tolist()
    return float(np.mean(overlaps))


def test_what_stays_in_float32(trained, pictures):
    """Features that boxes are rounded by, and the scores that rank detections, are float32 in the fast preset."""
    model, cfg = trained
    quick = fast.optimised(model, dtype=torch.bfloat16)
    seen: dict[str, torch.dtype] = {}
    heads = quick.roi_heads
    for name in ("box_pooler", "mask_pooler", "fine_mask_pooler"):
        heads.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0][0].dtype})
        )
    heads.box_predictor.register_forward_hook(
        lambda _, __, outputs: seen.update(scores=outputs[0].dtype, deltas=outputs[1].dtype)
    )
    Predictor(quick, cfg, precision="bf16")(pictures[:1])
    assert seen == dict.fromkeys(("box_pooler", "mask_pooler", "fine_mask_pooler", "scores", "deltas"), torch.float32)
    assert quick.backbone.bottom_up.stem.conv1.weight.dtype == torch.bfloat16
