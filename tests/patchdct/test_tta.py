"""Test-time augmentation: the same as detectron2's, symmetric, and in force where it is asked for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA
from pycocotools import mask as mask_api

from patchdct import predict
from patchdct.build import build_model
from patchdct.checkpoint import read_checkpoint
from patchdct.config import load_config
from patchdct.errors import ModelError
from patchdct.predict import Prediction, Predictor
from patchdct.scenes import Scene, draw_scene
from patchdct.tta import TtaPredictor
from tests.patchdct import small


@pytest.fixture(scope="module")
def trained() -> tuple[GeneralizedRCNN, CfgNode]:
    """The demo's model, for smaller images than it was trained on, and its config."""
    checkpoint = read_checkpoint(small.CONFIGS / "patchdct_demo.pth")
    cfg = load_config(text=checkpoint.config, overrides=["INPUT.MIN_SIZE_TEST", 192])
    model, _ = build_model(cfg, weights=checkpoint)
    return model, cfg


@pytest.fixture(scope="module")
def scene() -> Scene:
    return draw_scene(101, 192)


def image(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.randint(0, 256, (height, width, 3), np.uint8)


def decoded(found: Prediction, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Masks [n, height, width]."""
    rles = [{"size": [height, width], "counts": counts} for counts in found.counts]
    return mask_api.decode(rles).transpose(2, 0, 1) if rles else np.zeros((0, height, width), np.uint8)


@pytest.mark.parametrize(("flip", "scales"), [(True, ()), (False, (192, 208, 224))])
def test_same_as_detectron2(trained, scene, flip, scales):
    """Boxes, classes, scores and masks are those of detectron2's augmentation, given one version a forward pass."""
    model, cfg = trained
    pixels = scene.image  # of the size that the model sees, as detectron2 mirrors after resizing
    inputs = {"image": torch.from_numpy(pixels[:, :, ::-1].transpose(2, 0, 1).copy()), "height": 192, "width": 192}
    theirs = cfg.clone()
    theirs.defrost()
    theirs.TEST.AUG.MIN_SIZES, theirs.TEST.AUG.MAX_SIZE, theirs.TEST.AUG.FLIP = scales or (192,), 597, flip
    with torch.no_grad():
        [output] = GeneralizedRCNNWithTTA(theirs, model, batch_size=1)([inputs])
    expected = output["instances"]
    assert len(expected) > 2

    [found] = small.find(TtaPredictor(model, cfg, flip=flip, scales=scales), [pixels])
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=0)
    masks = expected.pred_masks.numpy()
    # Values that are 0.5 but for rounding, where versions call a patch background and foreground, may fall either way.
    assert (decoded(predict.encode(found), 192, 192) != masks[masks.any((1, 2))]).mean() < 1e-4


def test_mirror_image(trained, scene):
    """The labels of a mirrored image are the mirrored labels: no side is preferred, and no box is a pixel off."""
    model, cfg = trained
    predictor = TtaPredictor(model, cfg, flip=True)
    pixels = [scene.image, scene.image[:150, :121]]
    turned = small.find(predictor, [shown[:, ::-1] for shown in pixels])
    for found, mirrored in zip(small.find(predictor, pixels), turned, strict=True):
        height, width = found.image_size
        assert len(found) > 2
        assert torch.equal(mirrored.pred_classes, found.pred_classes)
        torch.testing.assert_close(mirrored.scores, found.scores, atol=1e-6, rtol=0)
        x0, y0, x1, y1 = mirrored.pred_boxes.tensor.unbind(1)
        boxes = torch.stack([width - x1, y0, width - x0, y1], 1)
        torch.testing.assert_close(boxes, found.pred_boxes.tensor, atol=1e-3, rtol=0)
        torch.testing.assert_close(mirrored.pred_masks.flip(-1), found.pred_masks, atol=1e-3, rtol=0)
        masks = decoded(predict.encode(found), height, width)
        assert (decoded(predict.encode(mirrored), height, width)[:, :, ::-1] != masks).mean() < 1e-4
        assert 0 < masks.mean() < 0.5


def test_sizes(model, cfg):
    """Each scale takes the place of the shorter side and moves the limit of the longer one with it."""
    shown: list[tuple[int, int]] = []
    hook = model.proposal_generator.register_forward_pre_hook(lambda _, inputs: shown.extend(inputs[0].image_sizes))
    try:
        TtaPredictor(model, cfg, flip=False, scales=(64, 128, 32))([image(50, 200), image(100, 120)])
        TtaPredictor(model, cfg, flip=True)([image(50, 200)])
    finally:
        hook.remove()
    of_scale = [{(24, 96), (64, 77)}, {(48, 192), (128, 154)}, {(12, 48), (32, 38)}]
    assert [set(shown[i : i + 2]) for i in (0, 2, 4)] == of_scale
    assert shown[6:] == [(24, 96)] * 2


def test_images_as_they_are():
    """A config that does not resize (MIN_SIZE_TEST 0) still takes scales."""
    cfg = small.config("INPUT.MIN_SIZE_TEST", 0)
    [found] = TtaPredictor(small.model(cfg), cfg, flip=True, scales=(64, 96))([image(64, 80)])
    assert len(found.counts) > 0


def test_images_together_and_alone(model, cfg):
    """What an image is given must not depend on the others of its batch, of its own size or of another."""
    predictor = TtaPredictor(model, cfg, flip=True, scales=(64, 48))
    batch = [image(height, width) for height, width in ((64, 96), (33, 50), (64, 96), (1, 300))]
    for found, pixels in zip(predictor(batch), batch, strict=True):
        [alone] = predictor([pixels])
        np.testing.assert_array_equal(found.classes, alone.classes)
        np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-5)
        size = pixels.shape[:2]
        assert (decoded(found, *size) != decoded(alone, *size)).mean() < 0.002
    assert predictor([]) == []


def test_where_images_are_resized(trained, scene):
    """A version that is resized on the model's device, and is another one; or known boxes that are scaled otherwise."""
    before, within = (
        TtaPredictor(*trained, flip=True, scales=(160, 128), resize_on_device=on_device) for on_device in (False, True)
    )
    batch = [scene.image, scene.image[:150, :121]]
    assert [within.prepare(one).like for one in batch] == [before.prepare(one).like for one in batch]
    assert within.prepare(batch[0]).nbytes == 4 * batch[0].nbytes
    for found, expected in zip(small.find(within, batch), small.find(before, batch), strict=True):
        assert len(found) > 0
        assert found.pred_masks.std(0).max() > 0.1
        assert torch.equal(found.pred_masks, expected.pred_masks)
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_limit_of_detections(model, cfg):
    """The versions together find more than the limit; the labels are the best of them, in order, within it."""
    [found] = small.find(TtaPredictor(model, cfg, flip=True, scales=(64, 80, 96)), [image(64, 96)])
    assert len(found) == cfg.TEST.DETECTIONS_PER_IMAGE
    assert (found.scores.diff() <= 0).all()


def test_nothing_to_find(model, cfg):
    """An image in which no version finds anything."""
    predictor = model.roi_heads.box_predictor
    before = predictor.test_score_thresh
    predictor.test_score_thresh = 1.0
    try:
        found = TtaPredictor(model, cfg, flip=True)([image(64, 80), image(80, 64)])
    finally:
        predictor.test_score_thresh = before
    assert [one.counts for one in found] == [(), ()]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision(model, cfg, precision, dtype):
    """Half precision is for both passes, of boxes and of masks; the mean of masks and the scores are float32."""
    seen: list[torch.dtype] = []
    layers = (model.roi_heads.box_head.fc1, model.roi_heads.mask_head.predictor)
    hooks = [layer.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype)) for layer in layers]
    try:
        predictor = TtaPredictor(model, cfg, precision=precision, flip=True)
        [found] = small.find(predictor, [image(64, 96)])
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == [dtype] * 4
    assert found.pred_masks.dtype == torch.float32
    assert predict.encode(found).scores.dtype == np.float32


def test_model_that_fails(model, cfg):
    """A forward pass that breaks off, as for lack of memory, must not leave a model behind that predicts no masks."""

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = model.backbone.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            TtaPredictor(model, cfg, flip=True)([image(64, 96)])
    finally:
        hook.remove()
    assert len(Predictor(model, cfg)([image(64, 96)])[0].counts) > 0


def test_model_without_masks():
    """A detector of boxes cannot label, and says so before the first image."""
    cfg = small.config("MODEL.MASK_ON", False)
    for make in (Predictor, lambda *args: TtaPredictor(*args, flip=True)):
        with pytest.raises(ModelError, match=r"MODEL\.MASK_ON is False"):
            make(small.model(cfg), cfg)


def test_fingerprint(cfg):
    """Labels with and without augmentation, or of other versions, must not be mixed in one run."""
    plain = predict.fingerprint(cfg, "ab", precision="fp32")
    assert predict.fingerprint(cfg, "ab", precision="fp32", flip=False, scales=()) == plain
    others = {
        predict.fingerprint(cfg, "ab", precision="fp32", flip=flip, scales=scales)
        for flip, scales in ((True, ()), (True, (64,)), (False, (64,)), (False, (64, 80)))
    }
    assert len(others | {plain}) == 5
