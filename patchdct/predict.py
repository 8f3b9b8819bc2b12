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
        """`model` in evaluation mode; `cfg.INPUT` gives sizes and colour order; `precision` one of PRECISIONS."""
        self._model = model
        self._device = next(model.parameters()).device
        self._dtype = PRECISIONS[precision]
        self._min_size, self._max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self._bgr = cfg.INPUT.FORMAT == "BGR"
        self._multiple = max(1, model.backbone.size_divisibility)

    def __call__(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[Prediction]:
        """Label RGB images, uint8 [H, W, 3] of any sizes -> a prediction for each, in order."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        inputs = [self._input(image) for image in images]
        for i, entry in enumerate(inputs):
            groups[tuple(-(-side // self._multiple) for side in entry["image"].shape[1:])].append(i)
        predictions: dict[int, Prediction] = {}
        for members in groups.values():
            for i, found in zip(members, self._forward([inputs[i] for i in members]), strict=True):
                predictions[i] = _prediction(found, inputs[i]["height"], inputs[i]["width"])
        return [predictions[i] for i in range(len(images))]

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
    def _forward(self, inputs: list[dict[str, Any]]) -> list[Instances]:
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            found: list[Instances] = self._model.inference(inputs, do_postprocess=False)
        return found


def _prediction(found: Instances, height: int, width: int) -> Prediction:
    """Raw detections at network size -> a prediction at image size, as by detectron2's detector_postprocess, in RLE."""
    boxes = Boxes(found.pred_boxes.tensor.float().clone())
    boxes.scale(width / found.image_size[1], height / found.image_size[0])
    boxes.clip((height, width))
    there = boxes.nonempty()
    values = found.pred_masks[there][:, 0].float().cpu().numpy()
    counts, areas, tight = paste_rle(values, boxes.tensor[there].cpu().numpy(), height, width)
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


def fingerprint(cfg: CfgNode, weights_sha256: str | None, *, precision: str) -> str:
    """16 hex digits that change with the weights, the model config or the precision."""
    return hashlib.sha256("\n".join((str(weights_sha256), cfg.dump(), precision)).encode()).hexdigest()[:16]
