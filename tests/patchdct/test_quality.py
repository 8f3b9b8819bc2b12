"""What the mask head says of how good its masks are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes

from patchdct import dct, patches, predict, quality, scenes, tta
from tests.patchdct import small
from tests.patchdct.small import find

SIDE, PATCH = 14, 8


def disc(radius: float, *, soft: float = 0.01, size: int = 112, x: float = 56) -> torch.Tensor:
    """The values [1, size, size] of a disc whose edge is a ramp of `soft` pixels."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = ((rows - size / 2 + 0.5) ** 2 + (columns - x * size / 112 + 0.5) ** 2).sqrt()
    return ((radius * size / 112 - distance) / soft + 0.5).clamp(0, 1)[None]


def evidence_of(masks: torch.Tensor, *, sure: float = 20.0, coarse: torch.Tensor | None = None) -> torch.Tensor:
    """The evidence on masks whose patches are of their own classes, with logits that are `sure` of them."""
    split = patches.split(masks, PATCH)
    classes = patches.label(split >= 0.5)
    logits = sure * torch.nn.functional.one_hot(classes, 3).float()
    vectors = dct.encode(split, 6).float()
    coarse = masks[:, ::2, ::2] if coarse is None else coarse
    return quality.of_patches(masks, logits, vectors, classes, coarse, patch=PATCH)


def column(evidence: torch.Tensor, name: str) -> list[float]:
    return evidence[:, quality.COLUMNS.index(name)].tolist()


def test_expected_iou_by_hand():
    """A formula other than the documented one, patch by patch."""
    masks = torch.rand(3, 112, 112)
    logits, vectors = torch.randn(3 * 196, 3), torch.randn(3 * 196, 6) * 8
    classes = patches.classify(logits, 0.3)
    found = quality.of_patches(masks, logits, vectors, classes, torch.rand(3, 42, 42), patch=PATCH)
    probabilities = logits.softmax(1).numpy().reshape(3, 196, 3)
    means = dct.decode(vectors, PATCH).mean((1, 2)).clamp(0, 1).numpy().reshape(3, 196)
    for number in range(3):
        less = more = 0.0
        for place in range(196):
            row, of_row = divmod(place, SIDE)
            pixels = masks[number, row * 8 : row * 8 + 8, of_row * 8 : of_row * 8 + 8]
            share = float((pixels >= 0.5).float().mean())
            _, mixed, foreground = probabilities[number, place]
            expected = foreground + mixed * means[number, place]
            less, more = less + min(share, expected), more + max(share, expected)
        assert column(found, "expected_iou")[number] == pytest.approx(less / more, abs=1e-5)


def test_doubt_about_patches_lowers_expected_iou():
    """Masks that all look equally good, however unsure the model is of their patches."""
    masks = disc(30)
    [sure], [unsure], [guess] = (column(evidence_of(masks, sure=by), "expected_iou") for by in (20, 2, 0.1))
    assert sure > 0.97
    assert 0.3 < guess < unsure < 0.9


def test_boundary_uncertainty_is_the_width_of_the_band():
    """A figure that grows with the mask instead of with the doubt about its edge."""
    # Half of a ramp is within 0.25 of its middle. A boundary of steps is 4 / pi as long as its circle.
    narrow, wide, large = (column(evidence_of(disc(r, soft=w)), "boundary_uncertainty")[0] for r, w in
                           ((20, 8), (20, 16), (40, 16)))  # fmt: skip
    assert narrow == pytest.approx(4 * np.pi / 4, rel=0.1)
    assert wide == pytest.approx(8 * np.pi / 4, rel=0.1)
    assert large == pytest.approx(wide, rel=0.1)
    assert column(evidence_of(disc(30)), "boundary_uncertainty")[0] < 0.05
    assert column(evidence_of(torch.zeros(1, 112, 112)), "boundary_uncertainty") == [0]


def test_mixed_share():
    """Patches counted that the mask does not have."""
    masks = torch.zeros(2, 112, 112)
    masks[1, :20, :16] = 1  # of which the third row of patches is mixed
    assert column(evidence_of(masks), "mixed_share") == pytest.approx([0, 2 / 196])


def test_coarse_agreement():
    """Pixels of the two stages compared that do not lie at the same place."""
    masks = torch.cat([disc(30), disc(30), torch.zeros(1, 112, 112)])
    coarse = torch.cat([disc(30, size=42), disc(30, size=42, x=86), torch.zeros(1, 42, 42)])
    same, beside, empty = column(evidence_of(masks, coarse=coarse), "coarse_agreement")
    assert same > 0.9  # of two grids
    a, b = disc(30)[0] >= 0.5, disc(30, x=86)[0] >= 0.5
    assert beside == pytest.approx(float((a & b).sum() / (a | b).sum()), abs=0.03)
    assert empty == 1


def test_values_alone():
    """A Mask R-CNN without any quality, or with figures of patches that it does not have."""
    found = quality.of_masks(torch.cat([disc(30), disc(30, soft=40)]))
    sure, unsure = column(found, "expected_iou")
    assert sure > 0.99
    assert unsure < 0.8
    assert column(found, "boundary_uncertainty")[1] > 5
    for name in ("mixed_share", "coarse_agreement"):
        assert np.isnan(column(found, name)).all()


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_head_gives_evidence_on_each_mask(blocks):
    """Evidence in another order than the masks, where a batch has several images; or none for an empty image."""
    head = small.head(blocks=blocks)
    x, fine = small.pooled(20)
    images = small.detections([9, 0, 11])
    with torch.inference_mode():
        found = head(x, fine, images)
        assert [image.evidence.shape for image in found] == [(9, 4), (0, 4), (11, 4)]
        alone = small.detections([11])
        alone[0].pred_classes = images[2].pred_classes
        [expected] = head(x[9:], fine[9:], alone)
    torch.testing.assert_close(found[2].evidence, expected.evidence, atol=1e-3, rtol=1e-3)
    assert found[2].evidence.dtype == torch.float32
    by_values = quality.of_masks(found[2].pred_masks[:, 0])
    assert column(found[2].evidence, "boundary_uncertainty") == column(by_values, "boundary_uncertainty")


@pytest.fixture(scope="module")
def cfg():
    return small.config()


@pytest.fixture(scope="module")
def model(cfg):
    return small.model(cfg)


@pytest.fixture
def image():
    return scenes.draw_scene(5, 96).image


def test_a_prediction_has_all_columns(model, cfg, image):
    """A column that is missing, of another length than the masks, or another type than Parquet has."""
    [prediction] = predict.Predictor(model, cfg)([image])
    assert tuple(prediction.quality) == predict.QUALITY
    assert len(prediction.scores) > 0
    for values in prediction.quality.values():
        assert values.dtype == np.float32
        assert values.shape == prediction.scores.shape
        assert (values >= 0).all()


def test_box_iou(model, cfg, image):
    """A mask that fills its box is as good as one that is a dot in it."""
    [found] = find(predict.Predictor(model, cfg), [image])
    found = found[:2]
    found.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 50.0, 50.0], [10.0, 10.0, 50.0, 50.0]]))
    found.pred_masks = torch.zeros(2, 1, 112, 112)
    found.pred_masks[0] = 1
    found.pred_masks[1, :, :, :56] = 1
    prediction = predict.encode(found)
    assert prediction.quality["box_iou"] == pytest.approx([1, 0.5], abs=0.03)


MASK_RCNN = ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")
DCT_MASK = ("MODEL.ROI_MASK_HEAD.NUM_STAGE", 1, "MODEL.ROI_MASK_HEAD.MASK_LOSS_PARA_EACH_STAGE", "[1.0]")


@pytest.mark.parametrize("settings", [MASK_RCNN, DCT_MASK])
def test_a_head_without_patches_has_columns_too(settings, image):
    """A run of a Mask R-CNN or a DCT-Mask that ends with a missing column."""
    cfg = small.config(*settings)
    plain, _ = small.build_model(cfg)
    if settings is DCT_MASK:  # whose masks without training are of almost nothing
        with torch.no_grad():
            plain.roi_heads.mask_head.predictor[4].weight *= 1000
    [prediction] = predict.Predictor(plain.eval(), cfg)([image])
    assert len(prediction.scores) > 0
    assert np.isnan(prediction.quality["mixed_share"]).all()
    assert np.isfinite(prediction.quality["expected_iou"]).all()


def test_flip_agreement_changes_no_label(model, cfg, image):
    """Labels that differ because somebody asked how sure they are."""
    [expected] = predict.Predictor(model, cfg)([image])
    mirrored = tta.MirroredPredictor(model, cfg)
    prepared = [mirrored.prepare(image)]
    [found] = map(predict.encode, mirrored.find(prepared))
    assert found.counts == expected.counts
    assert (found.scores == expected.scores).all()
    agreement = found.quality[predict.FLIP_AGREEMENT]
    assert ((agreement > 0) & (agreement <= 1)).all()
    assert agreement.min() < 0.999  # the model is not symmetric


def test_flip_agreement_of_the_same_masks_is_whole(model, cfg, image):
    """Masks compared with others than their own: shown the same image twice, the model agrees with itself."""
    mirrored = tta.MirroredPredictor(model, cfg)
    mirrored._mirrored = dataclasses.replace(mirrored._plain)
    prepared = mirrored.prepare(image)
    [found] = mirrored.find([tta.PreparedVersions((prepared.versions[0], prepared.versions[0]))])
    assert found.flip_agreement.tolist() == pytest.approx([1.0] * len(found), abs=1e-3)


def test_evidence_is_averaged_over_versions(model, cfg, image):
    """The evidence of one version alone, or a sum that exceeds 1."""
    [found] = find(tta.TtaPredictor(model, cfg, flip=True), [image])
    predictor = predict.Predictor(model, cfg)
    plain, mirror = predictor.prepare(image), predictor.prepare(image[:, ::-1])
    [one] = predictor.find([plain], [found])
    turned = found[list(range(len(found)))]
    boxes = found.pred_boxes.tensor.clone()
    boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    turned.pred_boxes = Boxes(boxes)
    [other] = predictor.find([mirror], [turned])
    torch.testing.assert_close(found.evidence, (one.evidence + other.evidence) / 2, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(one.evidence, other.evidence, atol=1e-3)


def test_fingerprints_tell_columns_apart(cfg):
    """A run that goes on with other columns than it began with; and one from before that no longer goes on."""
    common = {"precision": "fp32"}
    plain = predict.fingerprint(cfg, "weights", **common)
    flipped = predict.fingerprint(cfg, "weights", **common, flip_agreement=True)
    fitted = [predict.fingerprint(cfg, "weights", **common, quality_model=name) for name in "ab"]
    assert len({plain, flipped, *fitted}) == 4
