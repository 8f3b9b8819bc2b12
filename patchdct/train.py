"""Fitting a model on one machine: optimizer, schedule, step and loop. The distributed job builds on the same pieces."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A learning rate over `steps`: linear warm-up, then cosine down to a hundredth of `lr`.

    `weight_decay` spares normalisation layers and biases. `clip` bounds the norm of the gradient. `ema` is the decay of
    the averaged weights (0: none).
    """

    steps: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.0
    precision: str = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step from outside: losses by name (their sum as "loss"), rate, seconds, and those of waiting for data."""

    step: int
    losses: dict[str, float]
    lr: float
    seconds: float
    data_seconds: float


class DivergedError(RuntimeError):
    """The loss or its gradient is not finite."""


def prepare(*, seed: int, threads: int | None = None) -> str:
    """Seed torch, and set how many threads a CPU uses (None: as many as there are) -> the device to train on."""
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # warns of a call that detectron2 makes
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)  # vanishing gradients would slow a CPU's RoIAlign by orders of magnitude
    if threads:
        torch.set_num_threads(threads)
    return "cuda" if torch.cuda.is_available() else "cpu"


def learning_rate(step: int, schedule: Schedule) -> float:
    """The rate of step 0, 1, ... steps - 1.

    >>> s = Schedule(steps=1000, lr=1.0, warmup=100)
    >>> learning_rate(0, s), learning_rate(99, s), round(learning_rate(999, s), 3)
    (0.01, 1.0, 0.01)
    """
    warm = min(1.0, (step + 1) / max(1, schedule.warmup))
    left = 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
    return schedule.lr * warm * (0.01 + 0.99 * left) if step >= schedule.warmup else schedule.lr * warm


def build_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW; no weight decay on vectors (biases, normalisation) and on Swin's relative position tables."""
    decay: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            table = name.endswith(("relative_position_bias_table", "absolute_pos_embed"))
            (spared if parameter.ndim <= 1 or table else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": schedule.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.999))


class Average:
    """Exponential moving average of a model's floats, with a horizon that grows with the steps taken."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after `step` (from 0)."""
        decay = min(self._decay, (step + 1) / (step + 10))
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)


def train_step(
    model: nn.Module, batch: list[dict[str, object]], optimizer: torch.optim.Optimizer, schedule: Schedule
) -> dict[str, Tensor]:
    """Forward, backward and update on one batch -> the losses, detached.

    Raises:
        DivergedError: a loss or the gradient is not finite; the parameters are then as before the step.
    """
    dtype = PRECISIONS[schedule.precision]
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        try:
            losses = model(batch)
        except FloatingPointError as error:  # detectron2's, for proposals that are not finite
            raise DivergedError(str(error)) from error
    total = sum(losses.values(), torch.zeros((), device=device))
    if not torch.isfinite(total):
        values = ", ".join(f"{name} {float(value.detach()):.3g}" for name, value in losses.items())
        raise DivergedError(f"the loss is not finite: {values}")
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
    if not torch.isfinite(norm):
        raise DivergedError("the gradient is not finite")
    optimizer.step()
    return {"loss": total.detach(), **{k: v.detach() for k, v in losses.items()}}


def fit(
    model: nn.Module,
    batches: Iterable[list[dict[str, object]]],
    schedule: Schedule,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[tuple[Progress, dict[str, Tensor]]]:
    """Train `model` in place for `schedule.steps` and yield after each step.

    Yields:
        The progress, and the weights to keep: the average's if there is one, else the model's own (alive, not copies).

    Raises:
        DivergedError: see `train_step`.
    """
    model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, schedule)
    average = Average(model, schedule.ema) if schedule.ema else None
    source = iter(batches)
    model.train()
    with EventStorage() as storage:
        for step in range(schedule.steps):
            start = clock()
            batch = next(source)
            waited = clock() - start
            rate = learning_rate(step, schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate
            storage.iter = step
            losses = train_step(model, batch, optimizer, schedule)
            if average:
                average.update(model, step)
            yield (
                Progress(
                    step=step,
                    losses={k: float(v) for k, v in losses.items()},
                    lr=rate,
                    seconds=clock() - start,
                    data_seconds=waited,
                ),
                average.state if average else model.state_dict(),
            )
