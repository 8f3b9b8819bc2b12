"""The workers of one training: who they are, and what they tell each other. A lone process is a group of one."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def rank() -> int:
    """This worker's number, 0 ... world() - 1."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many workers there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather(value: T) -> list[T]:
    """Every worker's value, plain data, in order of rank; all have to ask."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """Worker 0's value, plain data; all have to ask."""
    values: list[Any] = [value]
    if world() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def total(values: Tensor) -> Tensor:
    """The sum over all workers."""
    if world() > 1:
        distributed.all_reduce(values)
    return values


def copy_from_first(tensors: list[Tensor]) -> None:
    """Overwrite tensors by those of worker 0."""
    if world() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def device() -> torch.device:
    """Where this worker computes: the first GPU that it sees, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def gpu_memory_mb() -> float:
    """The most memory that this process has held on its GPU, in MB; 0 without one."""
    return torch.cuda.max_memory_allocated() / (1 << 20) if torch.cuda.is_available() else 0.0
