"""Fitting a model: one optimizer step over all workers, exactly resumable after any of them.

A step is a pure function of the state before it, the samples and (seed, step): random numbers are drawn anew from these
at each step, so that nothing of a generator has to be stored. How a batch is cut among workers and micro-batches enters
only through what detectron2 normalises within a forward pass.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from patchdct import distributed
from patchdct.schedule import PRECISIONS, Schedule, build_optimizer, learning_rate

#: So many steps in a row without an update, as float16 overflows at whatever scale of the loss, are no accident.
_SKIPS = 20

Sample = dict[str, Any]
#: A micro-batch's share of the batch, and its losses.
_Part: TypeAlias = tuple[float, dict[str, Tensor]]


class DivergedError(RuntimeError):
    """The loss or its gradient is not finite; the sentence names the step, the loss and the images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a step did: the batch's loss, this worker's part of each of its terms, rate, norm of the gradient."""

    step: int
    loss: float
    terms: dict[str, float]
    lr: float
    grad_norm: float


def prepare(*, seed: int, threads: int | None = None) -> torch.device:
    """Seed torch, and set how many threads a CPU uses (None: as many as there are) -> the device to train on."""
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # warns of a call that detectron2 makes
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)  # vanishing gradients would slow a CPU's RoIAlign by orders of magnitude
    if threads:
        torch.set_num_threads(threads)
    return distributed.device()


class Average:
    """Exponential moving average of a model, with a horizon that grows with the steps taken."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after `step` (from 0); what is no float is copied."""
        decay = min(self._decay, (step + 1) / (step + 10))
        own = self.model.state_dict()
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                own[name].lerp_(value, 1 - decay)
            else:
                own[name].copy_(value)


class Trainer:
    """A model with its optimizer, average and place in the schedule. Every worker of a group has one."""

    def __init__(self, model: nn.Module, schedule: Schedule, *, seed: int) -> None:
        """Wrap `model`, which is on its device, and is trained in place."""
        self.model = model.to(memory_format=torch.channels_last)
        self.schedule = schedule
        self.step = 0  # the next one
        self._seed = seed
        self._device = next(model.parameters()).device
        self._losses: nn.Module = _Losses(self.model)
        if distributed.world() > 1:
            self._losses = DistributedDataParallel(
                self._losses,
                device_ids=[self._device] if self._device.type == "cuda" else None,
                broadcast_buffers=False,
            )
        self._optimizer = build_optimizer(self.model, schedule)
        self._average = Average(self.model, schedule.ema) if schedule.ema else None
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=schedule.precision == "fp16")
        self._skips = 0

    @property
    def weights(self) -> nn.Module:
        """What is measured and stored: the average if there is one, else the model itself."""
        return self._average.model if self._average else self.model

    def run(self, micro_batches: Sequence[list[Sample]]) -> Step:
        """Take one step on this worker's share of the batch.

        Raises:
            DivergedError: on every worker alike; weights and optimizer are as before the step.
        """
        self.model.train()
        rate = learning_rate(self.step, self.schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)
        self._optimizer.zero_grad(set_to_none=True)
        parts: list[_Part] = []
        with EventStorage(self.step):  # detectron2's modules report to it
            for number, samples in enumerate(micro_batches):
                share = len(samples) / self.schedule.batch_size
                parts.append((share, self._backward(number, len(micro_batches), samples, share)))
        losses = _summed(parts)
        loss = float(distributed.total(torch.tensor(sum(losses.values()), device=self._device)))
        norm = self._clipped_norm()
        # Both are the same on every worker. Float16 overflows now and then; its scaler then lets the step pass.
        if not math.isfinite(loss) or not (math.isfinite(norm) or self._scaler.is_enabled()):
            raise DivergedError(self._diagnosis(micro_batches, parts))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._skips = 0 if math.isfinite(norm) else self._skips + 1
        if self._skips >= _SKIPS:
            raise DivergedError(self._diagnosis(micro_batches, parts))
        if self._average:
            self._average.update(self.model, self.step)
        self.step += 1
        return Step(step=self.step - 1, loss=loss, terms=losses, lr=rate, grad_norm=norm)

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs to go on as if nothing had happened; tensors and plain data."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average.model.state_dict() if self._average else None,
            "scaler": self._scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, in this or another process."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._average:
            self._average.model.load_state_dict(state["average"] or state["model"])
        self._scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])

    def share_buffers(self) -> None:
        """Give every worker the running statistics of worker 0, which are those that are stored."""
        distributed.copy_from_first(list(self.weights.buffers()))

    def _backward(self, number: int, of: int, samples: list[Sample], share: float) -> dict[str, Tensor]:
        """Add the gradient of one micro-batch, weighted by its share of the batch -> its losses."""
        _seed_torch(self._seed, self.step, distributed.rank(), number)
        dtype = PRECISIONS[self.schedule.precision]
        last = number == of - 1 or not isinstance(self._losses, DistributedDataParallel)
        with contextlib.nullcontext() if last else self._losses.no_sync():  # type: ignore[operator]
            with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
                losses: dict[str, Tensor] = self._losses(samples)
            total = sum(losses.values(), torch.zeros((), device=self._device))
            # The workers' gradients are averaged.
            self._scaler.scale(total * share * distributed.world()).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _clipped_norm(self) -> float:
        self._scaler.unscale_(self._optimizer)
        return float(nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip or math.inf))

    def _diagnosis(self, micro_batches: Sequence[list[Sample]], parts: Sequence[_Part]) -> str:
        """The step, which losses are not finite, and the images of the micro-batches that gave them, on all workers."""
        found: list[tuple[str, str]] = []
        for samples, (_, losses) in zip(micro_batches, parts, strict=True):
            bad = [f"{name} {float(loss):.3g}" for name, loss in losses.items() if not torch.isfinite(loss)]
            found += [(", ".join(bad), str(sample.get("file_name", "?"))) for sample in samples if bad]
        everywhere = [pair for worker in distributed.gather(found) for pair in worker]
        step = f"step {self.step + 1}"
        if not everywhere:
            own = [str(sample.get("file_name", "?")) for samples in micro_batches for sample in samples]
            names = [name for worker in distributed.gather(own) for name in worker]
            return f"the gradient is not finite at {step}; the images of its batch: {', '.join(names)}"
        names = [name for _, name in everywhere]
        return f"the loss is not finite at {step} ({everywhere[0][0]}); the images: {', '.join(names)}"


class _Losses(nn.Module):
    """The losses of a model; those that detectron2 refuses to compute, as its proposals are not finite, are NaN.

    Raising would leave the other workers waiting for this one's gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, samples: list[Sample]) -> dict[str, Tensor]:
        try:
            losses: dict[str, Tensor] = self.model(samples)
        except FloatingPointError:
            total = sum((p.sum() for p in self.model.parameters() if p.requires_grad), torch.zeros(()))
            return {"loss_rpn": total * math.nan}
        return losses


def _summed(parts: Sequence[_Part]) -> dict[str, float]:
    """This worker's part of the batch's losses, from those of micro-batches and their shares of the batch."""
    losses: dict[str, float] = {}
    for share, of_part in parts:
        for name, loss in of_part.items():
            losses[name] = losses.get(name, 0.0) + share * float(loss)
    return losses


def _seed_torch(*parts: int) -> None:
    """Seed torch from numbers that tell this micro-batch from any other."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % (1 << 63)
    torch.manual_seed(seed)
