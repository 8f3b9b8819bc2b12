"""What the mask head learns from: crops of the ground truth, and their encoding."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from scipy.fft import dctn

from patchdct import dct, targets
from patchdct.patches import MIXED
from tests.patchdct import small

SIZES = {"size": 112, "dim": 300, "patch": 8, "patch_dim": 6}


def test_crop_is_detectron2s():
    """Polygons are drawn within the box, bit masks pooled and thresholded: both as in detectron2, for each form."""
    box = torch.tensor([[8.0, 16.0, 40.0, 48.0]])
    square = [[16.0, 16.0, 40.0, 16.0, 40.0, 32.0, 16.0, 32.0]]
    bits = torch.zeros(1, 64, 64, dtype=torch.bool)
    bits[0, 16:32, 16:40] = True
    expected = torch.zeros(112, 112, dtype=torch.bool)
    expected[:56, 28:] = True
    for masks in (PolygonMasks([square]), BitMasks(bits)):
        cropped = targets.crop(masks, Boxes(box), 112)
        assert cropped.shape == (1, 112, 112)
        assert cropped.dtype == torch.bool
        assert torch.equal(cropped, masks.crop_and_resize(box, 112))
        assert (cropped[0] != expected).sum() <= 112  # a row of pixels along the edge, by the rule of the form


def test_encoding_patch_by_patch():
    """Every patch has the class of its own pixels and, where mixed, its own coefficients; computed here one by one."""
    masks, _ = small.ellipses(2, 112)
    truth = targets.encode(masks, dim=300, patch=8, patch_dim=6)
    assert truth.vectors.dtype == truth.patch_vectors.dtype == torch.float32
    torch.testing.assert_close(truth.vectors, dct.encode(masks, 300).float(), atol=0, rtol=0)
    assert truth.patch_classes.shape == (2 * 196,)
    assert set(truth.patch_classes.tolist()) == {0, 1, 2}
    at = 0
    for mask in masks.numpy():
        for i in range(14):
            for j in range(14):
                cell = mask[8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
                assert truth.patch_classes[at] == (0 if not cell.any() else 2 if cell.all() else 1)
                spectrum = dctn(cell.astype(np.float64), norm="ortho")
                expected = [spectrum[place] for place in ((0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2))]
                np.testing.assert_allclose(truth.patch_vectors[at], expected, atol=1e-5)
                at += 1


def test_targets_follow_the_order_of_the_proposals():
    """Targets of another image's or another RoI's mask would train noise; images without foreground add nothing."""
    images = small.proposals([2, 0, 1])
    together = targets.from_proposals(images, **SIZES)
    assert together.vectors.shape == (3, 300)
    alone = [targets.from_proposals([image[i : i + 1]], **SIZES) for image in images for i in range(len(image))]
    for name in ("vectors", "patch_classes", "patch_vectors"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))
    assert (together.patch_classes == MIXED).any()


def test_no_foreground():
    """A batch without foreground proposals, of which some images have no ground truth at all."""
    bare = Instances((64, 64))
    bare.proposal_boxes = Boxes(torch.zeros(0, 4))
    for images in ([bare], small.proposals([0, 0]), [small.proposals([2])[0][:0]]):
        truth = targets.from_proposals(images, **SIZES)
        assert truth.vectors.shape == (0, 300)
        assert truth.patch_classes.shape == (0,)
        assert truth.patch_classes.dtype == torch.int64
        assert truth.patch_vectors.shape == (0, 6)
