"""The ROI heads and meta-architectures around the mask head: pooling, batches, given boxes, the upper bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from pycocotools import mask as mask_api
from torch import Tensor
from torchvision.ops import box_iou, roi_align

from patchdct import roi_heads
from patchdct.build import build_model
from patchdct.config import load_config
from patchdct.predict import Predictor
from patchdct.roi_heads import PatchDCT_UPPER_BOUND_RCNN, PatchDCTROIHeads
from tests.patchdct import small

DCT_MASK = ("MODEL.ROI_MASK_HEAD.NUM_STAGE", 1, "MODEL.ROI_MASK_HEAD.MASK_LOSS_PARA_EACH_STAGE", [1.0])
UPPER_BOUND = ("MODEL.META_ARCHITECTURE", "PatchDCT_UPPER_BOUND_RCNN", "MODEL.ROI_MASK_HEAD.EVAL_GT", True)


@pytest.fixture(scope="module")
def bounded() -> PatchDCT_UPPER_BOUND_RCNN:
    """A model that is evaluated with the ground truth of its masks."""
    torch.manual_seed(3)
    return small.model(small.config(*UPPER_BOUND, "TEST.DETECTIONS_PER_IMAGE", 20))


def images(count: int, height: int = 64, width: int = 96) -> list[dict[str, Any]]:
    return [{"image": 255 * torch.rand(3, height, width), "height": height, "width": width} for _ in range(count)]


def truth(boxes: Tensor) -> Instances:
    """Ground truth of one image: an ellipse in each box."""
    x, y = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(64) + 0.5, indexing="xy")
    x0, y0, x1, y1 = boxes[..., None, None].unbind(1)
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.randint(6, (len(boxes),))
    ellipses = ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 < 1
    instances.gt_masks = BitMasks(ellipses)
    return instances


def anywhere(count: int) -> Tensor:
    return small.ellipses(count)[1]


def inference(model: GeneralizedRCNN, inputs: list[dict[str, Any]], **options: Any) -> list[Instances]:
    with torch.no_grad():
        return model.inference(inputs, do_postprocess=False, **options)


def test_what_the_mask_head_sees(cfg):
    """Fine features come from p2 for every RoI, however large; the others from the level of its size; in order."""
    heads = PatchDCTROIHeads(cfg, {f"p{i}": ShapeSpec(channels=small.CHANNELS, stride=2**i) for i in (2, 3, 4)}).eval()
    features = {f"p{i}": torch.randn(2, small.CHANNELS, 512 >> i, 512 >> i) for i in (2, 3, 4)}
    boxes = [
        torch.tensor([[8.0, 8.0, 40.0, 30.0], [0.0, 10.0, 500.0, 480.0]]),
        torch.tensor([[99.0, 60.0, 240.0, 200.0]]),
    ]
    found = []
    for image_boxes in boxes:
        image = Instances((512, 512))
        image.pred_boxes = Boxes(image_boxes)
        image.pred_classes = torch.zeros(len(image_boxes), dtype=torch.int64)
        found.append(image)
    seen: list[tuple[Tensor, Tensor]] = []
    heads.mask_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[:2]))
    with torch.no_grad():
        heads.forward_with_given_boxes(features, found)

    rois = torch.tensor([[0, *boxes[0][0]], [0, *boxes[0][1]], [1, *boxes[1][0]]])
    [(pooled, fine)] = seen
    torch.testing.assert_close(fine, roi_align(features["p2"], rois, 42, 0.25, aligned=True))
    for i, level in enumerate((2, 4, 3)):
        expected = roi_align(features[f"p{level}"], rois[i : i + 1], 14, 0.5**level, aligned=True)
        torch.testing.assert_close(pooled[i : i + 1], expected)


@pytest.mark.parametrize("counts", [[7], [2, 0, 5], [0, 3, 4], [0, 0]])
def test_masks_in_parts(counts, cfg, monkeypatch):
    """A crowded batch is pooled and predicted in parts, across images: no mask may go to another box, or get lost."""
    torch.manual_seed(0)
    heads = PatchDCTROIHeads(cfg, {f"p{i}": ShapeSpec(channels=small.CHANNELS, stride=2**i) for i in (2, 3, 4)}).eval()
    with torch.no_grad():
        heads.mask_head.predictor_bfg.weight *= 1000
    features = {f"p{i}": torch.randn(len(counts), small.CHANNELS, 64 >> i, 64 >> i) for i in (2, 3, 4)}
    images = small.detections(counts)
    sizes: list[int] = []
    heads.mask_head.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    with torch.no_grad():
        together = [found.pred_masks.clone() for found in heads.forward_with_given_boxes(features, images)]
        assert sizes == [sum(counts)]
        monkeypatch.setattr(roi_heads, "_AT_ONCE_ON_CPU", 3)
        apart = [found.pred_masks for found in heads.forward_with_given_boxes(features, images)]
    assert sizes[1:] == ([3, 3, 1] if sum(counts) else [0])
    for one, expected, count in zip(apart, together, counts, strict=True):
        assert one.shape == (count, 1, 112, 112)
        torch.testing.assert_close(one, expected, atol=1e-4, rtol=0)
    if sum(counts):
        assert torch.cat(together).std(0).max() > 0.1  # the masks are not all alike


@pytest.mark.parametrize(("changes", "sizes"), [((), {14, 42}), (DCT_MASK, {14})])
def test_fine_features_only_for_blocks(changes, sizes):
    """Pooling fine features, 42 x 42 for each RoI, costs more than DCT-Mask itself, which has no use for them."""
    heads = PatchDCTROIHeads(
        small.config(*changes), {f"p{i}": ShapeSpec(channels=small.CHANNELS, stride=2**i) for i in (2, 3, 4)}
    ).eval()
    pooled: list[int] = []
    for module in heads.modules():
        if isinstance(module, ROIPooler):
            module.register_forward_hook(lambda _, inputs, output: pooled.append(output.shape[-1]))
    features = {f"p{i}": torch.randn(1, small.CHANNELS, 64 >> i, 64 >> i) for i in (2, 3, 4)}
    with torch.no_grad():
        [found] = heads.forward_with_given_boxes(features, small.detections([2]))
    assert set(pooled) == sizes
    assert found.pred_masks.shape == (2, 1, 112, 112)


BASELINES = ("patchdct_demo", "dctmask_demo", "maskrcnn_demo", "demo_detector")


@pytest.mark.parametrize("name", BASELINES)
def test_one_step_of_training(name):
    """The demo's model and its baselines: each config builds a model of which a step of training moves every part."""
    model, _ = build_model(load_config(small.CONFIGS / f"{name}.yaml"))
    batch = images(2)
    for one in batch:
        one["instances"] = truth(anywhere(3))
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with EventStorage():
        values = model.train()(batch)
    sum(values.values()).backward()
    optimizer.step()
    masks = {"loss_mask"} if name != "demo_detector" else set()
    assert values.keys() == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} | masks
    assert all(value.isfinite() for value in values.values())
    after = dict(model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in after.values())
    parts = {key.rsplit(".", 1)[0] for key in before}
    moved = {key.rsplit(".", 1)[0] for key in before if not torch.equal(before[key], after[key])}
    assert parts == moved


@pytest.mark.parametrize("name", BASELINES[:3])
def test_labeling_with_any_mask_head(name):
    """A mask head of 28 x 28 or without blocks labels by the same way, from image to RLE."""
    overrides = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5, "INPUT.MIN_SIZE_TEST", 64]
    cfg = load_config(small.CONFIGS / f"{name}.yaml", overrides)
    model, _ = build_model(cfg)
    sides = {"maskrcnn_demo": 28}
    pixels = [np.random.randint(0, 256, (64, 96, 3), np.uint8), np.random.randint(0, 256, (70, 60, 3), np.uint8)]
    predictor = Predictor(model, cfg)
    for found, image, predicted in zip(small.find(predictor, pixels), pixels, predictor(pixels), strict=True):
        assert found.pred_masks.shape == (5, 1, *[sides.get(name, 112)] * 2)
        for counts, area in zip(predicted.counts, predicted.areas, strict=True):
            assert mask_api.decode({"size": list(image.shape[:2]), "counts": counts}).sum() == area


def test_old_name_of_the_head(model, cfg):
    """A config from before February 2023 builds the same model, which loads the same weights."""
    old = small.model(small.config("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNPatchDCTHead_NSTAGE"))
    old.load_state_dict(model.state_dict())
    batch = images(1)
    [found], [expected] = inference(old, batch), inference(model, batch)
    assert torch.equal(found.pred_masks, expected.pred_masks)


def test_training_losses(model):
    """All five losses, in a batch in which one image has no ground truth at all."""
    empty = Instances((64, 96))
    empty.gt_boxes, empty.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.int64)
    batch = images(2)
    batch[0]["instances"], batch[1]["instances"] = empty, truth(anywhere(2))
    model.train()
    with torch.no_grad(), EventStorage():
        values = model(batch)
    model.eval()
    assert set(values) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    assert all(value.isfinite() for value in values.values())
    assert values["loss_mask"] > 0


@pytest.mark.parametrize("blocks", [1, 2])
def test_images_together_and_alone(blocks):
    """Masks that depend on the batch, or that are given to another image's boxes."""
    torch.manual_seed(3)
    weights = [1.0] * (blocks + 1)
    changes = ("MODEL.ROI_MASK_HEAD.NUM_STAGE", blocks + 1, "MODEL.ROI_MASK_HEAD.MASK_LOSS_PARA_EACH_STAGE", weights)
    model = small.model(small.config(*changes))
    batch = images(3)
    together = inference(model, batch)
    alone = [inference(model, [one])[0] for one in batch]
    assert len({tuple(one.scores.tolist()) for one in alone}) == 3
    for found, expected in zip(together, alone, strict=True):
        assert len(found) > 0
        assert torch.equal(found.pred_classes, expected.pred_classes)
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=0)
        assert found.pred_masks.shape == (len(found), 1, 112, 112)
        # A patch so close to two classes that rounding decides may fall either way.
        assert ((found.pred_masks - expected.pred_masks).abs() > 1e-3).float().mean() < 0.002


def test_image_without_detections(model):
    """An image without detections beside one with some, and alone."""
    threshold = inference(model, images(1))[0].scores.min()
    assert threshold > 0
    predictor = model.roi_heads.box_predictor
    before = predictor.test_score_thresh
    predictor.test_score_thresh = 1.0
    try:
        for count in (1, 2):
            for found in inference(model, images(count)):
                assert found.pred_masks.shape == (0, 1, 112, 112)
                assert found.pred_masks.dtype == torch.float32
            with torch.no_grad():
                assert all(x["instances"].pred_masks.shape == (0, 64, 96) for x in model(images(count)))
    finally:
        predictor.test_score_thresh = before


def test_given_boxes(model):
    """Masks for boxes and classes that the caller gives, for a batch with an image that has none."""
    batch = images(3)
    given = small.detections([2, 0, 3])
    boxes = [one.pred_boxes.tensor.clone() for one in given]
    together = inference(model, batch, detected_instances=given)
    for one, found, box, again in zip(batch, together, boxes, small.detections([2, 0, 3]), strict=True):
        assert torch.equal(found.pred_boxes.tensor, box)
        assert found.pred_masks.shape == (len(box), 1, 112, 112)
        again.pred_boxes, again.pred_classes = Boxes(box), found.pred_classes
        expected = inference(model, [one], detected_instances=[again])[0].pred_masks
        torch.testing.assert_close(found.pred_masks, expected, atol=1e-3, rtol=0)


def test_augmented_at_test_time(model, cfg):
    """detectron2's test-time augmentation passes batches of three; its masks must come out at image size."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = (64, 80), 128, True
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        [output] = GeneralizedRCNNWithTTA(cfg, model)([{"image": image, "height": 64, "width": 96}])
    found = output["instances"]
    assert 0 < len(found) <= 5
    assert found.pred_masks.shape == (len(found), 64, 96)


def test_upper_bound(bounded):
    """Boxes and classes are the model's; each mask is that of the ground truth with the highest IoU, even if low."""
    assert isinstance(bounded, PatchDCT_UPPER_BOUND_RCNN)
    batch = images(2)
    plain = inference(_plainly(bounded), batch)
    near = plain[0].pred_boxes.tensor[[0, 4, 11]] + 1  # some detections match these, others lie elsewhere
    batch[0]["instances"], batch[1]["instances"] = truth(near), truth(anywhere(0))
    first, second = inference(bounded, batch)
    for found, expected in zip((first, second), plain, strict=True):
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=0)
        assert torch.equal(found.pred_classes, expected.pred_classes)
    assert len(second) > 0

    gt = batch[0]["instances"]
    overlaps = box_iou(first.pred_boxes.tensor, gt.gt_boxes.tensor)
    best, matched = overlaps.argmax(1), overlaps.max(1).values >= 0.5
    assert {(int(i), bool(m)) for i, m in zip(best, matched, strict=True)} > {(0, True), (1, True), (2, True)}
    crops = gt.gt_masks[best].crop_and_resize(first.pred_boxes.tensor, 112)
    assert ((first.pred_masks[:, 0] >= 0.5) != crops).float().mean() < 0.01
    assert crops.any((1, 2))[matched].all()
    assert crops.any((1, 2))[~matched].any()
    assert torch.equal(first.gt_classes, torch.where(matched, gt.gt_classes[best], 6))
    assert torch.equal(second.pred_masks, torch.zeros_like(second.pred_masks))

    with torch.no_grad():
        pasted = bounded(batch)
    assert pasted[0]["instances"].pred_masks.shape == (len(first), 64, 96)


def _plainly(bounded: PatchDCT_UPPER_BOUND_RCNN) -> GeneralizedRCNN:
    """The same weights in a model that predicts its masks."""
    plain = small.model(small.config("TEST.DETECTIONS_PER_IMAGE", 20))
    plain.load_state_dict(bounded.state_dict())
    return plain


def test_perfect_boxes_give_the_ground_truth(bounded):
    """The upper bound of a perfect detector: masks that are the ground truth but for the encoding of mixed patches."""
    batch = images(1)
    batch[0]["instances"] = truth(anywhere(3))
    gt = batch[0]["instances"]
    given = Instances((64, 96))
    given.pred_boxes, given.pred_classes, given.scores = gt.gt_boxes, gt.gt_classes, torch.ones(3)
    given.gt_masks = gt.gt_masks
    with torch.no_grad():
        [output] = bounded.inference(batch, detected_instances=[given])
    masks, expected = output["instances"].pred_masks, gt.gt_masks.tensor
    iou = (masks & expected).sum((1, 2)) / (masks | expected).sum((1, 2))
    assert iou.min() > 0.95


def test_upper_bound_without_ground_truth(bounded):
    """EVAL_GT without ground truth is answered with a sentence, whichever meta-architecture runs it."""
    message = r"MODEL\.ROI_MASK_HEAD\.EVAL_GT needs ground truth at inference: PatchDCT_UPPER_BOUND_RCNN takes it from"
    batch = images(2)
    batch[0]["instances"] = truth(anywhere(1))
    for infer in (PatchDCT_UPPER_BOUND_RCNN.inference, GeneralizedRCNN.inference):
        with torch.no_grad(), pytest.raises(ValueError, match=message):
            infer(bounded, batch)


def test_ground_truth_stays_unused_without_eval_gt(cfg):
    """Without EVAL_GT the upper-bound model predicts, though its inputs carry ground truth."""
    torch.manual_seed(3)
    model = small.model(small.config("MODEL.META_ARCHITECTURE", "PatchDCT_UPPER_BOUND_RCNN"))
    batch = images(1)
    expected = inference(model, batch)[0]
    found = inference(model, [{**batch[0], "instances": truth(anywhere(2))}])[0]
    assert torch.equal(found.pred_masks, expected.pred_masks)
    assert not found.has("gt_masks")


def test_without_masks():
    """MASK_ON False makes a detector of boxes of the same class."""
    model = small.model(small.config("MODEL.MASK_ON", False))
    [found] = inference(model, images(1))
    assert not found.has("pred_masks")
