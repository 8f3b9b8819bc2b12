"""The mask loss against a plain computation of its formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from patchdct import losses
from patchdct.patches import BACKGROUND, FOREGROUND, MIXED
from patchdct.targets import Targets


def inputs(blocks: int, count: int = 3) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Targets]:
    """Random predictions for `count` RoIs, and random targets."""
    cells = count * 196
    predicted = [(torch.randn(cells, 3), 3 * torch.randn(cells, 6)) for _ in range(blocks)]
    truth = Targets(
        vectors=3 * torch.randn(count, 300),
        patch_classes=torch.randint(3, (cells,)),
        patch_vectors=3 * torch.randn(cells, 6),
    )
    return 3 * torch.randn(count, 300), predicted, truth


def plain_distance(kind: str, a: np.ndarray, b: np.ndarray) -> float:
    """The mean of |d|, of d^2, or of d^2 / 2 below 1 and |d| - 1/2 above."""
    values = []
    for d in (a - b).ravel().tolist():
        size = abs(d)
        values.append({"l1": size, "l2": d * d, "sl1": d * d / 2 if size < 1 else size - 0.5}[kind])
    return math.fsum(values) / len(values)


def plain_cross_entropy(logits: np.ndarray, classes: np.ndarray) -> float:
    """The mean of -log softmax at the true class."""
    values = []
    for row, label in zip(logits.tolist(), classes.tolist(), strict=True):
        values.append(math.log(math.fsum(math.exp(x) for x in row)) - row[label])
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("kind", ["l1", "sl1", "l2"])
@pytest.mark.parametrize(("weights", "scale"), [((1.0, 1.0), 1.0), ((0.5, 2.0), 0.7), ((0.5, 0.5, 0.8), 3.0)])
def test_formula(kind, weights, scale):
    """The terms, their means and their weights; the scale holds for every number of blocks."""
    vectors, blocks, truth = inputs(len(weights) - 1)
    mixed = truth.patch_classes.numpy() == MIXED
    expected = weights[0] * plain_distance(kind, vectors.double().numpy(), truth.vectors.double().numpy())
    for weight, (logits, patch_vectors) in zip(weights[1:], blocks, strict=True):
        cls = plain_cross_entropy(logits.double().numpy(), truth.patch_classes.numpy())
        a, b = patch_vectors.double().numpy()[mixed], truth.patch_vectors.double().numpy()[mixed]
        expected += weight * (cls + plain_distance(kind, a, b))
    loss = losses.mask_loss(vectors, blocks, truth, weights=weights, scale=scale, kind=kind)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(scale * expected, rel=1e-5)


@pytest.mark.parametrize("term", range(3))
def test_terms_one_by_one(term):
    """Each of the three terms alone, with the others at zero: a term that is lost or counted twice shows."""
    vectors, [(logits, patch_vectors)], truth = inputs(1)
    certain = 100 * torch.nn.functional.one_hot(truth.patch_classes, 3).float()
    parts = [
        (vectors, certain, truth.patch_vectors, (vectors - truth.vectors).abs().mean()),
        (truth.vectors, logits, truth.patch_vectors, torch.nn.functional.cross_entropy(logits, truth.patch_classes)),
        (
            *(truth.vectors, certain, patch_vectors),
            (patch_vectors - truth.patch_vectors)[truth.patch_classes == MIXED].abs().mean(),
        ),
    ]
    whole, cls, vec, expected = parts[term]
    loss = losses.mask_loss(whole, [(cls, vec)], truth, weights=(1.0, 1.0))
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)


def test_vectors_count_where_the_truth_is_mixed():
    """Coefficients regressed for pure patches are free: they are never decoded."""
    vectors, [(logits, patch_vectors)], truth = inputs(1)
    first = losses.mask_loss(vectors, [(logits, patch_vectors)], truth, weights=(1, 1))
    elsewhere = torch.where((truth.patch_classes == MIXED)[:, None], patch_vectors, 1e6)
    assert torch.equal(first, losses.mask_loss(vectors, [(logits, elsewhere)], truth, weights=(1, 1)))


@pytest.mark.parametrize("label", [BACKGROUND, FOREGROUND])
def test_no_mixed_patch(label):
    """A mean over nothing is NaN, and one NaN ends a training."""
    vectors, [(logits, patch_vectors)], truth = inputs(1)
    truth = Targets(
        vectors=truth.vectors,
        patch_classes=torch.full_like(truth.patch_classes, label),
        patch_vectors=truth.patch_vectors,
    )
    patch_vectors.requires_grad_()
    loss = losses.mask_loss(vectors, [(logits, patch_vectors)], truth, weights=(0.0, 1.0))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, truth.patch_classes))
    loss.backward()
    assert patch_vectors.grad is not None
    assert not patch_vectors.grad.any()


def test_no_rois():
    """A batch without foreground has the loss 0, in the graph."""
    vectors, blocks, truth = inputs(2, count=0)
    vectors.requires_grad_()
    loss = losses.mask_loss(vectors, blocks, truth, weights=(1, 1, 1))
    assert float(loss.detach()) == 0
    assert loss.requires_grad


def test_half_precision_predictions():
    """Under autocast the loss itself is computed in float32."""
    vectors, blocks, truth = inputs(1)
    halved = [(logits.bfloat16(), patch_vectors.bfloat16()) for logits, patch_vectors in blocks]
    loss = losses.mask_loss(vectors.bfloat16(), halved, truth, weights=(1, 1))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(losses.mask_loss(vectors, blocks, truth, weights=(1, 1))), rel=1e-2)


def test_number_of_weights():
    """A weight too many or too few must not be dropped silently."""
    vectors, blocks, truth = inputs(1)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        losses.mask_loss(vectors, blocks, truth, weights=(1, 1, 1))


def test_unknown_kind():
    """A misspelt loss names the key and what is accepted."""
    with pytest.raises(ValueError, match=r"MODEL\.ROI_MASK_HEAD\.DCT_LOSS_TYPE is 'L1'; accepted are l1, sl1, l2"):
        losses.distance("L1")
