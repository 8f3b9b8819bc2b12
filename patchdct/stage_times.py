"""How long the parts of a detectron2 model take, one after another; and what the machine that they run on is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import detectron2
import torch
import torchvision  # type: ignore[import-untyped]
from torch import nn

#: The stages of a model, in their order: what is called for each, below the model. What a model lacks is left out.
STAGES = {
    "normalise": "preprocess_image",
    "backbone": "backbone.forward",
    "rpn": "proposal_generator.forward",
    "box_head": "roi_heads._forward_box",
    "mask_head": "roi_heads._forward_mask",
}
#: From the call to the first of these: copying the images to a GPU, and resizing them there if they are.
TRANSFER = "transfer"


def synchronize() -> None:
    """Wait for all GPUs that this process uses; nothing without one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def timed(model: nn.Module, note: Callable[[str, float], None]) -> Iterator[None]:
    """Have the stages of a model noted while it is applied, with their seconds; on a GPU each one is waited for.

    Args:
        model: a GeneralizedRCNN, or anything with some of the parts that `STAGES` names.
        note: called with the name of a stage, and how long it took. On a GPU the first stage is `TRANSFER`, which
            begins where this context does and ends with the first of the others.
    """
    begun = _now()
    first = True

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            nonlocal first
            start = _now()
            if first and torch.cuda.is_available():
                note(TRANSFER, start - begun)
            first = False
            result = call(*args, **kwargs)
            note(name, _now() - start)
            return result

        return measured

    changed: list[tuple[object, str]] = []
    try:
        for name, path in STAGES.items():
            *parents, method = path.split(".")
            owner: Any = model
            for parent in parents:
                owner = getattr(owner, parent, None)
            if owner is not None and hasattr(owner, method) and method not in vars(owner):
                setattr(owner, method, wrapped(name, getattr(owner, method)))
                changed.append((owner, method))
        yield
    finally:
        for owner, method in changed:
            delattr(owner, method)


def gpus() -> int:
    """How many GPUs this process can use."""
    return torch.cuda.device_count()


def device() -> str:
    """The name of the GPU that a labeler takes; "cpu" without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def versions() -> dict[str, str | None]:
    """The versions of what the model runs on; CUDA's is None without a GPU."""
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def _now() -> float:
    synchronize()
    return time.perf_counter()
