"""Test-time augmentation: an image is labeled in several versions, mirrored and at several sizes, and these are merged.

As in detectron2's GeneralizedRCNNWithTTA, boxes are merged first, by non-maximum suppression, and then every version
predicts a mask for every merged box; the mean of these is the mask. An image and its mirror image have the same
versions, so with `flip` the labels of the one are those of the other, mirrored.

Shape legend: n instances of one image, M pixels a side of the model's mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances

from patchdct import quality
from patchdct.predict import FLIP_AGREEMENT, TRIAL_SIZE, Prediction, Predictor, Prepared, encode


class TtaPredictor:
    """Labels as `predict.Predictor` does, by the mean over versions of each image.

    The versions of a batch go through the model one after the other, so that memory is that of the largest one alone;
    and each does so twice, for boxes and for masks, whose backbone's features are not kept in between.
    """

    def __init__(
        self,
        model: GeneralizedRCNN,
        cfg: CfgNode,
        *,
        precision: str = "fp32",
        resize_on_device: bool = False,
        flip: bool,
        scales: Sequence[int] = (),
    ) -> None:
        """See `predict.Predictor` for the rest.

        Args:
            model: in evaluation mode.
            cfg: its config.
            precision: one of `predict.PRECISIONS`.
            resize_on_device: as for `predict.Predictor`; each version then holds the image as it was decoded.
            flip: whether each version is also shown mirrored, left to right.
            scales: the shorter side of each version in pixels, in the place of `INPUT.MIN_SIZE_TEST`, which is the only
                one if empty. `INPUT.MAX_SIZE_TEST`, which limits the longer side, is enlarged or reduced by as much.

        Raises:
            ModelError: a model without masks.
        """
        self.model = model
        self._overlap, self._limit = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE
        configs = [_at_scale(cfg, scale) for scale in scales] or [cfg]
        predictors = [
            Predictor(model, at_scale, precision=precision, resize_on_device=resize_on_device) for at_scale in configs
        ]
        self._versions = [
            _Version(p, mirrored) for p in predictors for mirrored in ((False, True) if flip else (False,))
        ]

    def __call__(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[Prediction]:
        """Label RGB images, uint8 [H, W, 3] of any sizes -> a prediction for each, in order."""
        return [encode(found) for found in self.find([self.prepare(image) for image in images])]

    def prepare(self, image: npt.NDArray[np.uint8], size: tuple[int, int] | None = None) -> PreparedVersions:
        """The versions of an RGB image, uint8 [H, W, 3], which may have been reduced from another `size` before."""
        return PreparedVersions(tuple(version.prepare(image, size) for version in self._versions))

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of the largest version of an image."""
        return max(version.predictor.input_size(height, width) for version in self._versions)

    @torch.inference_mode()
    def find(self, batch: Sequence[PreparedVersions]) -> list[Instances]:
        """The instances of each image before their masks are pasted, as `Predictor.find` gives them."""
        shown = list(zip(*(image.versions for image in batch), strict=True)) or [()] * len(self._versions)
        with _without_masks(self.model):
            found = [version.boxes(images) for version, images in zip(self._versions, shown, strict=True)]
        merged = [self._merge(of_image) for of_image in zip(*found, strict=True)]
        for version, images in zip(self._versions, shown, strict=True):
            for instances, again in zip(merged, version.masks(images, merged), strict=True):
                for name in ("pred_masks", "evidence"):
                    sum_before = instances.get(name) if instances.has(name) else 0
                    instances.set(name, sum_before + again.get(name) / len(self._versions))
        return merged

    def try_out(self, size: int, *, masks: int | None = None) -> None:
        """As `predict.Predictor.try_out`, for the version that takes most."""
        largest = max(self._versions, key=lambda version: version.predictor.input_size(*TRIAL_SIZE))
        largest.predictor.try_out(size, masks=masks)

    def _merge(self, found: Sequence[Instances]) -> Instances:
        """The best of what the versions found in an image, no two of a class at the same place; best score first."""
        together = Instances.cat(list(found))
        boxes, scores, classes = together.pred_boxes.tensor, together.scores.float(), together.pred_classes
        kept = batched_nms(boxes, scores, classes, self._overlap)
        return together[kept[: self._limit] if self._limit >= 0 else kept]


class MirroredPredictor:
    """Labels as `predict.Predictor` does, and predicts the masks once more for the same boxes of the mirrored image.

    Each instance gets `flip_agreement`, the IoU of its two masks before they are pasted; its labels do not change.
    """

    def __init__(
        self, model: GeneralizedRCNN, cfg: CfgNode, *, precision: str = "fp32", resize_on_device: bool = False
    ) -> None:
        """See `predict.Predictor`."""
        self.model = model
        predictor = Predictor(model, cfg, precision=precision, resize_on_device=resize_on_device)
        self._plain, self._mirrored = _Version(predictor, False), _Version(predictor, True)
        self.input_size, self.try_out = predictor.input_size, predictor.try_out

    def prepare(self, image: npt.NDArray[np.uint8], size: tuple[int, int] | None = None) -> PreparedVersions:
        """An RGB image, uint8 [H, W, 3], which may have been reduced from another `size`, and its mirror image."""
        return PreparedVersions((self._plain.prepare(image, size), self._mirrored.prepare(image, size)))

    @torch.inference_mode()
    def find(self, batch: Sequence[PreparedVersions]) -> list[Instances]:
        """As `Predictor.find` gives them, with `flip_agreement` float32 [n]."""
        found = self._plain.predictor.find([image.versions[0] for image in batch])
        again = self._mirrored.masks([image.versions[1] for image in batch], found)
        for instances, other in zip(found, again, strict=True):
            instances.set(FLIP_AGREEMENT, quality.iou(instances.pred_masks[:, 0], other.pred_masks[:, 0]))
        return found


@dataclass(frozen=True, slots=True)
class PreparedVersions:
    """An image as `predict.Prepared`, once for each version."""

    versions: tuple[Prepared, ...]

    @property
    def like(self) -> tuple[tuple[int, int], ...]:
        """What images that may share all their forward passes have in common."""
        return tuple(version.like for version in self.versions)

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return sum(version.nbytes for version in self.versions)


@dataclass(frozen=True, slots=True)
class _Version:
    """A way to show images to the model; its answers are in the pixels of the images as they are."""

    predictor: Predictor
    mirrored: bool

    def prepare(self, image: npt.NDArray[np.uint8], size: tuple[int, int] | None) -> Prepared:
        return self.predictor.prepare(image[:, ::-1] if self.mirrored else image, size)

    def boxes(self, images: Sequence[Prepared]) -> list[Instances]:
        return [self._turned(found) for found in self.predictor.find(images)]

    def masks(self, images: Sequence[Prepared], known: Sequence[Instances]) -> list[Instances]:
        """The pred_masks of known instances, float32 [n, 1, M, M] for each image, with the evidence on them."""
        found = self.predictor.find(images, [self._turned(instances) for instances in known])
        for instances in found:
            values = instances.pred_masks.float()
            instances.pred_masks = values.flip(-1) if self.mirrored else values
        return found

    def _turned(self, found: Instances) -> Instances:
        """From the image as it is to the image as shown, or back."""
        boxes = found.pred_boxes.tensor
        if self.mirrored:
            x0, y0, x1, y1 = boxes.unbind(1)
            boxes = torch.stack([found.image_size[1] - x1, y0, found.image_size[1] - x0, y1], 1)
        return Instances(
            found.image_size, pred_boxes=Boxes(boxes), scores=found.scores, pred_classes=found.pred_classes
        )


def _at_scale(cfg: CfgNode, scale: int) -> CfgNode:
    """`cfg` with images of another size; without a size of its own (0, as they are) it keeps its limit."""
    usual = cfg.INPUT.MIN_SIZE_TEST
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST = scale
    cfg.INPUT.MAX_SIZE_TEST = round(cfg.INPUT.MAX_SIZE_TEST * scale / usual) if usual else cfg.INPUT.MAX_SIZE_TEST
    cfg.freeze()
    return cfg


@contextmanager
def _without_masks(model: GeneralizedRCNN) -> Iterator[None]:
    """Let the model find boxes only, and spare the time of masks that nobody looks at."""
    before = model.roi_heads.mask_on
    model.roi_heads.mask_on = False
    try:
        yield
    finally:
        model.roi_heads.mask_on = before
