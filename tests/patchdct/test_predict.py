"""From images to instance masks as RLE: the same as detectron2 step by step, whatever shares the batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers.mask_ops import _do_paste_mask
from PIL import Image
from pycocotools import mask as mask_api

from patchdct import predict
from patchdct.predict import Prediction, Predictor
from tests.patchdct import small


@pytest.fixture(scope="module")
def cfg() -> CfgNode:
    """Another order of colours than the demo's, so that a mix-up shows."""
    return small.config("INPUT.FORMAT", "BGR")


def image(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.randint(0, 256, (height, width, 3), np.uint8)


def assert_same(found: Prediction, expected: Prediction) -> None:
    """The same strings; scores may differ in their last bits, as sums of larger batches are ordered differently."""
    assert found.counts == expected.counts
    for name in ("classes", "areas", "boxes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


def test_same_as_detectron2_step_by_step(model, cfg):
    """Colours in the wrong order, boxes in the wrong scale, or masks off by a pixel."""
    pixels = image(100, 130)
    resized = np.asarray(Image.fromarray(pixels).resize((83, 64), Image.Resampling.BILINEAR))
    inputs = {"image": torch.from_numpy(resized[:, :, ::-1].transpose(2, 0, 1).copy())}
    with torch.no_grad():
        [raw] = model.inference([inputs], do_postprocess=False)
    boxes = raw.pred_boxes.tensor * torch.tensor([130 / 83, 100 / 64] * 2)
    boxes = boxes.clamp(torch.zeros(4), torch.tensor([130.0, 100.0, 130.0, 100.0]))
    pasted, _ = _do_paste_mask(raw.pred_masks, boxes, 100, 130, skip_empty=False)
    masks = (pasted >= 0.5).numpy()
    kept = masks.any((1, 2))
    assert kept.sum() > 1

    [found] = Predictor(model, cfg)([pixels])
    assert found.classes.dtype == found.areas.dtype == np.int64
    assert found.scores.dtype == np.float32
    np.testing.assert_array_equal(found.classes, raw.pred_classes.numpy()[kept])
    np.testing.assert_allclose(found.scores, raw.scores.numpy()[kept], rtol=1e-6)
    assert (np.diff(found.scores) <= 0).all()
    np.testing.assert_array_equal(found.areas, masks[kept].sum((1, 2)))
    decoded = [mask_api.decode({"size": [100, 130], "counts": counts}) for counts in found.counts]
    np.testing.assert_array_equal(decoded, masks[kept])
    tight = mask_api.toBbox([{"size": [100, 130], "counts": counts} for counts in found.counts])
    np.testing.assert_array_equal(found.boxes, tight)


def test_colour_order(model):
    """A model trained on RGB must see red where red is."""
    pixels = image(64, 64)
    bgr, rgb = (Predictor(model, small.config("INPUT.FORMAT", order)) for order in ("BGR", "RGB"))
    assert_same(bgr([pixels])[0], rgb([pixels[:, :, ::-1]])[0])


def test_images_together_and_alone(model, cfg):
    """What an image is given must not depend on the others of its batch, of its own size or of another."""
    predictor = Predictor(model, cfg)
    batch = [image(height, width) for height, width in ((64, 96), (96, 64), (60, 96), (64, 96), (200, 210), (33, 50))]
    for found, pixels in zip(predictor(batch), batch, strict=True):
        assert len(found.counts) > 0
        assert_same(found, predictor([pixels])[0])
    backwards = predictor(batch[::-1])[::-1]
    for found, expected in zip(backwards, predictor(batch), strict=True):
        assert_same(found, expected)


def test_nothing_to_find(model, cfg):
    """No images, images without detections, and detections whose masks have no pixel."""
    predictor = Predictor(model, cfg)
    assert predictor([]) == []
    threshold = model.roi_heads.box_predictor.test_score_thresh
    bias = model.roi_heads.mask_head.predictor_bfg.bias.detach().clone()
    try:
        with torch.no_grad():
            model.roi_heads.mask_head.predictor_bfg.bias[0::3] = 1e6
        empty = predictor([image(64, 80)])
        model.roi_heads.box_predictor.test_score_thresh = 1.0
        empty += predictor([image(64, 80), image(80, 64)])
    finally:
        model.roi_heads.box_predictor.test_score_thresh = threshold
        with torch.no_grad():
            model.roi_heads.mask_head.predictor_bfg.bias.copy_(bias)
    for found in empty:
        assert found.counts == ()
        assert found.classes.shape == found.scores.shape == found.areas.shape == (0,)
        assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (900, 2), (5000, 1)])
def test_thin_images(model, cfg, shape):
    """A thin image in a set of millions, of which resizing would leave nothing, must not take its shard down."""
    images = [image(*shape), image(64, 64)]
    [found, _] = Predictor(model, cfg)(images)
    for counts, area in zip(found.counts, found.areas, strict=True):
        assert mask_api.decode({"size": list(shape), "counts": counts}).sum() == area
    assert_same(Predictor(model, cfg, resize_on_device=True)(images)[0], found)


def test_an_image_that_is_reduced_much(model, cfg):
    """One of 100,000 x 1 pixels, for each of which the GPU would be given a step while all other images wait."""
    predictor = Predictor(model, cfg, resize_on_device=True)
    assert [predictor.prepare(image(*shape)).resized for shape in ((1, 100_000), (100_000, 2), (1, 3000))] == [1, 1, 0]


def test_where_images_are_resized(model, cfg, monkeypatch):
    """Labels that depend on where images are resized; or, on the model's device, a pass for each image of a size."""
    shapes = []

    def noted(images, size, **settings):
        shapes.append((tuple(images.shape), size))
        return resize_tensor(images, size, **settings)

    resize_tensor = predict.resizing.resize_tensor
    monkeypatch.setattr(predict.resizing, "resize_tensor", noted)
    before, within = Predictor(model, cfg), Predictor(model, cfg, resize_on_device=True)
    batch = [image(height, width) for height, width in ((100, 150), (64, 96), (100, 150), (128, 192), (30, 20))]
    batch[0].flags.writeable = False
    prepared, late = [before.prepare(one) for one in batch], [within.prepare(one) for one in batch]
    assert [one.like for one in late] == [one.like for one in prepared] == [(64, 96)] * 4 + [(96, 64)]
    assert [one.nbytes for one in late] == [one.nbytes for one in batch]
    assert [one.nbytes for one in prepared] == [3 * 64 * 96] * 5
    for found, expected in zip(small.find(within, batch), small.find(before, batch), strict=True):
        assert len(found) > 0
        assert found.image_size == expected.image_size
        assert_same(predict.encode(found), predict.encode(expected))
    assert shapes == [
        ((2, 100, 150, 3), (64, 96)),
        ((1, 64, 96, 3), (64, 96)),
        ((1, 128, 192, 3), (64, 96)),
        ((1, 30, 20, 3), (96, 64)),
    ]


class Cramped(torch.nn.Module):
    """Has memory for so many images at a time."""

    def __init__(self, model, room):
        super().__init__()
        self.model, self.room, self.sizes = model, room, []
        self.backbone = model.backbone

    def inference(self, inputs, given, *, do_postprocess):
        self.sizes.append(len(inputs))
        if len(inputs) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model.inference(inputs, given, do_postprocess=do_postprocess)


def test_out_of_memory(model, cfg):
    """A batch of unusually many masks that ends a run; or one that is tried for ever."""
    batch = [image(64, 96) for _ in range(7)]
    cramped = Cramped(model, 2)
    for found, expected in zip(Predictor(cramped, cfg)(batch), Predictor(model, cfg)(batch), strict=True):
        assert_same(found, expected)
    assert cramped.sizes == [7, 3, 1, 2, 4, 2, 2]
    with pytest.raises(torch.OutOfMemoryError):
        Predictor(Cramped(model, 0), cfg)(batch)


def test_steps(model, cfg):
    """The steps that a worker takes in different threads give what one call gives."""
    predictor = Predictor(model, cfg)
    batch = [image(64, 96), image(70, 50), image(33, 50)]
    prepared = [predictor.prepare(pixels) for pixels in batch]
    assert [one.like for one in prepared] == [(64, 96), (96, 64), (64, 96)]
    assert prepared[0].nbytes == 3 * 64 * 96
    fetched = predict.fetch(predictor.find(prepared))
    for found, expected in zip(fetched.wait(), predictor(batch), strict=True):
        assert_same(predict.encode(found), expected)


class Chip:
    """Takes `fixed` seconds for a batch and `each` for an image of it, and has memory for `room` images."""

    def __init__(self, fixed, each, room=1000):
        self.fixed, self.each, self.room, self.now = fixed, each, room, 0.0

    def try_out(self, size):
        if size > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.now += self.fixed + self.each * size


@pytest.mark.parametrize(
    ("chip", "best"),
    [
        (Chip(0.0, 1.0), 1),  # nothing is gained
        (Chip(0.1, 1.0), 2),  # 1.1, 1.05, 1.025 s an image
        (Chip(10.0, 1.0), 64),
        (Chip(10.0, 1.0, room=20), 16),
        (Chip(10.0, 1.0, room=1), 1),
    ],
)
def test_best_batch_size(chip, best):
    """Batches that are too small for the chip, or larger than pays, or than its memory holds."""
    assert predict.best_batch_size(chip.try_out, clock=lambda: chip.now) == best


@pytest.mark.parametrize("masks", [None, 2])
def test_trial_goes_as_far_as_labels_do(model, cfg, masks):
    """A batch size that is found for images without masks, and runs out of memory at the first with many."""
    seen = []
    hook = model.roi_heads.mask_head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        Predictor(model, cfg).try_out(3, masks=masks)
    finally:
        hook.remove()
    assert seen[-1] == 3 * (masks or cfg.TEST.DETECTIONS_PER_IMAGE)


def test_training_after_labeling(cfg):
    """Labeling leaves the model as it was: it can be trained afterwards, in the same process."""
    torch.manual_seed(3)
    model = small.model(cfg)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Predictor(model, cfg)([image(64, 64)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    head = model.roi_heads.mask_head.train()
    head(torch.randn(1, 8, 14, 14), torch.randn(1, 8, 42, 42), small.proposals([1]))["loss_mask"].backward()
    assert head.mask_fcn1.weight.grad is not None


def test_half_precision(model, cfg):
    """In bf16 the masks come out as valid RLE, mostly of the same pixels."""
    pixels = [image(64, 96), image(64, 96)]
    for found in Predictor(model, cfg, precision="bf16")(pixels):
        assert len(found.counts) > 0
        assert found.scores.dtype == np.float32
        assert np.isfinite(found.scores).all()
        decoded = [mask_api.decode({"size": [64, 96], "counts": counts}).sum() for counts in found.counts]
        np.testing.assert_array_equal(decoded, found.areas)


def test_fingerprint(cfg):
    """Labels of different models, weights or precisions must not be mixed in one run."""
    first = predict.fingerprint(cfg, "ab", precision="fp32")
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert predict.fingerprint(small.config("INPUT.FORMAT", "BGR"), "ab", precision="fp32") == first
    others = {
        predict.fingerprint(cfg, "ac", precision="fp32"),
        predict.fingerprint(cfg, None, precision="fp32"),
        predict.fingerprint(cfg, "ab", precision="bf16"),
        predict.fingerprint(small.config("INPUT.MIN_SIZE_TEST", 65), "ab", precision="fp32"),
    }
    assert len(others | {first}) == 5
