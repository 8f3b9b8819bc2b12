"""Labelers without torch for tests, `tests.fakes:NAME` in a config, and the drawing and packing of images for them."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import tarfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from pipeline.config import LabelerConfig, fingerprint
from pipeline.records import NO_INSTANCES, Category, Instances, Pixels
from pipeline.store import Store

POISON = (255, 0, 0)
BRIGHT, DARK = 160, 70


class ThresholdLabeler:
    """Finds the connected bright (category 1) and dark (category 7) regions of an image; the score is the contrast."""

    categories = (Category(id=1, name="bright"), Category(id=7, name="dark"))
    quality: tuple[str, ...] = ("contrast",)

    def __init__(self, config: LabelerConfig, store: Store) -> None:
        self._threshold, self._most = config.score_threshold, config.max_instances
        self.fingerprint = fingerprint([type(self).__name__, self._threshold, self._most])

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        return [self._label(image) for image in images]

    def _label(self, image: Pixels) -> Instances:
        grey = image.astype(np.float32).mean(axis=2)
        found = []
        for category_id, mask in ((1, grey >= BRIGHT), (7, grey <= DARK)):
            number, components = cv2.connectedComponents(mask.astype(np.uint8))
            for component in range(1, number):
                region = components == component
                score = np.float32(min(1.0, abs(float(grey[region].mean()) - 127.5) / 127.5))
                if region.sum() >= 4 and score >= self._threshold:
                    found.append((-score, category_id, component, region))
        if not found:
            return NO_INSTANCES
        found = sorted(found, key=lambda one: one[:3])[: self._most]
        rles = [mask_api.encode(np.asfortranarray(region, np.uint8)) for _, _, _, region in found]
        scores = np.array([-score for score, _, _, _ in found], np.float32)
        return Instances(
            category_ids=np.array([category_id for _, category_id, _, _ in found], np.int32),
            scores=scores,
            boxes=np.array([mask_api.toBbox(rle) for rle in rles], np.float32),
            areas=np.array([mask_api.area(rle) for rle in rles], np.int64),
            counts=tuple(rle["counts"].decode() for rle in rles),
            quality={"contrast": scores * 2},
        )


class CrashingLabeler(ThresholdLabeler):
    """Takes its process with it at an image whose first pixel is pure red."""

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        if any(tuple(image[0, 0]) == POISON for image in images):
            self.meet_poison()
        return super().label(images)

    def meet_poison(self) -> None:
        os._exit(1)


class SegfaultLabeler(CrashingLabeler):
    """Reads from where nothing is, as a bug in C code does."""

    def meet_poison(self) -> None:
        ctypes.string_at(0)


class KilledLabeler(CrashingLabeler):
    """Is killed there, as by a kernel that is out of memory."""

    def meet_poison(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class RaisingLabeler(CrashingLabeler):
    """Raises there instead, as a model with a bug does."""

    def meet_poison(self) -> None:
        raise RuntimeError("this labeler cannot bear red")


class SleepingLabeler(CrashingLabeler):
    """Never comes back from there."""

    def meet_poison(self) -> None:
        while True:
            time.sleep(3600)


def draw(seed: int, *, width: int = 48, height: int = 32, poison: bool = False) -> bytes:
    """A PNG of grey ground with bright and dark rectangles, which may overlap; none for every fifth seed."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, np.uint8)
    for _ in range(0 if seed % 5 == 4 else 5):
        x, y = int(rng.integers(0, width - 6)), int(rng.integers(0, height - 6))
        w, h = int(rng.integers(3, width // 2)), int(rng.integers(3, height // 2))
        image[y : y + h, x : x + w] = rng.choice([rng.integers(0, 50), rng.integers(190, 256)])
    if poison:
        image[0, 0] = POISON
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """Pack files as a tar, in their order and without the time of day, so that equal files make equal tars."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


class PacedLabeler(ThresholdLabeler):
    """Takes as long as a small model does: 20 to 80 ms an image, which its pixels decide."""

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        time.sleep(sum(0.02 + 0.06 * (zlib.crc32(image) / 2**32) for image in images))
        return super().label(images)


class HeldLabeler(CrashingLabeler):
    """The first process that meets red stands still there until it is released; those that come later pass.

    `labeler.weights` names a folder: `held` appears there, with the process's number, and `released` lets it go on.
    """

    def __init__(self, config: LabelerConfig, store: Store) -> None:
        super().__init__(config, store)
        self._folder = Path(str(config.weights))

    def meet_poison(self) -> None:
        try:
            with (self._folder / "held").open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return
        while not (self._folder / "released").exists():
            time.sleep(0.02)


class HeldAtTheClaimLabeler(HeldLabeler):
    """Stands still later: with its files in storage, and the commit not yet created."""

    def meet_poison(self) -> None:
        create, hold = Store.create, super().meet_poison

        def held(store: Store, uri: str, data: bytes) -> bool:
            if "/commits/" in uri:
                hold()
            return create(store, uri, data)

        Store.create = held  # type: ignore[method-assign]


class KeepingLabeler(ThresholdLabeler):
    """Leaks: keeps 200 bytes of each image that it was shown."""

    kept: ClassVar[list[bytes]] = []

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        self.kept += [image.tobytes()[:200].ljust(200) for image in images]
        return super().label(images)


class SlowLabeler(ThresholdLabeler):
    """Finds nothing, and takes its time for it."""

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        time.sleep(0.2 * len(images))
        return [NO_INSTANCES] * len(images)
