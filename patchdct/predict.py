"""Images in, instance masks as RLE out: any detectron2 instance-segmentation model, batched.

Shape legend: n instances of one image, M pixels a side of the model's mask.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances

from patchdct import quality, resizing
from patchdct.errors import ModelError
from patchdct.paste import paste_rle

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
#: How labels are computed, where that moves more than the last bits: part of their fingerprint.
COMPUTATION = "fast, with float32 features, boxes compared as they are"
#: An image that is reduced by more than this is resized on the CPU: elsewhere it would take a step for each neighbour.
MOST_REDUCED_ON_DEVICE = 32
#: Height and width of an image for trials.
TRIAL_SIZE = (480, 640)
#: What `Prediction.quality` always has; `tta.MirroredPredictor` adds FLIP_AGREEMENT.
QUALITY = (*quality.COLUMNS, "box_iou")
FLIP_AGREEMENT = "flip_agreement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The instances of one image, best score first.

    classes int64 [n] (the model's, from 0); scores float32 [n]; counts: n COCO RLE strings at image size; areas int64
    [n] in pixels; boxes float64 [n, 4] (x, y, w, h), the tight boxes of the masks; quality: float32 [n] by name, the
    columns of QUALITY, NaN where the model does not tell. Masks without a pixel are left out.
    """

    classes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    counts: tuple[str, ...]
    areas: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    quality: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An image as a model takes it.

    pixels: uint8 on the CPU; if `resized`, [3, h, w] in the model's order of colours, else [H, W, 3] as it was decoded;
    size: h and w, as the model sees it; height, width: of the image as it was; like: what images that may share a
    forward pass have in common, the size that they are padded to.
    """

    pixels: torch.Tensor
    resized: bool
    size: tuple[int, int]
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

    def __init__(
        self, model: GeneralizedRCNN, cfg: CfgNode, *, precision: str = "fp32", resize_on_device: bool = False
    ) -> None:
        """Whichever way images are resized, the values are those of Pillow, as in detectron2's evaluation.

        Args:
            model: in evaluation mode.
            cfg: its config, of which `INPUT` gives sizes and the order of colours.
            precision: one of PRECISIONS.
            resize_on_device: whether `find` resizes images, on the device of the model, rather than `prepare`.

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
        self._resize_on_device = resize_on_device

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
        """Take in an RGB image, uint8 [H, W, 3], which may have been reduced from another `size` (H, W) before.

        It is resized here, unless `find` is to do that on the device.
        """
        height, width = size or image.shape[:2]
        wanted = self.input_size(height, width)
        reduced = max(before / after for before, after in zip(image.shape, wanted, strict=False))
        resized = not self._resize_on_device or reduced > MOST_REDUCED_ON_DEVICE
        if resized:
            pixels = torch.from_numpy(resizing.resize(image, wanted, reverse=self._bgr))
        else:
            pixels = torch.from_numpy(np.require(image, requirements=("C", "W")))
        if self._device.type == "cuda":  # from where a copy to the GPU does not wait
            pixels = pixels.pin_memory()
        padded_h, padded_w = (-(-side // self._multiple) * self._multiple for side in wanted)
        return Prepared(
            pixels=pixels, resized=resized, size=wanted, height=height, width=width, like=(padded_h, padded_w)
        )

    def find(self, batch: Sequence[Prepared], given: Sequence[Instances] | None = None) -> list[Instances]:
        """The instances of each image before their masks are pasted. Images that are `like` share a forward pass.

        Where the memory of a GPU does not suffice for a batch, it goes in halves.

        Args:
            batch: prepared images.
            given: of each image, pred_boxes in its pixels and pred_classes of instances that are known already; only
                their masks are predicted.

        Returns:
            Instances of size (H, W): pred_boxes in pixels, within the image; scores, pred_classes and pred_masks as the
            model gives them, relative to the boxes [n, 1, M, M]; evidence on the masks, as by `patchdct.quality`.

        Raises:
            torch.OutOfMemoryError: a single image is too much for the GPU.
        """
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, image in enumerate(batch):
            groups[image.like].append(i)
        found: dict[int, Instances] = {}
        for members in groups.values():
            known = None if given is None else [_resized(given[i], *batch[i].size) for i in members]
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
            {"image": pixels, "height": image.height, "width": image.width}
            for image, pixels in zip(batch, self._on_device(batch), strict=True)
        ]
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            found: list[Instances] = self.model.inference(inputs, given, do_postprocess=False)
        for one in found:
            if one.has("pred_masks") and not one.has("evidence"):  # from a head of detectron2's
                one.evidence = quality.of_masks(one.pred_masks[:, 0])
        return found

    def _on_device(self, batch: list[Prepared]) -> list[torch.Tensor]:
        """The pixels of images as the model takes them, uint8 [3, h, w]; those to be resized alike are, at once."""
        pixels = [image.pixels.to(self._device, non_blocking=True) for image in batch]
        alike: dict[tuple[torch.Size, tuple[int, int]], list[int]] = defaultdict(list)
        for i, image in enumerate(batch):
            if not image.resized:
                alike[image.pixels.shape, image.size].append(i)
        for (_, size), members in alike.items():
            together = torch.stack([pixels[i] for i in members])
            for i, one in zip(members, resizing.resize_tensor(together, size, reverse=self._bgr), strict=True):
                pixels[i] = one
        return pixels


def _resized(found: Instances, height: int, width: int) -> Instances:
    """`found` in the image at another size, as by detectron2's detector_postprocess."""
    x0, y0, x1, y1 = found.pred_boxes.tensor.float().unbind(1)
    x0, x1 = ((x * (width / found.image_size[1])).clamp(0, width) for x in (x0, x1))
    y0, y1 = ((y * (height / found.image_size[0])).clamp(0, height) for y in (y0, y1))
    boxes = Boxes(torch.stack([x0, y0, x1, y1], 1))  # whose own `clip` would wait for a GPU
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
    columns = [*found.evidence[there].float().cpu().numpy().T, _box_ious(boxes, tight)]
    names: tuple[str, ...] = QUALITY
    if found.has(FLIP_AGREEMENT):
        columns.append(found.get(FLIP_AGREEMENT)[there].float().cpu().numpy())
        names = (*QUALITY, FLIP_AGREEMENT)
    kept = np.flatnonzero(areas)
    return Prediction(
        classes=classes[kept],
        scores=scores[kept],
        counts=tuple(counts[i] for i in kept),
        areas=areas[kept],
        boxes=tight[kept],
        quality=dict(zip(names, np.array(columns, np.float32)[:, kept], strict=True)),
    )


def _box_ious(boxes: npt.NDArray[np.float32], tight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The IoU of each detected box (x0, y0, x1, y1) with the tight box (x, y, w, h) of its mask; all have an area."""
    low, high = np.maximum(boxes[:, :2], tight[:, :2]), np.minimum(boxes[:, 2:], tight[:, :2] + tight[:, 2:])
    common = (high - low).clip(0).prod(1)
    return common / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1) + tight[:, 2:].prod(1) - common, 1e-9)


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
    cfg: CfgNode,
    weights_sha256: str | None,
    *,
    precision: str,
    flip: bool = False,
    scales: Sequence[int] = (),
    flip_agreement: bool = False,
    quality_model: str | None = None,
) -> str:
    """16 hex digits that change with the weights, the model config, the precision, versions of images and columns.

    `quality_model` is a text that changes with what makes predicted_iou.
    """
    parts = [str(weights_sha256), cfg.dump(), precision, COMPUTATION]
    if flip or scales:
        parts.append(f"flip {flip}, scales {list(scales)}")
    if flip_agreement:
        parts.append("flip agreement")
    if quality_model is not None:
        parts.append(f"quality {quality_model}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
