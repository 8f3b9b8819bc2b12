"""Counts where the host would wait for a GPU, on machines without one.

Tensors pretend to be on a GPU: they say so, and compute on the CPU. What makes the host wait on a real one is counted
by its place in the code: results whose size depends on values, values that Python reads, and copies between memories,
unless they leave or reach pinned memory without blocking. What a GPU would refuse, as operands in two memories, is
refused. Kernels that wait inside of themselves are known by name only (`_WAITING`).
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_any, tree_map_only

#: The GPU that is pretended.
GPU = torch.device("cuda", 0)
_aten = torch.ops.aten
#: Their results are as large as their operands' values say, or are read by Python.
_WAITING = {
    *(_aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten.equal, _aten.bincount, _aten.histc),
    *(_aten._unique, _aten._unique2, _aten.unique_dim, _aten.unique_consecutive, _aten.unique_dim_consecutive),
    torch.ops.torchvision.nms,
}
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_COPYING = {_aten._to_copy, _aten.copy_, _aten.copy}


class _OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU; its values are on the CPU."""

    values: Tensor

    @staticmethod
    @torch.inference_mode(False)  # a view of a parameter could not be an inference tensor
    def __new__(cls, values: Tensor) -> _OnGpu:
        torch._C._ensureCUDADeviceGuardSet()
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, device=GPU, **layout)
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a pretended GPU outside of `counted`")


class Waits(TorchDispatchMode):
    """What the host waited for: `at` counts by operation and place, "aten.nonzero  patchdct/fast.py:12 name"."""

    def __init__(self) -> None:
        super().__init__()
        self.at: Counter[str] = Counter()
        self.pinned: set[int] = set()

    @property
    def total(self) -> int:
        """How often the host waited."""
        return sum(self.at.values())

    def wait(self, what: str) -> None:
        """Count one wait, at the innermost place in the code that is not PyTorch's."""
        self.at[f"{what:<24} {_place()}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        operator = func.overloadpacket
        there = tree_any(_on_gpu, (args, kwargs))
        if not there and not tree_any(_is_gpu, (args, kwargs)):
            return func(*args, **kwargs)
        with self:  # in inference mode what others do in steps comes whole
            steps = func.decompose(*args, **kwargs)
        if steps is not NotImplemented:
            return steps
        if self._waits(operator, args, kwargs):
            self.wait(str(operator))
        goes = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        if goes == "cuda":
            kwargs["device"] = torch.device("cpu")
        if operator not in _COPYING | _INDEXING:
            _refuse_two_memories(func, (args, kwargs))
        inner_args, inner_kwargs = tree_map_only(_OnGpu, lambda leaf: leaf.values, (args, kwargs))
        out = func(*inner_args, **inner_kwargs)
        if operator in _COPYING and (goes == "cpu" or (operator is not _aten._to_copy and not _on_gpu(args[0]))):
            return args[0] if operator is _aten.copy_ else out
        out = tree_map_only(Tensor, lambda leaf: leaf if isinstance(leaf, _OnGpu) else _OnGpu(leaf), out)
        return return_and_correct_aliasing(func, args, kwargs, out) if func._schema.is_mutable else out

    def _waits(self, operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        if operator in _WAITING:
            return not (operator is torch.ops.torchvision.nms and args[0].numel() == 0)
        if operator is _aten.repeat_interleave:
            return kwargs.get("output_size") is None
        if operator in _INDEXING:
            indices = [index for index in args[1] if index is not None]
            return any(index.dtype in (torch.bool, torch.uint8) or not _on_gpu(index) for index in indices)
        if operator not in _COPYING:
            return False
        if operator is _aten._to_copy:
            source, up = args[0], kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
            down = kwargs.get("device") is not None and not up
            blocking = not kwargs.get("non_blocking", False)
        else:
            source, up, down = args[1], _on_gpu(args[0]), not _on_gpu(args[0])
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if up and not _on_gpu(source):
            return source.numel() > 0 and (blocking or source.untyped_storage().data_ptr() not in self.pinned)
        return down and _on_gpu(source) and source.numel() > 0 and blocking


def _on_gpu(value: Any) -> bool:
    return isinstance(value, _OnGpu)


def _is_gpu(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == "cuda"


def _refuse_two_memories(func: Any, operands: Any) -> None:
    """As PyTorch does: only numbers may stay on the CPU."""

    def check(leaf: Tensor) -> Tensor:
        if not _on_gpu(leaf) and leaf.dim() > 0:
            raise RuntimeError(f"{func}: expected all tensors to be on the GPU, one of shape {list(leaf.shape)} is not")
        return leaf

    tree_map_only(Tensor, check, operands)


def _place() -> str:
    for frame in reversed(traceback.extract_stack()):
        path = frame.filename.replace("\\", "/")
        if not any(part in path for part in ("/torch/", "/waits.py", "/torchvision/", "unittest/", "contextlib")):
            return f"{'/'.join(path.split('/')[-3:])}:{frame.lineno} {frame.name}"
    return "?"


def to_gpu(model: nn.Module) -> nn.Module:
    """Let a model's tensors pretend to be on a GPU; in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_OnGpu(parameter.detach()), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _OnGpu(buffer)
    return model


@contextmanager
def counted() -> Iterator[Waits]:
    """Within it, tensors on the pretended GPU compute, and waits are counted."""
    waits = Waits()

    def pin(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        waits.pinned.add(tensor.untyped_storage().data_ptr())
        kept.append(tensor)
        return tensor

    class Event:
        """An event of the pretended GPU."""

        def record(self) -> None:
            pass

        def synchronize(self) -> None:
            waits.wait("Event.synchronize")

    kept: list[Tensor] = []
    lifts, fuses = torch._C._only_lift_cpu_tensors(), torch._C._jit_set_texpr_fuser_enabled(False)
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with ExitStack() as patches:
            patches.enter_context(mock.patch.object(torch.Tensor, "pin_memory", pin))
            patches.enter_context(mock.patch.object(torch.cuda, "Event", Event))
            if not torch.cuda.is_available():
                patches.enter_context(mock.patch.object(torch.cuda, "_lazy_init", return_value=None))
            yield patches.enter_context(waits)
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch._C._jit_set_texpr_fuser_enabled(fuses)
