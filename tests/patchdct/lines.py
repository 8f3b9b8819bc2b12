"""A model of two parameters that trains like one of detectron2, in no time; and a process that trains it with others.

`python -m tests.patchdct.lines FOLDER RANK WORLD STEPS [FACTOR...]` joins the others through a file in FOLDER, trains,
and writes what became of it to FOLDER/RANK.json. Sample i of a batch has the i-th factor.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from patchdct import data, train
from patchdct.schedule import Schedule


class Line(nn.Module):
    """A weight and a bias: loss_a is the mean of factor * (2 w + b - 1)^2 over the samples, loss_b 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(1))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        self.count += 1
        factors = torch.tensor([float(sample["factor"]) for sample in samples])
        # Random, as detectron2's sampling of proposals is, but of no consequence on average.
        noise = 1 + 0.01 * torch.rand(())
        return {
            "loss_a": noise * (factors * (2 * self.weight + self.bias - 1).square().sum()).mean(),
            "loss_b": torch.ones(()),
        }


def samples(*factors: float) -> list[dict[str, Any]]:
    return [{"factor": factor, "file_name": f"{number}.jpg"} for number, factor in enumerate(factors)]


def schedule(**changes: Any) -> Schedule:
    return Schedule(**{"steps": 8, "batch_size": 1, "lr": 0.1, "optimizer": "adamw", "decay": "cosine", **changes})


def parameters(trainer: train.Trainer) -> list[float]:
    return [float(parameter.detach()) for parameter in trainer.model.parameters()]


def _work(folder: Path, rank: int, world: int, steps: int, factors: list[float]) -> dict[str, Any]:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    shares = data.shares(len(factors), rank=rank, world=world, micro_batch=None)
    batch = samples(*factors)
    trainer = train.Trainer(Line(), schedule(batch_size=len(factors), optimizer="sgd"), seed=1)
    try:
        taken = [trainer.run([[batch[place] for place in share] for share in shares]) for _ in range(steps)]
    except train.DivergedError as error:
        return {"error": str(error)}
    finally:
        distributed.destroy_process_group()
    return {"loss": taken[-1].loss, "parameters": parameters(trainer)}


if __name__ == "__main__":
    place, *numbers = sys.argv[1:]
    number, of, count = map(int, numbers[:3])
    result = _work(Path(place), number, of, count, [float(value) for value in numbers[3:]])
    (Path(place) / f"{number}.json").write_text(json.dumps(result))
