"""How a model is fitted: steps, batch and rates from a model config's SOLVER, the rate of each step, the optimizer."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from patchdct.errors import ModelError

Optimizer: TypeAlias = Literal["sgd", "adamw"]
Decay: TypeAlias = Literal["step", "cosine"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]

#: The type of the forward pass under autocast; None: no autocast. The weights are float32 always.
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

#: By their names under SOLVER.
OPTIMIZERS: dict[str, Optimizer] = {"SGD": "sgd", "AdamW": "adamw"}
DECAYS: dict[str, Decay] = {"WarmupMultiStepLR": "step", "WarmupCosineLR": "cosine"}

#: Where a cosine ends that SOLVER does not describe, as part of the rate.
COSINE_END = 0.01

#: Swin's learned positions, which its recipe spares from weight decay.
POSITIONS = ("relative_position_bias_table", "absolute_pos_embed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Everything about a training that is neither model nor data.

    steps: updates, of `batch_size` images each. micro_batch: at most so many images in one forward pass of a worker
    (None: no limit). lr: the rate between warm-up and decay; `learning_rate` says what comes of warmup, warmup_factor,
    decay, milestones, gamma and cosine_end. weight_decay is overruled by weight_decay_norm in normalisation layers and
    by weight_decay_bias, if it is not None, in biases; bias_lr_factor multiplies the rate of biases. clip: the greatest
    norm of the whole gradient (0: none). ema: the decay of the averaged weights (0: none).
    """

    steps: int
    batch_size: int
    lr: float
    micro_batch: int | None = None
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    warmup: int = 0
    warmup_factor: float = 0.001
    decay: Decay = "step"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    cosine_end: float = COSINE_END
    weight_decay: float = 0.0
    weight_decay_norm: float = 0.0
    weight_decay_bias: float | None = None
    bias_lr_factor: float = 1.0
    clip: float = 0.0
    precision: Precision = "fp32"
    ema: float = 0.0


def resolve(
    cfg: CfgNode,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    optimizer: Optimizer | None = None,
    lr: float | None = None,
    warmup: int | None = None,
    decay: Decay | None = None,
    weight_decay: float | None = None,
    clip: float | None = None,
    precision: Precision | None = None,
    ema: float = 0.0,
) -> tuple[Schedule, tuple[str, ...]]:
    """What is given, and for the rest what SOLVER of the model config says.

    Another batch than SOLVER.IMS_PER_BATCH, without an lr: the linear rule (Goyal et al. 2017) multiplies the rate by
    the ratio of the batches, and divides by it the steps, milestones and warm-up that are not given. Other steps than
    SOLVER.MAX_ITER: milestones keep their places relative to the end. SOLVER.AMP means bf16, which needs no scaling of
    the loss and runs on CPUs, too; detectron2 takes fp16. A cosine that SOLVER asks for ends at SOLVER.BASE_LR_END.

    Returns:
        The schedule, and a sentence for the log on each thing in it that neither the caller nor SOLVER names.

    Raises:
        ModelError: a value under SOLVER that is wrong or not supported, or another optimizer without a rate for it.
    """
    solver = cfg.SOLVER
    _check(solver)
    batch = solver.IMS_PER_BATCH if batch_size is None else batch_size
    ratio = batch / solver.IMS_PER_BATCH if lr is None else 1.0
    length = max(1, round(solver.MAX_ITER / ratio)) if steps is None else steps
    intended = _known(solver, "OPTIMIZER", OPTIMIZERS)
    if lr is None and optimizer not in (None, intended):
        raise ModelError(
            f"schedule.optimizer is {optimizer}, but SOLVER.BASE_LR {solver.BASE_LR:g} of the model config is one for "
            f"{intended}: set schedule.lr as well"
        )
    schedule = Schedule(
        steps=length,
        batch_size=batch,
        micro_batch=micro_batch,
        optimizer=optimizer or intended,
        lr=solver.BASE_LR * ratio if lr is None else lr,
        momentum=solver.MOMENTUM,
        warmup=round(solver.WARMUP_ITERS / ratio) if warmup is None else warmup,
        warmup_factor=solver.WARMUP_FACTOR,
        decay=decay or _known(solver, "LR_SCHEDULER_NAME", DECAYS),
        milestones=tuple(round(step * length / solver.MAX_ITER) for step in solver.STEPS),
        gamma=solver.GAMMA,
        cosine_end=COSINE_END if decay else solver.BASE_LR_END / solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY if weight_decay is None else weight_decay,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        clip=_clip(solver) if clip is None else clip,
        precision=precision or ("bf16" if solver.AMP.ENABLED else "fp32"),
        ema=ema,
    )
    given = {"lr": lr is not None, "steps": steps is not None, "warm-up": warmup is not None}
    said = [*_departures(schedule, solver, given)]
    if schedule.precision == "bf16" and precision is None:
        said.append("SOLVER.AMP is taken as bf16; GPUs that lack it need schedule.precision fp16")
    return schedule, tuple(said)


def learning_rate(step: int, schedule: Schedule) -> float:
    """The rate of step 0, 1, ... steps - 1.

    decay "step", as in detectron2: from warmup_factor * lr at step 0 linearly to lr at step `warmup`; from each
    milestone on gamma times as much. decay "cosine": from lr / warmup at step 0 linearly to lr at step warmup - 1, and
    then on a cosine over all steps, which ends at cosine_end * lr.

    >>> s = Schedule(steps=90, batch_size=16, lr=1.0, warmup=10, warmup_factor=0.1, milestones=(60, 80))
    >>> [round(learning_rate(step, s), 3) for step in (0, 5, 10, 59, 60, 79, 80)]
    [0.1, 0.55, 1.0, 1.0, 0.1, 0.1, 0.01]
    >>> s = Schedule(steps=1000, batch_size=6, lr=1.0, warmup=100, decay="cosine")
    >>> [round(learning_rate(step, s), 3) for step in (0, 99, 500, 999)]
    [0.01, 1.0, 0.505, 0.01]
    """
    if schedule.decay == "cosine":
        if step < schedule.warmup:
            return schedule.lr * (step + 1) / schedule.warmup
        left = 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
        return schedule.lr * (schedule.cosine_end + (1 - schedule.cosine_end) * left)
    done = min(1.0, step / schedule.warmup) if schedule.warmup else 1.0
    warm = schedule.warmup_factor + (1 - schedule.warmup_factor) * done
    return float(schedule.lr * warm * schedule.gamma ** bisect_right(schedule.milestones, step))


def build_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW with betas (0.9, 0.999), over the parameters that are not frozen.

    The groups are detectron2's: normalisation layers and biases have the weight decay, and biases the rate, that the
    schedule gives them; Swin's learned positions have no decay. The rate of a group is `learning_rate` times its entry
    "lr_factor".
    """
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        weight_decay=schedule.weight_decay,
        weight_decay_norm=schedule.weight_decay_norm,
        bias_lr_factor=schedule.bias_lr_factor,
        weight_decay_bias=schedule.weight_decay_bias,
        overrides={name: {"weight_decay": 0.0} for name in POSITIONS},
    )
    for group in groups:
        group["lr_factor"] = group["lr"]
        group["lr"] *= schedule.lr
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.999))
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum)


def describe_shares(batch_size: int, world: int, micro_batch: int | None = None) -> str:
    """How `data.shares` cuts a batch, in a line for the log.

    >>> describe_shares(16, 2, 4)
    '16 images a step: 2 workers x 2 micro-batches of 4'
    >>> describe_shares(16, 8), describe_shares(6, 1)
    ('16 images a step: 8 workers x 2', '6 images a step')
    """
    cut = [_split(share, math.ceil(share / (micro_batch or share))) for share in _split(batch_size, world)]
    images, passes = _range(size for sizes in cut for size in sizes), _range(len(sizes) for sizes in cut)
    parts = [f"{world} workers"] if world > 1 else []
    if passes != "1":
        parts.append(f"{passes} micro-batches of {images}")
    elif parts:
        parts.append(images)
    return f"{batch_size} images a step" + (f": {' x '.join(parts)}" if parts else "")


def _split(total: int, parts: int) -> tuple[int, ...]:
    return tuple(total // parts + (number < total % parts) for number in range(parts))


def _range(numbers: Iterable[int]) -> str:
    found = set(numbers)
    return f"{min(found)} to {max(found)}" if len(found) > 1 else str(*found)


#: What is accepted for keys of SOLVER: the keys, in words, as a test.
_ACCEPTED: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (("MAX_ITER", "IMS_PER_BATCH"), "1 or more", lambda value: value >= 1),
    (("BASE_LR", "GAMMA"), "more than 0", lambda value: 0 < value < math.inf),
    (
        ("WARMUP_ITERS", "BASE_LR_END", "WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "BIAS_LR_FACTOR"),
        "0 or more",
        lambda value: 0 <= value < math.inf,
    ),
    (("MOMENTUM", "WARMUP_FACTOR"), "in 0..1", lambda value: 0 <= value <= 1),
    (
        ("WEIGHT_DECAY_BIAS",),
        "None or a number, 0 or more",
        lambda value: value is None or (type(value) in (int, float) and 0 <= value < math.inf),
    ),
    (
        ("STEPS",),
        "whole numbers that rise",
        lambda value: all(type(step) is int and step > 0 for step in value) and all(a < b for a, b in pairwise(value)),
    ),
    (("WARMUP_METHOD",), "linear, the one supported", lambda value: value == "linear"),
    (("NESTEROV", "RESCALE_INTERVAL"), "False, the one supported", lambda value: not value),
    (("REFERENCE_WORLD_SIZE",), "0: steps and rate follow schedule.batch_size", lambda value: value == 0),
)


def _check(solver: CfgNode) -> None:
    for keys, words, accepts in _ACCEPTED:
        for key in keys:
            if not accepts(solver[key]):
                raise ModelError(f"SOLVER.{key} of the model config must be {words}, not {solver[key]!r}")


def _known(solver: CfgNode, key: str, names: Mapping[str, Any]) -> Any:
    if solver[key] not in names:
        raise ModelError(f"SOLVER.{key} of the model config must be {' or '.join(names)}, not {solver[key]!r}")
    return names[solver[key]]


def _clip(solver: CfgNode) -> float:
    """SOLVER.CLIP_GRADIENTS as a norm of the whole gradient, as the Swin recipe has it."""
    clips = solver.CLIP_GRADIENTS
    if not clips.ENABLED:
        return 0.0
    if (clips.CLIP_TYPE, clips.NORM_TYPE) != ("full_model", 2.0):
        raise ModelError(
            f"SOLVER.CLIP_GRADIENTS of the model config must have CLIP_TYPE full_model and NORM_TYPE 2.0, not "
            f"{clips.CLIP_TYPE} and {clips.NORM_TYPE}; or set schedule.clip"
        )
    return max(0.0, clips.CLIP_VALUE)


def _departures(schedule: Schedule, solver: CfgNode, given: Mapping[str, bool]) -> Iterable[str]:
    """Sentences on what another batch or another length made of SOLVER's numbers."""
    by_batch = [
        ("lr", f"{schedule.lr:g}", f"{solver.BASE_LR:g}"),
        ("steps", str(schedule.steps), str(solver.MAX_ITER)),
        ("warm-up", str(schedule.warmup), str(solver.WARMUP_ITERS)),
    ]
    by_batch = [one for one in by_batch if not given[one[0]]]
    milestones = ("milestones", _listed(schedule.milestones), _listed(solver.STEPS))
    if schedule.decay == "step" and not given["steps"]:
        by_batch.append(milestones)
    if schedule.batch_size != solver.IMS_PER_BATCH:
        batches = f"batches of {schedule.batch_size} images instead of SOLVER's {solver.IMS_PER_BATCH}"
        if not given["lr"]:
            yield f"{batches}: by the linear rule (Goyal et al. 2017) {_instead(by_batch)}"
        elif by_batch:
            kept = ", ".join(f"{name} {new}" for name, new, _ in by_batch)
            yield f"{batches}: nothing else is scaled, as lr is given ({kept})"
    if schedule.decay == "step" and given["steps"] and milestones[1] != milestones[2]:
        yield f"{schedule.steps} steps instead of SOLVER's {solver.MAX_ITER}: {_instead([milestones])}"
    if schedule.warmup >= schedule.steps:
        yield f"the warm-up of {schedule.warmup} steps does not end within the {schedule.steps} of the training"


def _instead(changes: Iterable[tuple[str, str, str]]) -> str:
    return ", ".join(f"{name} {new} instead of {old}" for name, new, old in changes if new != old)


def _listed(steps: Iterable[int]) -> str:
    return " and ".join(map(str, steps)) or "none"
