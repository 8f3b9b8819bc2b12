"""Building a model from its config, with or without weights."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from detectron2 import modeling
from detectron2.config import CfgNode
from torch import nn

from patchdct import backbones, mask_head, roi_heads, swin
from patchdct.checkpoint import Checkpoint, load_weights, read_checkpoint
from patchdct.config import check_config
from patchdct.errors import ModelError

#: The modules whose import registers their classes and functions with detectron2, to be named in a config.
COMPONENTS = (mask_head, roi_heads, swin, backbones)

logger = logging.getLogger(__name__)


def build_model(
    cfg: CfgNode, *, device: str = "cpu", weights: str | Path | Checkpoint | None = None, strict: bool = True
) -> tuple[nn.Module, Checkpoint | None]:
    """Build the model that a config describes, in evaluation mode.

    Args:
        cfg: from `load_config`. Its `MODEL.DEVICE` and `MODEL.WEIGHTS` are not read.
        device: "cpu", "cuda", "cuda:1", ...
        weights: a local checkpoint file, or what was read from it; None leaves the random initial values.
        strict: whether the weights must fit completely, see `load_weights`.

    Returns:
        The model, and the checkpoint that its weights came from.

    Raises:
        ModelError: the config, the weights or the device cannot be used.
    """
    check_config(cfg)
    place = _device(device)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    try:
        model: nn.Module = modeling.build_model(cfg)
    except (LookupError, AssertionError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, ModelError):
            raise
        reason = " ".join(str(error.args[0] if error.args else "").split())
        raise ModelError(
            f"detectron2 cannot build the model of this config ({type(error).__name__}: {reason})"
        ) from error
    checkpoint = None
    if weights is not None:
        checkpoint = weights if isinstance(weights, Checkpoint) else read_checkpoint(weights)
        fit = load_weights(model, checkpoint, strict=strict)
        logger.info("%s: %s", checkpoint.path, fit)
    return model.to(place).eval(), checkpoint


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device {name!r} is not one that PyTorch knows, such as cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"device {name!r} is not there: PyTorch sees {torch.cuda.device_count()} CUDA devices")
    return device
