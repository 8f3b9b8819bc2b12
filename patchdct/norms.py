"""Which normalisation layers a model config asks for, and whether they can be trained on a device."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode

from patchdct.errors import ModelError

#: What detectron2 takes for a NORM.
NORMS = ("", "FrozenBN", "BN", "SyncBN", "GN", "LN", "naiveSyncBN", "naiveSyncBN_N", "nnSyncBN")


def check_norms(
    cfg: CfgNode, device: str | torch.device, *, workers: int = 1, batch_size: int | None = None
) -> tuple[str, ...]:
    """Refuse normalisation that training on this device, by so many workers, would fail with.

    Returns:
        Sentences for the log, on what is allowed and seldom meant.

    Raises:
        ModelError: a name that detectron2 does not know; SyncBN on a CPU, for which PyTorch has none; layers that
            synchronise workers whose shares of the batch differ, as one would wait for passes that others do not make.
    """
    said = []
    for key, norm in _norms(cfg).items():
        if norm not in NORMS:
            raise ModelError(f"{key} must be one of {', '.join(map(repr, NORMS))}, not {norm!r}")
        if norm in ("SyncBN", "nnSyncBN") and torch.device(device).type == "cpu":
            raise ModelError(
                f"{key} is {norm}, which PyTorch has for GPUs only; on a CPU take BN, naiveSyncBN, GN or FrozenBN"
            )
        if "Sync" in norm and (batch_size or 0) % workers:
            raise ModelError(
                f"{key} is {norm}, with which a batch must be a multiple of the {workers} workers, not {batch_size}"
            )
        if norm == "BN" and workers > 1:
            said.append(
                f"{key} is BN: each of the {workers} workers normalises by its own images, and the statistics that are "
                "stored are worker 0's; SyncBN, on GPUs, normalises by those of all"
            )
    return tuple(said)


def _norms(cfg: CfgNode) -> dict[str, str]:
    """The keys of the parts that the model has."""
    model = cfg.MODEL
    norms = {"MODEL.FPN.NORM": model.FPN.NORM, "MODEL.ROI_BOX_HEAD.NORM": model.ROI_BOX_HEAD.NORM}
    if "resnet" in model.BACKBONE.NAME:
        norms = {"MODEL.RESNETS.NORM": model.RESNETS.NORM, **norms}
    if model.MASK_ON:
        norms["MODEL.ROI_MASK_HEAD.NORM"] = model.ROI_MASK_HEAD.NORM
    return norms
