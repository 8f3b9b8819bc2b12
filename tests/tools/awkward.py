"""A run of all that is awkward to hand over: holes, pieces, borders, single pixels, odd names and unknown values."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from pycocotools import mask as mask_api

from pipeline import masks
from pipeline.config import LabelerConfig
from pipeline.records import NO_INSTANCES, Category, Instances, Manifest, Pixels
from pipeline.store import Store
from pipeline.worker import Run, label_shard
from tests.fakes import draw, write_tar
from tests.small_runs import config_of, found_run

#: Of both shards; the fourth image is empty, the last one is quarantined.
NAMES = ("0.png", "0.jpg", 'a b/ü & <1>"\x01.png', "no masks.png", "../../up.png", "train/images/A.png", "text.png")
SIZE = (40, 56)


class AwkwardLabeler:
    """Finds what is not there: noise of a few kinds, by the pixels of an image."""

    fingerprint = "awkward"
    categories = (Category(id=7, name="a \"b\" <c> & 'd'"), Category(id=3, name="ünï: #1"), Category(id=90, name="yes"))
    quality: ClassVar[tuple[str, ...]] = ("contrast", "never")

    def __init__(self, config: LabelerConfig, store: Store) -> None:
        pass

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        return [self._label(image) for image in images]

    def _label(self, image: Pixels) -> Instances:
        if (image == 128).all():
            return NO_INSTANCES
        random = np.random.default_rng(zlib.crc32(image))
        height, width = image.shape[:2]
        noise = random.random((height, width)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), 3)
        rim = np.ones((height, width), bool)
        rim[4:-4, 4:-4] = False
        pixel = np.zeros((height, width), bool)
        pixel[int(random.integers(height)), int(random.integers(width))] = True
        line = np.zeros((height, width), bool)
        line[5, 3:30] = True
        ring = np.zeros((height, width), np.uint8)
        cv2.circle(ring, (width // 2, height // 2), 14, 1, 5)
        found = [smooth > np.median(smooth), noise > 0.9, rim, pixel, line, ring.astype(bool), np.ones_like(rim)]
        counts = [mask_api.encode(np.asfortranarray(one, np.uint8))["counts"].decode() for one in found]
        measures = masks.measure(counts, (height, width))
        contrast = random.random(len(found)).astype(np.float32)
        contrast[::3] = np.nan
        return Instances(
            category_ids=random.choice([7, 3, 90], len(found)).astype(np.int32),
            scores=np.linspace(0.99, 0.1, len(found), dtype=np.float32),
            boxes=measures.boxes.astype(np.float32),
            areas=measures.areas,
            counts=tuple(counts),
            quality={"contrast": contrast, "never": np.full(len(found), np.nan, np.float32)},
        )


def make_run(store: Store, uri: str, inputs: Path) -> Manifest:
    """A run of two shards with images of the same names, in Parquet alone, as a value that is not known is."""
    for shard in range(2):
        height, width = SIZE
        images = {
            name: draw(10 * shard + number, width=width, height=height) if number != 3 else draw(4, width=16, height=12)
            for number, name in enumerate(NAMES)
        }
        write_tar(inputs / f"{shard}.tar", {**images, NAMES[-1]: b"this is no image"})
    config = config_of(inputs, uri, ["parquet"])
    config = replace(config, labeler=replace(config.labeler, name="tests.tools.awkward:AwkwardLabeler"))
    manifest, labeler = found_run(store, config)
    for shard in manifest.shards:
        label_shard(shard, run=Run(id=manifest.run_id, uri=uri, config=config), store=store, labeler=labeler)
    return manifest
