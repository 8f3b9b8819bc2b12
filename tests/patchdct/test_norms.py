"""Normalisation layers: what a config asks for is built, trained where it can be, and refused where it cannot."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from patchdct.build import build_model
from patchdct.config import load_config
from patchdct.errors import ModelError
from patchdct.norms import check_norms
from tests.patchdct import small

KEYS = ("MODEL.RESNETS.NORM", "MODEL.FPN.NORM", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM")
LAYERS = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm, "GN": nn.GroupNorm}


def normed(norm):
    """A small model config with this norm everywhere, wide enough for the 32 groups of GN."""
    return small.config(
        *(word for key in KEYS for word in (key, norm)),
        *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.ROI_MASK_HEAD.HIDDEN_FEATURES", 32),
        *("MODEL.ROI_BOX_HEAD.NUM_CONV", 1, "MODEL.ROI_BOX_HEAD.CONV_DIM", 32),
    )


def batch():
    masks, boxes = small.ellipses(3)
    truth = Instances((small.IMAGE, small.IMAGE))
    truth.gt_boxes, truth.gt_classes, truth.gt_masks = Boxes(boxes), torch.arange(3), BitMasks(masks)
    return [{"image": 255 * torch.rand(3, small.IMAGE, small.IMAGE), "instances": truth} for _ in range(2)]


@pytest.mark.parametrize("norm", LAYERS)
def test_norms_in_every_part(norm):
    """A NORM that one part of the model passes over, or that its layers cannot be built or trained with."""
    torch.manual_seed(3)
    model = build_model(normed(norm))[0].train()
    parts = {
        "backbone.bottom_up": model.backbone.bottom_up,
        "fpn": model.backbone.fpn_lateral2,
        "box head": model.roi_heads.box_head,
        "mask head": model.roi_heads.mask_head,
    }
    layers = {name: [m for m in part.modules() if isinstance(m, LAYERS[norm])] for name, part in parts.items()}
    assert all(layers.values()), layers
    with EventStorage():
        sum(model(batch()).values()).backward()
    for name, of_part in layers.items():
        assert all(layer.weight.grad is not None for layer in of_part), name
        assert any(bool(layer.weight.grad.any()) for layer in of_part), name


def test_sync_bn_on_a_cpu():
    """PyTorch's SyncBatchNorm raises in the first forward pass of CPU workers, from deep inside the model."""
    for key in KEYS:
        cfg = small.config(key, "SyncBN")
        with pytest.raises(ModelError, match=rf"^{key} is SyncBN, .* GPUs only; on a CPU take BN, naiveSyncBN, GN"):
            check_norms(cfg, "cpu")
        check_norms(cfg, torch.device("cuda", 0))
    assert check_norms(small.config("MODEL.RESNETS.NORM", "SyncBN"), "cuda", workers=8, batch_size=16) == ()


def test_bn_of_several_workers():
    """BN of small shares trains worse, and nothing else would say why."""
    cfg = small.config("MODEL.FPN.NORM", "GN")
    assert check_norms(cfg, "cpu") == ()
    assert check_norms(cfg, "cpu", workers=2) == (
        "MODEL.RESNETS.NORM is BN: each of the 2 workers normalises by its own images, and the statistics that are "
        "stored are worker 0's; SyncBN, on GPUs, normalises by those of all",
    )


def test_published_norms():
    """Frozen statistics need no word; the NORM of a ResNet that the model does not have is not asked for."""
    for name in ("r50_1x", "swinb_3x"):
        assert check_norms(load_config(small.CONFIGS / f"patchdct_{name}.yaml"), "cpu", workers=8) == ()
    unused = load_config(small.CONFIGS / "patchdct_swinb_3x.yaml", ["MODEL.RESNETS.NORM", "SyncBN"])
    assert check_norms(unused, "cpu") == ()


def test_unknown_norm():
    """detectron2 answers a name that it does not know with a KeyError."""
    with pytest.raises(ModelError, match=r"^MODEL\.FPN\.NORM must be one of '', 'FrozenBN', 'BN', .*, not 'bn'$"):
        check_norms(small.config("MODEL.FPN.NORM", "bn"), "cpu")


def test_workers_that_wait_for_each_other_have_equal_shares():
    """A worker with more micro-batches than another would wait for ever in a layer that synchronises them."""
    cfg = small.config("MODEL.FPN.NORM", "naiveSyncBN")
    assert not [said for said in check_norms(cfg, "cpu", workers=2, batch_size=8) if "Sync" in said.split(":")[0]]
    with pytest.raises(ModelError, match="a batch must be a multiple of the 2 workers, not 9"):
        check_norms(cfg, "cpu", workers=2, batch_size=9)
