"""A mask as patches: their order, their classes and what becomes of each class."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchdct import dct, patches
from patchdct.patches import BACKGROUND, FOREGROUND, MIXED
from tests.patchdct import plain_form


def test_patch_order():
    """Patches in another order than the cells of the prediction maps would shuffle every mask."""
    masks = torch.arange(2 * 112 * 112).reshape(2, 112, 112)
    cells = patches.split(masks, 8)
    assert cells.shape == (2 * 196, 8, 8)
    assert torch.equal(cells[0], masks[0, :8, :8])
    assert torch.equal(cells[1], masks[0, :8, 8:16])
    assert torch.equal(cells[14], masks[0, 8:16, :8])
    assert torch.equal(cells[196 + 14 * 3 + 5], masks[1, 24:32, 40:48])


@given(st.integers(0, 3), st.integers(1, 5), st.integers(1, 6))
def test_split_and_assemble_are_inverse(count, side, patch):
    """A mask that comes back transposed or shifted."""
    masks = torch.rand(count, side * patch, side * patch)
    assert torch.equal(patches.assemble(patches.split(masks, patch), side), masks)


def test_labels_by_pixel_counts():
    """A single pixel makes a patch mixed; a rounded DC coefficient would not show it."""
    cells = torch.zeros(65, 64, dtype=torch.bool)
    for count in range(65):
        cells[count, torch.randperm(64)[:count]] = True
    cells = cells.reshape(65, 8, 8)
    expected = [BACKGROUND, *[MIXED] * 63, FOREGROUND]
    for dtype in (torch.bool, torch.uint8, torch.float32):
        assert patches.label(cells.to(dtype)).tolist() == expected
    assert patches.label(cells[:0]).tolist() == []
    assert torch.equal(patches.label(cells) == FOREGROUND, dct.encode(cells, 1)[:, 0] > 7.99)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ((0.31, 0.60, 0.09), BACKGROUND),
        ((0.29, 0.42, 0.29), MIXED),
        ((0.35, 0.25, 0.40), FOREGROUND),
        ((0.40, 0.25, 0.35), BACKGROUND),
        ((0.09, 0.60, 0.31), FOREGROUND),
        ((0.25, 0.50, 0.25), MIXED),
        ((0.50, 0.00, 0.50), BACKGROUND),
    ],
)
def test_rule_of_inference(probabilities, expected):
    """A plain argmax, or a threshold for mixed patches instead, costs the accuracy that the paper reports."""
    logits = torch.tensor([probabilities]).clamp(1e-30).log()
    for shift in (-5.0, 0.0, 5.0):
        assert patches.classify(logits + shift, 0.3).tolist() == [expected]


def test_rule_at_the_threshold():
    """A pure class must exceed the threshold, not only reach it."""
    logits = torch.tensor([[0.0, 1.0, -1.0]])
    reached = float(logits.softmax(1)[0, 0])
    assert patches.classify(logits, reached).tolist() == [MIXED]
    assert patches.classify(logits, reached - 1e-6).tolist() == [BACKGROUND]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_rule_as_a_bonus(threshold):
    """Adding 1 to a pure class above the threshold and taking the largest decides the same, at any threshold."""
    logits = 2 * torch.randn(20_000, 3)
    assert torch.equal(patches.classify(logits, threshold), plain_form.decide(logits, threshold))


def test_decoding_by_class():
    """Pure patches are 0 or 1 whatever was regressed for them, even NaN; a mixed one is what its vector says."""
    vectors = torch.randn(3, 6)
    vectors[0], vectors[2] = torch.nan, torch.inf
    vectors.requires_grad_()
    decoded = patches.decode(torch.tensor([BACKGROUND, MIXED, FOREGROUND]), vectors, 8)
    assert torch.equal(decoded[0], torch.zeros(8, 8))
    torch.testing.assert_close(decoded[1], dct.decode(vectors[1:2], 8)[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(decoded[2], torch.ones(8, 8), atol=1e-6, rtol=0)

    decoded.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad[1].abs().sum() > 0
    assert vectors.grad[0].abs().sum() == vectors.grad[2].abs().sum() == 0
