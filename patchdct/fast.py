"""What is done to a built model before inference, so that it runs faster.

Normalisation with fixed statistics is multiplied into the convolution before it, and weights are laid out as kernels
want them. On CPUs wide 3 x 3 convolutions go by `winograd`, the others are fused with their ReLU. On GPUs `selection`
chooses proposals and detections. In float32 the results are those of the model as it was built, up to float rounding.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from patchdct import selection, winograd

_Module = TypeVar("_Module", bound=nn.Module)

#: Channels in and out from which on Winograd's algorithm wins; with fewer, moving the data costs what is saved.
_WIDE = 128


def optimised(model: _Module, *, dtype: torch.dtype | None = None) -> _Module:
    """A copy of `model`, in evaluation mode, that infers faster and shares with it the tensors that stay as they are.

    It cannot be trained, its state dict is its own, and it does not follow when `model` is trained further.

    Args:
        model: any model, or a part of one.
        dtype: bfloat16 or float16, for inference under autocast in it: weights are converted once, and what places and
            ranks objects stays in float32. None for float32.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    fast = copy.deepcopy(model, shared).eval()
    for module in fast.modules():
        if isinstance(module, Conv2d):
            _fold_norm(module)
            if module.activation is F.relu:
                module.activation = F.relu_
        if isinstance(module, nn.Conv2d):
            _set_weight(module, module.weight.contiguous(memory_format=torch.channels_last))
    if dtype is not None:
        _lower(fast, dtype)
    for module in fast.modules():
        if isinstance(module, Conv2d) and type(module).forward is Conv2d.forward:
            _for_cpu(module)
    if any(parameter.device.type != "cpu" for parameter in fast.parameters()):
        selection.batch_selections(fast)
    return fast


class WinogradConv2d(Conv2d):
    """A convolution of kernel 3, stride 1 and padding 1 on a CPU in float32, for inference only."""

    transformed: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K, H, W]."""
        relu = self.activation is F.relu_
        y = winograd.convolve(x.float(), self.transformed, self.bias, relu=relu)
        return y if relu or self.activation is None else self.activation(y)


class FusedConv2d(Conv2d):
    """A convolution on a CPU together with its ReLU, for inference only."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K, H, W], in the type of the weights."""
        relu = self.activation is F.relu_
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        x = x.to(self.weight.dtype, memory_format=torch.channels_last)
        y = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *geometry, "relu" if relu else "none", [], ""
        )
        return y if relu or self.activation is None else self.activation(y)


def _for_cpu(conv: Conv2d) -> None:
    """Let a convolution go the fastest way, if it is on a CPU."""
    if conv.norm is not None or conv.weight.device.type != "cpu":
        return
    plain = conv.kernel_size == (3, 3) and conv.stride == conv.padding == conv.dilation == (1, 1) and conv.groups == 1
    if plain and conv.weight.dtype == torch.float32 and min(conv.in_channels, conv.out_channels) >= _WIDE:
        conv.__class__ = WinogradConv2d
        conv.transformed = winograd.transform_weights(conv.weight)
        conv.weight = None  # of no use any more
    elif _fusible(conv.weight.dtype):
        conv.__class__ = FusedConv2d


def _fusible(dtype: torch.dtype) -> bool:
    """Whether PyTorch has the fused kernels on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or (dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported())


def _fold_norm(conv: Conv2d) -> None:
    """Multiply a normalisation with fixed statistics into weights and bias."""
    norm = conv.norm
    if not isinstance(norm, FrozenBatchNorm2d | _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        return
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    before = torch.zeros_like(mean) if conv.bias is None else conv.bias.detach().double()
    scale = gain / (variance + norm.eps).sqrt()
    dtype = conv.weight.dtype
    _set_weight(conv, (conv.weight.double() * scale[:, None, None, None]).to(dtype))
    conv.bias = nn.Parameter((shift + (before - mean) * scale).to(dtype), requires_grad=False)
    conv.norm = None


def _lower(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of convolutions and linear layers.

    Feature maps leave the backbone in float32, as RoIAlign rounds boxes to the type of the features: in bfloat16, to
    whole pixels and worse. Classes and boxes of detections are predicted in float32, as scores rank the detections.
    """
    outputs = [module for module in model.modules() if isinstance(module, FastRCNNOutputLayers)]
    for module in outputs:
        _run_in_float32(module)
    exact = {layer for module in outputs for layer in module.modules()}
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and module not in exact:
            _set_weight(module, module.weight.to(dtype))
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, nn.Module):
        backbone.register_forward_hook(lambda _module, _inputs, maps: {name: m.float() for name, m in maps.items()})


def _run_in_float32(module: nn.Module) -> None:
    forward = module.forward

    def exactly(x: Tensor) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    module.forward = exactly


def _set_weight(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, weight: Tensor) -> None:
    module.weight = nn.Parameter(weight.detach(), requires_grad=False)
