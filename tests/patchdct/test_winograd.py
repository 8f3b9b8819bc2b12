"""Winograd's convolution against PyTorch's plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from patchdct import winograd


@pytest.mark.parametrize("size", [(42, 42), (14, 14), (7, 9), (1, 1), (1, 5), (8, 3), (2, 1100)])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_plain_convolution(count, size):
    """Tiles at the borders, of odd sizes, over several maps and passes: every pixel as a plain convolution gives it."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(count, 24, *size), torch.randn(40, 24, 3, 3) / 15, torch.randn(40)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    found = winograd.convolve(x, winograd.transform_weights(weight), bias)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_many_passes():
    """A pass that ends within a map, and begins there, must neither leave out nor repeat a row of tiles."""
    torch.manual_seed(0)
    x, weight = torch.randn(5, 8, 61, 90), torch.randn(8, 8, 3, 3) / 8
    assert winograd._TILES * 10 < 5 * 31 * 45
    found = winograd.convolve(x, winograd.transform_weights(weight))
    torch.testing.assert_close(found, F.conv2d(x, weight, padding=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_bias_and_relu(relu, with_bias):
    """ReLU comes after the bias; without either, negative values stay."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 8, 10, 12), torch.randn(16, 8, 3, 3), torch.randn(16) if with_bias else None
    expected = F.conv2d(x, weight, bias, padding=1)
    found = winograd.convolve(x, winograd.transform_weights(weight), bias, relu=relu)
    torch.testing.assert_close(found, expected.relu() if relu else expected, atol=1e-4, rtol=0)
    assert (found < 0).any() != relu


def test_layouts():
    """The layout of the input changes no bit, and the output comes in channels_last, as the next layer wants it."""
    x, weights = torch.randn(3, 8, 9, 6), winograd.transform_weights(torch.randn(8, 8, 3, 3))
    found = winograd.convolve(x, weights)
    assert torch.equal(found, winograd.convolve(x.contiguous(memory_format=torch.channels_last), weights))
    assert torch.equal(found[1:], winograd.convolve(x[1:], weights))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_rounding():
    """With the widths of published heads, errors stay within a few times those of a plain convolution in float32."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 256, 14, 14), torch.randn(256, 256, 3, 3) / 48
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    plain = (F.conv2d(x, weight, padding=1) - exact).abs()
    ours = (winograd.convolve(x, winograd.transform_weights(weight)) - exact).abs()
    assert ours.mean() < 4 * plain.mean()
    assert ours.max() < 1e-5 * exact.std()
