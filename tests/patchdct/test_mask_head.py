"""The mask head: its masks against the paper's plain form, its losses and gradients, and its odd inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances
from scipy.fft import dctn, idctn
from torch import Tensor

from patchdct import dct, losses, patches, targets
from patchdct.mask_head import MaskRCNNPatchDCTHead
from patchdct.patches import BACKGROUND, FOREGROUND
from tests.memory import gauge
from tests.patchdct import plain_form, small


def dct_mask_head(**changes: object) -> MaskRCNNPatchDCTHead:
    """A narrow head without blocks, from a config, whose vectors are of order 1."""
    changes = {"NUM_STAGE": 1, "MASK_LOSS_PARA_EACH_STAGE": [1.0], **changes}
    cfg = small.config(*(item for key, value in changes.items() for item in (f"MODEL.ROI_MASK_HEAD.{key}", value)))
    head = MaskRCNNPatchDCTHead(cfg, ShapeSpec(channels=small.CHANNELS, width=14, height=14))
    with torch.no_grad():
        head.predictor[4].weight *= 30
    return head.eval()


def inference(head: MaskRCNNPatchDCTHead, x: Tensor, fine: Tensor | None, found: list[Instances]) -> list[Tensor]:
    """The masks of each image."""
    with torch.no_grad():
        return [image.pred_masks for image in head(x, fine, found)]


def loss(head: MaskRCNNPatchDCTHead, x: Tensor, fine: Tensor | None, images: list[Instances]) -> Tensor:
    result = head.train()(x, fine, images)
    assert list(result) == ["loss_mask"]
    return result["loss_mask"]


def gradients(head: MaskRCNNPatchDCTHead, value: Tensor) -> dict[str, Tensor]:
    head.zero_grad()
    value.backward()
    return {name: parameter.grad for name, parameter in head.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_masks_of_the_plain_form(blocks):
    """The head's shortcuts (one class only, decoding with resizing) must change no mask and no patch's class."""
    torch.manual_seed(0)  # by which no patch is so close to two classes that rounding decides
    head = small.head(blocks=blocks)
    classes = torch.tensor([0, 1, 2, 2, 1, 0, 1, 0, 0, 2, 1])  # more than go through the convolutions at once
    x, fine = small.pooled(len(classes))
    found = small.detections([len(classes)])
    found[0].pred_classes = classes
    with torch.no_grad():
        expected, decided = plain_form.masks(head, x, fine, classes)
        logits, _ = head.refine(head.whole_mask(x), fine, classes)[-1]
    assert decided.bincount(minlength=3).min() > 50
    assert torch.equal(patches.classify(logits, 0.3), decided)

    (masks,) = inference(head, x, fine, found)
    assert masks.shape == (11, 1, 112, 112)
    assert masks.dtype == torch.float32
    torch.testing.assert_close(masks[:, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("blocks", [1, 2])
def test_gradients_of_the_plain_form(blocks):
    """A detached mask or a path that is lost trains another model, though the masks are the same."""
    head = small.head(blocks=blocks)
    x, fine = small.pooled(4)
    images = small.proposals([1, 3])
    classes = torch.cat([image.gt_classes for image in images])
    truth = targets.from_proposals(images, size=112, dim=300, patch=8, patch_dim=6)
    weights = [1.0] * (blocks + 1)

    ours = loss(head, x, fine, images)
    plain = losses.mask_loss(*plain_form.blocks(head, x, fine, classes), truth, weights=weights)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    found, expected = gradients(head, ours), gradients(head, plain)
    assert found.keys() == expected.keys() == dict(head.named_parameters()).keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=name)
        assert gradient.any(), name


def test_plain_argmax_between_blocks():
    """The 0.3 rule is for the last block only; earlier it would feed the weights other masks than in training."""
    head = small.head(blocks=2)
    x, fine = small.pooled(6)
    classes = torch.tensor([0, 1, 2, 2, 1, 0])
    with torch.no_grad():
        outputs = [head.refine(head.whole_mask(x), fine, classes)]
        first = outputs[0][0][0]
        assert (first.argmax(1) != patches.classify(first, 0.3)).any()
        head.patch_threshold = 0.9
        outputs.append(head.refine(head.whole_mask(x), fine, classes))
    assert torch.equal(outputs[0][1][0], outputs[1][1][0])


@pytest.mark.parametrize("label", [BACKGROUND, FOREGROUND])
def test_certain_patches(label):
    """Where every patch is certainly pure, the mask is exactly 0 or 1 everywhere, whatever the vectors."""
    head = small.head()
    with torch.no_grad():
        head.predictor_bfg.weight.zero_()
        head.predictor_bfg.bias.view(-1, 3).copy_(20 * torch.eye(3)[label].expand(small.CLASSES, 3))
    (masks,) = inference(head, *small.pooled(3), small.detections([3]))
    if label == BACKGROUND:
        assert torch.equal(masks, torch.zeros(3, 1, 112, 112))
    else:
        torch.testing.assert_close(masks, torch.ones(3, 1, 112, 112), atol=1e-6, rtol=0)


@pytest.mark.parametrize("counts", [[4], [2, 0, 3], [0], [0, 0], [0, 1]])
def test_images_together_and_alone(counts):
    """Masks of one image given to another, or none at all for the images after the first."""
    head = small.head(blocks=2)
    x, fine = small.pooled(sum(counts))
    found = small.detections(counts)
    alone = []
    for part, fine_part, image in zip(x.split(counts), fine.split(counts), found, strict=True):
        alone += inference(head, part, fine_part, [image])
    for mask, expected, count in zip(inference(head, x, fine, found), alone, counts, strict=True):
        assert mask.shape == (count, 1, 112, 112)
        assert mask.dtype == torch.float32
        torch.testing.assert_close(mask, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("weights", [[0.7, 1.3], [0.5, 0.5, 0.8]])
@pytest.mark.parametrize("kind", ["l1", "sl1", "l2"])
def test_configured_loss(kind, weights, scale):
    """A key of the loss that the head does not pass on."""
    blocks = len(weights) - 1
    changes = {"mask_loss_para": scale, "mask_loss_para_each_stage": weights, "dct_loss_type": kind}
    head = small.head(blocks=blocks, **changes)
    x, fine = small.pooled(3)
    images = small.proposals([3])
    truth = targets.from_proposals(images, size=112, dim=300, patch=8, patch_dim=6)
    plain = plain_form.blocks(head, x, fine, images[0].gt_classes)
    expected = scale * losses.mask_loss(*plain, truth, weights=weights, kind=kind)
    torch.testing.assert_close(loss(head, x, fine, images), expected, atol=1e-4, rtol=1e-4)


def test_unknown_distance():
    """A misspelt DCT_LOSS_TYPE is named, not ignored."""
    head = small.head(dct_loss_type="huber")
    with pytest.raises(ValueError, match="DCT_LOSS_TYPE is 'huber'; accepted are l1, sl1, l2"):
        loss(head, *small.pooled(1), small.proposals([1]))


def test_block_loss_trains_the_whole_mask():
    """The mask between the stages is not detached: the block's loss alone reaches the first convolution."""
    head = small.head(mask_loss_para_each_stage=[0.0, 1.0])
    found = gradients(head, loss(head, *small.pooled(2), small.proposals([2])))
    for name in ("mask_fcn1.weight", "predictor.4.weight", "reshape.weight"):
        assert found[name].abs().max() > 0


def test_two_masks_by_heart():
    """Trained on two RoIs, the head must give their masks back: targets, losses and inference mean the same thing."""
    head = small.head()
    x, fine = small.pooled(2)
    images, found = small.proposals([2]), small.detections([2])
    found[0].pred_classes = images[0].gt_classes
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss(head, x, fine, images).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
    (masks,) = inference(head.eval(), x, fine, found)
    truth = images[0].gt_masks.crop_and_resize(images[0].proposal_boxes.tensor, 112)
    found_masks = masks[:, 0] >= 0.5
    assert ((found_masks & truth).sum((1, 2)) / (found_masks | truth).sum((1, 2))).min() > 0.95


@pytest.mark.parametrize("blocks", [1, 2])
def test_order_of_rois(blocks):
    """Targets that do not follow their RoIs would make the loss depend on the order."""
    head = small.head(blocks=blocks)
    x, fine = small.pooled(4)
    (image,) = small.proposals([4])
    order = torch.tensor([2, 0, 3, 1])
    first = loss(head, x, fine, [image])
    torch.testing.assert_close(loss(head, x[order], fine[order], [image[order]]), first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss(head, x, fine, [image[:1], image[1:]]), first, atol=1e-5, rtol=1e-5)
    assert abs(loss(head, x[order], fine[order], [image]) - first) > 1e-3


def test_images_without_foreground():
    """Images without foreground proposals, before, between and after the others, change nothing."""
    head = small.head()
    x, fine = small.pooled(3)
    images = small.proposals([1, 2])
    empty = small.proposals([0])[0]
    expected = loss(head, x, fine, images)
    torch.testing.assert_close(loss(head, x, fine, [empty, images[0], empty, images[1], empty]), expected)


@pytest.mark.parametrize("blocks", [1, 2])
def test_no_foreground_at_all(blocks):
    """A batch without foreground must neither raise nor leave parameters without a gradient: others wait for it."""
    head = small.head(blocks=blocks)
    value = loss(head, *small.pooled(0), small.proposals([0, 0]))
    assert float(value.detach()) == 0
    found = gradients(head, value)
    assert found.keys() == dict(head.named_parameters()).keys()
    assert not any(gradient.any() for gradient in found.values())


def test_no_mixed_patch():
    """An object that fills its boxes has no mixed patch; a mean over none would be NaN."""
    head = small.head()
    image = Instances((small.IMAGE, small.IMAGE))
    image.proposal_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    image.gt_classes = torch.tensor([1])
    image.gt_masks = BitMasks(torch.ones(1, small.IMAGE, small.IMAGE, dtype=torch.bool))
    value = loss(head, *small.pooled(1), [image])
    found = gradients(head, value)
    assert torch.isfinite(value)
    assert found.keys() == dict(head.named_parameters()).keys()
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_mixed_precision():
    """Under autocast the loss stays close to that in full precision, and masks are float32."""
    head = small.head()
    x, fine = small.pooled(3)
    images = small.proposals([3])
    full = loss(head, x, fine, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(head, x, fine, images)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0, rtol=0.02)
    for eval_gt in (False, True):
        head.eval().eval_gt = eval_gt
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (masks,) = inference(head, x, fine, small.detections([3]))
        assert masks.dtype == torch.float32


def test_training_after_inference():
    """A labeler's inference mode must leave nothing behind that a training in the same process trips over."""
    head = small.head(dct_vector_dim=299)  # of no other test
    with torch.inference_mode():
        head(*small.pooled(1), small.detections([1]))
    assert gradients(head, loss(head, *small.pooled(1), small.proposals([1])))


def test_upper_bound():
    """With EVAL_GT a mask is its ground truth in the predicted box: mixed patches in 6 coefficients, others exact."""
    head = small.head(eval_gt=True)
    found = small.detections([2, 0, 1])
    for image in found:
        image.gt_masks = BitMasks(small.ellipses(len(image))[0])
    masks = inference(head, *small.pooled(3), found)
    assert [len(mask) for mask in masks] == [2, 0, 1]
    assert masks[1].shape == (0, 1, 112, 112)
    low = np.add.outer(np.arange(8), np.arange(8)) <= 2
    for image, mask in zip(found, masks, strict=True):
        crops = image.gt_masks.crop_and_resize(image.pred_boxes.tensor, 112).numpy().astype(np.float64)
        for crop, got in zip(crops, mask[:, 0].numpy(), strict=True):
            cells = crop.reshape(14, 8, 14, 8).swapaxes(1, 2)
            rough = idctn(dctn(cells, axes=(2, 3), norm="ortho") * low, axes=(2, 3), norm="ortho")
            pure = (cells == cells[:, :, :1, :1]).all((2, 3), keepdims=True)
            expected = np.where(pure, cells, rough).swapaxes(1, 2).reshape(112, 112)
            np.testing.assert_allclose(got, expected, atol=1e-5)
            assert pure.any()
            assert not pure.all()
            assert ((got >= 0.5) != crop).mean() < 0.01


def test_upper_bound_without_ground_truth():
    """An image without ground truth has empty masks under EVAL_GT, beside one that has some."""
    head = small.head(eval_gt=True)
    found = small.detections([2, 1])
    found[1].gt_masks = BitMasks(torch.ones(1, small.IMAGE, small.IMAGE, dtype=torch.bool))
    without, with_truth = inference(head, *small.pooled(3), found)
    assert torch.equal(without, torch.zeros(2, 1, 112, 112))
    assert with_truth.max() > 0.5


@pytest.mark.parametrize("changes", [{"mask_size_assemble": 128}, {"fine_features_resolution": 43}, {"num_stage": 3}])
def test_sizes_that_contradict(changes):
    """Built without a config, a head whose sizes do not fit fails at once and not in the first batch."""
    with pytest.raises(AssertionError):
        small.head(**changes)


def test_parameters_without_blocks():
    """DCT-Mask alone has the parameters of the first stage, under the names that they have beside blocks."""
    alone, whole = dct_mask_head().state_dict(), small.head(blocks=2).state_dict()
    assert alone.keys() < whole.keys()
    assert {name.split(".")[0] for name in alone} == {*(f"mask_fcn{i}" for i in (1, 2, 3, 4)), "predictor"}
    blocks = {name.split(".")[0] for name in whole.keys() - alone.keys()}
    assert blocks == {"reshape", "fusion", "downsample", "predictor_bfg", "predictor1"}


def test_masks_without_blocks():
    """The mask of DCT-Mask is its vector decoded, float32 also under autocast, and needs no fine features."""
    head, x = dct_mask_head(), small.pooled(3)[0]
    with torch.no_grad():
        expected = plain_form.decode(head.whole_mask(x), 112)
    assert expected.std() > 0.05
    masks = inference(head, x, None, small.detections([2, 0, 1]))
    assert [mask.shape for mask in masks] == [(count, 1, 112, 112) for count in (2, 0, 1)]
    torch.testing.assert_close(torch.cat(masks)[:, 0], expected, atol=1e-5, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (half,) = inference(head, x, None, small.detections([3]))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half[:, 0], expected, atol=0.05, rtol=0)


def test_loss_without_blocks():
    """Without blocks the loss is that of the vectors, weighted and scaled, and reaches every parameter."""
    head, x = dct_mask_head(MASK_LOSS_PARA=0.5, MASK_LOSS_PARA_EACH_STAGE=[0.7]), small.pooled(3)[0]
    images = small.proposals([1, 0, 2])
    crops = [i.gt_masks.crop_and_resize(i.proposal_boxes.tensor, 112).double().numpy() for i in images if len(i)]
    spectra = dctn(np.concatenate(crops), axes=(1, 2), norm="ortho")
    rows, columns = np.transpose(dct.zigzag(112, 300))
    with torch.no_grad():
        far = (head.whole_mask(x).double() - torch.from_numpy(spectra[:, rows, columns])).abs().mean()
    value = loss(head, x, None, images)
    torch.testing.assert_close(value.double(), 0.5 * 0.7 * far, atol=0, rtol=1e-5)
    found = gradients(head, value)
    assert found.keys() == dict(head.named_parameters()).keys()
    assert all(gradient.any() for gradient in found.values())

    nothing = loss(head, small.pooled(0)[0], None, small.proposals([0, 0]))
    assert float(nothing.detach()) == 0
    assert gradients(head, nothing).keys() == dict(head.named_parameters()).keys()


def test_upper_bound_without_blocks():
    """With EVAL_GT, DCT-Mask alone gives the 300 lowest coefficients of the ground truth, zeros where there is none."""
    head = dct_mask_head(EVAL_GT=True)
    found = small.detections([2, 1])
    found[0].gt_masks = BitMasks(small.ellipses(2)[0])
    crops = found[0].gt_masks.crop_and_resize(found[0].pred_boxes.tensor, 112).double().numpy()
    low = np.zeros((112, 112))
    low[tuple(np.transpose(dct.zigzag(112, 300)))] = 1
    expected = idctn(dctn(crops, axes=(1, 2), norm="ortho") * low, axes=(1, 2), norm="ortho")
    first, second = inference(head, small.pooled(3)[0], None, found)
    np.testing.assert_allclose(first[:, 0], expected, atol=1e-4)
    assert 0 < ((first[:, 0].numpy() >= 0.5) != crops).mean() < 0.02
    assert torch.equal(second, torch.zeros(1, 1, 112, 112))


def test_blocks_without_fine_features():
    """ROI heads that pool none for a head with blocks must not be answered with the masks of its first stage."""
    with pytest.raises(AssertionError, match="fine features"):
        inference(small.head(), small.pooled(1)[0], None, small.detections([1]))


def test_a_new_number_of_masks_costs_no_memory_for_good():
    """The kernels of a CPU are compiled for each shape and kept: a worker would grow over weeks until it is killed."""
    head = small.head(blocks=1)

    def label(count: int) -> None:
        inference(head, *small.pooled(count), small.detections([count]))

    for count in range(1, 97, 4):  # each number that masks are filled up to
        label(count)
    before = gauge.read().allocated
    for count in range(2, 97, 4):
        label(count)
    assert (gauge.read().allocated - before) / 24 < 10_000  # bytes a call; without filling up it is 268,000
