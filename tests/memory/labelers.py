"""Labelers without torch that make as many masks as a model does, by the product's own pasting."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from patchdct.paste import paste_rle
from pipeline.config import LabelerConfig, fingerprint
from pipeline.records import NO_INSTANCES, Category, Instances, Pixels
from pipeline.store import Store

Floats: TypeAlias = npt.NDArray[np.float32]

LARGE = 10_000_000  # pixels from which an image has as many instances as may be
SIDE, SHAPES = 112, 64


class MasksLabeler:
    """Smooth shapes in drawn boxes: `max_instances` in a large image, up to a fifth in others; the pixels decide."""

    categories = tuple(Category(id=i, name=f"class {i}") for i in range(1, 81))
    quality: tuple[str, ...] = ()

    def __init__(self, config: LabelerConfig, store: Store) -> None:
        self._most = config.max_instances
        self._shapes = _shapes(np.random.default_rng(5))
        self.fingerprint = fingerprint([type(self).__name__, self._most])

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        return [self._label(image) for image in images]

    def _label(self, image: Pixels) -> Instances:
        height, width, _ = image.shape
        rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(image[::16, ::16])))
        count = self._most if height * width >= LARGE else int(rng.integers(0, 1 + self._most // 5))
        if not count:
            return NO_INSTANCES
        limits = np.array([width, height], np.float32)
        start = rng.uniform(0, 0.9, (count, 2)).astype(np.float32)
        size = rng.uniform(0.01, 0.15, (count, 2)).astype(np.float32)
        boxes = np.concatenate([start, np.minimum(start + size, 1)], axis=1) * np.tile(limits, 2)
        counts, areas, tight = paste_rle(self._shapes[rng.integers(0, SHAPES, count)], boxes, height, width)
        kept = np.flatnonzero(areas)
        return Instances(
            category_ids=rng.integers(1, 81, count).astype(np.int32)[kept],
            scores=np.sort(rng.uniform(0.05, 1, count).astype(np.float32))[::-1][kept],
            boxes=tight[kept].astype(np.float32),
            areas=areas[kept],
            counts=tuple(counts[i] for i in kept),
        )


class LeakingLabeler(MasksLabeler):
    """Keeps 2,000 bytes of each image that it is shown."""

    def __init__(self, config: LabelerConfig, store: Store) -> None:
        super().__init__(config, store)
        self._kept: list[bytes] = []

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        self._kept += [image.tobytes()[:2000].ljust(2000) for image in images]
        return super().label(images)


def _shapes(rng: np.random.Generator) -> Floats:
    """float32 [SHAPES, SIDE, SIDE] in 0..1, a blob each, as smooth as a mask head's."""
    noise = rng.normal(0, 1.5, (SHAPES, 7, 7)).astype(np.float32)
    ys, xs = np.mgrid[-1:1:7j, -1:1:7j]
    blobs = noise + 3 - 6 * np.hypot(xs, ys).astype(np.float32)
    smooth = np.stack([cv2.resize(blob, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for blob in blobs])
    return (1 / (1 + np.exp(-smooth))).astype(np.float32)
