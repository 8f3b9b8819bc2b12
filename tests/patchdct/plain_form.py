"""The mask head in the paper's own formulation, for comparison: slower, with the same masks.

Masks are decoded in full by a fast Fourier transform and resized afterwards, the patch predictors are computed for all
classes of which one is taken, and every patch is decoded, pure or not.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from patchdct.mask_head import MaskRCNNPatchDCTHead


def inverse_dct(spectra: Tensor) -> Tensor:
    """The orthonormal inverse DCT-II of the last axis, by a real FFT of the same length (Makhoul, 1980)."""
    n = spectra.shape[-1]
    k = torch.arange(n)
    sums = spectra * torch.where(k == 0, math.sqrt(n), math.sqrt(n / 2))
    mirrored = F.pad(sums[..., 1:].flip(-1), (1, 0))
    folded = (sums - 1j * mirrored) * torch.polar(torch.ones(n), math.pi * k / (2 * n))
    samples = torch.fft.ifft(folded).real
    even, odd = samples[..., : (n + 1) // 2], samples[..., (n + 1) // 2 :].flip(-1)
    return torch.stack([even, odd], -1).flatten(-2)


@functools.cache
def _zigzag(n: int) -> list[tuple[int, int]]:
    return sorted(itertools.product(range(n), repeat=2), key=lambda rc: (sum(rc), rc[sum(rc) % 2 == 0]))


def decode(vectors: Tensor, n: int) -> Tensor:
    """Coefficients [B, D] in zigzag order -> masks [B, n, n]."""
    rows, columns = torch.tensor(_zigzag(n)[: vectors.shape[1]]).unbind(1)
    spectra = vectors.new_zeros(len(vectors), n, n)
    spectra[:, rows, columns] = vectors
    return inverse_dct(inverse_dct(spectra).mT).mT


def blocks(
    head: MaskRCNNPatchDCTHead, x: Tensor, fine: Tensor, classes: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The vectors of the masks [N, D], and of each block the patch logits [P, 3] and patch vectors [P, E]."""
    weights = dict(head.named_parameters())

    def conv(name: str, inputs: Tensor, **options: int) -> Tensor:
        return F.conv2d(inputs, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    for i in range(1, 5):
        x = conv(f"mask_fcn{i}", x, padding=1).relu()
    x = x.flatten(1)
    for i in (0, 2, 4):
        x = F.linear(x if i == 0 else x.relu(), weights[f"predictor.{i}.weight"], weights[f"predictor.{i}.bias"])
    vectors, outputs = x, []
    mask = decode(vectors, 112)
    for _ in range(head.num_blocks):
        coarse = F.interpolate(mask[:, None], 42)
        features = fine + conv("reshape", coarse, padding=1).relu()
        for name in ("fusion.0", "fusion.1"):
            features = conv(name, features, padding=1).relu()
        features = conv("downsample.0", features, stride=3).relu()
        features = conv("downsample.1", features, padding=1).relu()
        logits, patches = predict(head, features, classes)
        outputs.append((logits, patches))
        mask = assemble(logits.argmax(1), patches)
    return vectors, outputs


def predict(head: MaskRCNNPatchDCTHead, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Features [N, H, 14, 14] -> patch logits [P, 3] and patch vectors [P, E], of all classes and then of one."""
    rois = torch.arange(len(classes))
    logits = head.predictor_bfg(features).unflatten(1, (-1, 3))[rois, classes]
    vectors = head.predictor1(features).unflatten(1, (-1, 6))[rois, classes]
    return logits.permute(0, 2, 3, 1).flatten(0, 2), vectors.permute(0, 2, 3, 1).flatten(0, 2)


def assemble(decided: Tensor, vectors: Tensor) -> Tensor:
    """Patch classes [P] and vectors [P, E] -> masks [N, 112, 112]; foreground is the vector (8, 0, 0, ...)."""
    full = torch.zeros_like(vectors)
    full[:, 0] = 8
    kinds = torch.stack([torch.zeros_like(vectors), vectors, full])
    patches = decode(kinds[decided, torch.arange(len(decided))], 8).unflatten(0, (-1, 14, 14))
    return patches.permute(0, 1, 3, 2, 4).flatten(3, 4).flatten(1, 2)


def decide(logits: Tensor, threshold: float) -> Tensor:
    """The class of each patch: a pure one gains 1 where its probability exceeds the threshold; the largest wins."""
    scores = logits.softmax(1)
    return (scores + (scores > threshold) * torch.tensor([1.0, 0.0, 1.0])).argmax(1)


def masks(head: MaskRCNNPatchDCTHead, x: Tensor, fine: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Inference: the masks [N, 112, 112] and the classes of their patches [P]."""
    logits, vectors = blocks(head, x, fine, classes)[1][-1]
    decided = decide(logits, head.patch_threshold)
    return assemble(decided, vectors), decided
