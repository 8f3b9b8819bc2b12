"""Images in, instance masks as RLE out: any detectron2 instance-segmentation model, batched.

Shape legend: n instances of one image, M pixels a side of the model's mask.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
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
#: How labels are computed, where that moves more than the last bits: part of their fingerprint.
COMPUTATION = "fast, with float32 features"
#: Height and width of an image for trials.
TRIAL_SIZE = (480, 640)


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An image as a model takes it.

    pixels: uint8 [3, h, w] on the CPU, resized, in the model's order of colours; height, width: of the image as it was;
    like: what images that may share a forward pass have in common, the size that they are padded to.
    """

    pixels: torch.Tensor
    height: int
    width: int
    like: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.pixels.nbytes


class Predictor:
    """Applies a model as detectron2's evaluation does: resized, normalised, thresholded, pasted at >= 0.5.

    In three steps, which threads can take at the same time for different images: `prepare`, `find` and `encode`.

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
        self.model = model
        self._device = next(model.parameters()).device
        self._dtype = PRECISIONS[precision]
        self._min_size, self._max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self._most = cfg.TEST.DETECTIONS_PER_IMAGE
        self._bgr = cfg.INPUT.FORMAT == "BGR"
        self._multiple = max(1, model.backbone.size_divisibility)

    def __call__(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[Prediction]:
        """Label RGB images, uint8 [H, W, 3] of any sizes -> a prediction for each, in order."""
        return [encode(found) for found in self.find([self.prepare(image) for image in images])]

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that an image is resized to."""
        if not self._min_size:
            return height, width
        to_h, to_w = ResizeShortestEdge.get_output_shape(height, width, self._min_size, self._max_size)
        return max(1, to_h), max(1, to_w)  # an image of 1 x 5000 pixels would be left without rows

    def prepare(self, image: npt.NDArray[np.uint8], size: tuple[int, int] | None = None) -> Prepared:
        """Resize an RGB image, uint8 [H, W, 3], which may have been reduced from another `size` (H, W) before."""
        height, width = size or image.shape[:2]
        if self._bgr:
            image = image[:, :, ::-1]
        resize = ResizeTransform(*image.shape[:2], *self.input_size(height, width))
        pixels = torch.from_numpy(np.ascontiguousarray(resize.apply_image(image).transpose(2, 0, 1)))
        if self._device.type == "cuda":  # from where a copy to the GPU does not wait
            pixels = pixels.pin_memory()
        padded_h, padded_w = (-(-side // self._multiple) * self._multiple for side in pixels.shape[1:])
        return Prepared(pixels=pixels, height=height, width=width, like=(padded_h, padded_w))

    def find(self, batch: Sequence[Prepared], given: Sequence[Instances] | None = None) -> list[Instances]:
        """The instances of each image before their masks are pasted. Images that are `like` share a forward pass.

        Where the memory of a GPU does not suffice for a batch, it goes in halves.

        Args:
            batch: prepared images.
            given: of each image, pred_boxes in its pixels and pred_classes of instances that are known already; only
                their masks are predicted.

        Returns:
            Instances of size (H, W): pred_boxes in pixels, within the image; scores, pred_classes and pred_masks as the
            model gives them, relative to the boxes [n, 1, M, M].

        Raises:
            torch.OutOfMemoryError: a single image is too much for the GPU.
        """
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, image in enumerate(batch):
            groups[image.like].append(i)
        found: dict[int, Instances] = {}
        for members in groups.values():
            known = None if given is None else [_resized(given[i], *batch[i].pixels.shape[1:]) for i in members]
            for i, instances in zip(members, self._find([batch[i] for i in members], known), strict=True):
                found[i] = _resized(instances, batch[i].height, batch[i].width)
        return [found[i] for i in range(len(batch))]

    def try_out(self, size: int, *, masks: int | None = None) -> None:
        """Label a batch of noise, of usual size, and predict so many masks for each image; None: as there may be."""
        noise = np.random.default_rng(0).integers(0, 256, (*TRIAL_SIZE, 3), np.uint8)
        batch = [self.prepare(noise)] * size
        given = Instances(TRIAL_SIZE)
        count = max(1, self._most) if masks is None else masks
        given.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 100.0, 100.0]], device=self._device).repeat(count, 1))
        given.pred_classes = torch.zeros(count, dtype=torch.int64, device=self._device)
        given.scores = torch.ones(count, device=self._device)
        self.find(batch)
        for found in fetch(self.find(batch, [given] * size)).wait():
            encode(found)

    def _find(self, batch: list[Prepared], given: list[Instances] | None) -> list[Instances]:
        try:
            return self._forward(batch, given)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        torch.cuda.empty_cache()  # outside of `except`, whose traceback holds what filled the memory
        half = len(batch) // 2
        parts = (slice(half), slice(half, None))
        return [one for part in parts for one in self._find(batch[part], None if given is None else given[part])]

    @torch.inference_mode()
    def _forward(self, batch: list[Prepared], given: list[Instances] | None) -> list[Instances]:
        inputs = [
            {"image": image.pixels.to(self._device, non_blocking=True), "height": image.height, "width": image.width}
            for image in batch
        ]
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            found: list[Instances] = self.model.inference(inputs, given, do_postprocess=False)
        return found


def _resized(found: Instances, height: int, width: int) -> Instances:
    """`found` in the image at another size, as by detectron2's detector_postprocess."""
    boxes = Boxes(found.pred_boxes.tensor.float().clone())
    boxes.scale(width / found.image_size[1], height / found.image_size[0])
    boxes.clip((height, width))
    return Instances((height, width), **{**found.get_fields(), "pred_boxes": boxes})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What was found in a batch, on its way to the memory of the CPU, where it is when `wait` returns."""

    instances: tuple[Instances, ...]
    copied: torch.cuda.Event | None

    def wait(self) -> tuple[Instances, ...]:
        """The instances, once they are here."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.instances


def fetch(found: Sequence[Instances]) -> Fetched:
    """Begin to copy what `Predictor.find` found to the CPU; the GPU and the calling thread go on meanwhile."""

    def here(value: Any) -> Any:
        if isinstance(value, Boxes):
            return Boxes(here(value.tensor))
        return value.to("cpu", non_blocking=True)

    instances = tuple(
        Instances(one.image_size, **{name: here(value) for name, value in one.get_fields().items()}) for one in found
    )
    copied = None
    if any(one.pred_boxes.device.type == "cuda" for one in found):
        copied = torch.cuda.Event()
        copied.record()
    return Fetched(instances=instances, copied=copied)


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


def best_batch_size(try_out: Callable[[int], None], *, clock: Callable[[], float] = time.perf_counter) -> int:
    """The batch size that labels most images a second, by trial: doubled as long as that brings 3 %, and memory lasts.

    Args:
        try_out: labels a batch of a size, and returns when all is done.
        clock: in seconds.
    """
    best, rate = 1, 0.0
    for size in (1, 2, 4, 8, 16, 32, 64):
        try:
            try_out(size)  # what is done once for each size is not counted
            start = clock()
            try_out(size)
        except torch.OutOfMemoryError:
            break
        now = size / max(clock() - start, 1e-9)
        if now < 1.03 * rate:
            break
        best, rate = size, now
    return best


def fingerprint(
    cfg: CfgNode, weights_sha256: str | None, *, precision: str, flip: bool = False, scales: Sequence[int] = ()
) -> str:
    """16 hex digits that change with the weights, the model config, the precision or test-time augmentation."""
    parts = [str(weights_sha256), cfg.dump(), precision, COMPUTATION]
    if flip or scales:
        parts.append(f"flip {flip}, scales {list(scales)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
