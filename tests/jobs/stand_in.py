"""What a labeler on a GPU costs the CPU: images are resized and masks encoded, and the model is waited for.

On a machine without a GPU the model takes the CPUs that reading, decoding, resizing, encoding and writing need, and so
much longer than these that it hardly shows how well they overlap. With this labeler it does: see `make bench-overlap`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform

from patchdct.paste import paste_rle
from pipeline.config import LabelerConfig, fingerprint
from pipeline.records import Category, Instances, Pixels
from pipeline.store import Store

#: As in the published models.
SHORTER, LONGER, MASK_SIDE = 800, 1333, 112


@dataclass(frozen=True, slots=True)
class Prepared:
    """A resized image, and the height and width that it had before."""

    pixels: npt.NDArray[np.uint8]
    size: tuple[int, int]

    @property
    def like(self) -> tuple[int, ...]:
        """Equal for images of a size."""
        return self.pixels.shape

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.pixels.nbytes


class StandIn:
    """Waits MILLISECONDS for each image, then gives it the same MASKS blobs, at boxes that fit the image.

    Both are pairs in `labeler.overrides`; 20 ms and 36 masks unless given.
    """

    categories = (Category(id=1, name="blob"),)
    quality: tuple[str, ...] = ()

    def __init__(self, config: LabelerConfig, store: Store) -> None:
        given = dict(zip(config.overrides[::2], config.overrides[1::2], strict=True))
        self._seconds, masks = float(given.get("MILLISECONDS", 20)) / 1000, int(given.get("MASKS", 36))
        rng = np.random.default_rng(0)
        coarse = rng.random((masks, 7, 7), np.float32)
        self._values = np.stack(
            [cv2.resize(one, (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_CUBIC) for one in coarse]
        )
        corners = rng.random((masks, 2), np.float32) * 0.8
        self._boxes = np.concatenate([corners, corners + rng.uniform(0.02, 0.2, (masks, 2))], axis=1).astype(np.float32)
        self.fingerprint = fingerprint([type(self).__name__, config.overrides])
        self.encode([(SHORTER, LONGER)])  # which is compiled on first use, and is no part of the first shard's time

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        """The steps one after another."""
        return self.encode(self.find([self.prepare(image) for image in images]))

    def prepare(self, image: Pixels, size: tuple[int, int] | None = None) -> Prepared:
        """Resize an image as detectron2 does for a model."""
        height, width = size or image.shape[:2]
        resize = ResizeTransform(*image.shape[:2], *self.input_size(height, width))
        return Prepared(np.ascontiguousarray(resize.apply_image(image).transpose(2, 0, 1)), (height, width))

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that an image is resized to."""
        to_height, to_width = ResizeShortestEdge.get_output_shape(height, width, SHORTER, LONGER)
        return to_height, to_width

    def find(self, batch: Sequence[Prepared]) -> list[tuple[int, int]]:
        """Wait, without a CPU, as long as the model would be at the batch."""
        time.sleep(self._seconds * len(batch))
        return [image.size for image in batch]

    def encode(self, found: Sequence[tuple[int, int]]) -> list[Instances]:
        """Paste the masks into images of these sizes."""
        return [self._instances(height, width) for height, width in found]

    def _instances(self, height: int, width: int) -> Instances:
        boxes = self._boxes * np.array([width, height, width, height], np.float32)
        counts, areas, tight = paste_rle(self._values, boxes, height, width)
        kept = np.flatnonzero(areas)
        return Instances(
            category_ids=np.ones(len(kept), np.int32),
            scores=np.linspace(1.0, 0.5, len(kept), dtype=np.float32),
            boxes=tight[kept].astype(np.float32),
            areas=areas[kept],
            counts=tuple(counts[i] for i in kept),
        )
