"""Images in, instance masks as RLE out: any detectron2 instance-segmentation model, batched.

Shape legend: n instances of one image, M pixels a side of the model's mask.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances

from patchdct.errors import ModelError
from patchdct.paste import paste_rle

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The instances of one image, best score first.

    classes int64 [n] (the model's, from 0); scores float32 [n]; counts: n COCO RLE strings at image size; areas int64
    [n] in pixels; boxes float64 [n, 4] (x, y, w, h), the tight boxes of the masks. Masks without a pixel are left out.
    """

    classes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    counts: tuple[str, ...]
    areas: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]


class Predictor:
    """Applies a model as detectron2's evaluation does: resized, normalised, thresholded, pasted at >= 0.5.

    But for the last bits of floats, a prediction does not depend on what else is in the batch: only images that are
    padded to the same size share a forward pass, as padding would shine through the convolutions.
    """

    def __init__(self, model: GeneralizedRCNN, cfg: CfgNode, *, precision: str = "fp32") -> None:
        """`model` in evaluation mode; `cfg.INPUT` gives sizes and colour order; `precision` one of PRECISIONS.

        Raises:
            ModelError: a model without masks.
        """
        if not cfg.MODEL.MASK_ON:
            raise ModelError(
                "MODEL.MASK_ON is False: the model finds boxes only; labeling takes one that predicts masks"
            )
        self._model = model
        self._device = next(model.parameters()).device
        self._dtype = PRECISIONS[precision]
        self._min_size, self._max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self._bgr = cfg.INPUT.FORMAT == "BGR"
        self._multiple = max(1, model.backbone.size_divisibility)

    def __call__(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[Prediction]:
        """Label RGB images, uint8 [H, W, 3] of any sizes -> a prediction for each, in order."""
        return [encode(found) for found in self.find(images)]

    def find(
        self, images: Sequence[npt.NDArray[np.uint8]], given: Sequence[Instances] | None = None
    ) -> list[Instances]:
        """The instances of each image before their masks are pasted.

        Args:
            images: RGB, uint8 [H, W, 3] of any sizes.
            given: of each image, pred_boxes in its pixels and pred_classes of instances that are known already; only
                their masks are predicted.

        Returns:
            Instances of size (H, W): pred_boxes in pixels, within the image; scores, pred_classes and pred_masks as the
            model gives them, relative to the boxes [n, 1, M, M].
        """
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        inputs = [self._input(image) for image in images]
        for i, entry in enumerate(inputs):
            groups[tuple(-(-side // self._multiple) for side in entry["image"].shape[1:])].append(i)
        found: dict[int, Instances] = {}
        for members in groups.values():
            known = None if given is None else [_resized(given[i], *inputs[i]["image"].shape[1:]) for i in members]
            for i, instances in zip(members, self._forward([inputs[i] for i in members], known), strict=True):
                found[i] = _resized(instances, inputs[i]["height"], inputs[i]["width"])
        return [found[i] for i in range(len(images))]

    def _input(self, image: npt.NDArray[np.uint8]) -> dict[str, Any]:
        height, width = image.shape[:2]
        if self._bgr:
            image = image[:, :, ::-1]
        resize = ResizeShortestEdge([self._min_size] * 2, self._max_size).get_transform(image)
        if isinstance(resize, ResizeTransform):  # an image of 1 x 5000 pixels would be left without rows
            resize.new_h, resize.new_w = max(1, resize.new_h), max(1, resize.new_w)
        pixels = np.ascontiguousarray(resize.apply_image(image).transpose(2, 0, 1))
        return {"image": torch.from_numpy(pixels), "height": height, "width": width}

    @torch.inference_mode()
    def _forward(self, inputs: list[dict[str, Any]], given: list[Instances] | None) -> list[Instances]:
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            found: list[Instances] = self._model.inference(inputs, given, do_postprocess=False)
        return found


def _resized(found: Instances, height: int, width: int) -> Instances:
    """`found` in the image at another size, as by detectron2's detector_postprocess."""
    boxes = Boxes(found.pred_boxes.tensor.float().clone())
    boxes.scale(width / found.image_size[1], height / found.image_size[0])
    boxes.clip((height, width))
    return Instances((height, width), **{**found.get_fields(), "pred_boxes": boxes})


def encode(found: Instances) -> Prediction:
    """What `Predictor.find` found in an image, with its masks pasted into the image, in RLE."""
    there = found.pred_boxes.nonempty()
    values = found.pred_masks[there][:, 0].float().cpu().numpy()
    boxes = found.pred_boxes.tensor[there].cpu().numpy()
    counts, areas, tight = paste_rle(values, boxes, *found.image_size)
    classes = found.pred_classes[there].cpu().numpy()
    scores = found.scores[there].float().cpu().numpy()
    kept = np.flatnonzero(areas)
    return Prediction(
        classes=classes[kept],
        scores=scores[kept],
        counts=tuple(counts[i] for i in kept),
        areas=areas[kept],
        boxes=tight[kept],
    )


def fingerprint(
    cfg: CfgNode, weights_sha256: str | None, *, precision: str, flip: bool = False, scales: Sequence[int] = ()
) -> str:
    """16 hex digits that change with the weights, the model config, the precision or test-time augmentation."""
    parts = [str(weights_sha256), cfg.dump(), precision]
    if flip or scales:
        parts.append(f"flip {flip}, scales {list(scales)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
