"""Time `paste_rle` against detectron2's own way from boxes and mask values to COCO RLE.

    python -m tests.patchdct.bench_paste [--images 6] [--rounds 5] [--coco DIR]      (or: make bench-paste)

The instances are those of a COCO data set where one is found, else drawn ellipses: their masks, cropped to their boxes,
at 112 x 112 and with the blur and ringing of PatchDCT's 6 coefficients a patch; the boxes are scaled to the image size.
Both ways paste the same images in turn (A B A B ...) on one torch thread, after a run of each. The values of an image
are copied before it is pasted, so that they lie in the cache as if the model had just written them:

    A  paste_masks_in_image, Fortran copy, pycocotools encode, decode to str, as in detectron2's COCO evaluator
    B  paste_rle, which gives areas and boxes as well

The table has the median CPU times per instance, the median of the ratios A / B of neighbouring times, and two counts of
instances: `differ`, whose counts are not those of A, and `wrong`, whose counts, area or box are not those of
detectron2's paste over the whole image (A leaves out what lies further than a pixel from the box). The CPU time of the
thread is less disturbed by others on the machine; the ratios depend less on the machine than the times do. The exit
status is 1 where a mask is wrong or a ratio is below the least that we promise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.layers.mask_ops import _do_paste_mask, paste_masks_in_image
from pycocotools import mask as coco_mask
from scipy.fft import dctn, idctn
from torchvision.ops import roi_align

from patchdct.paste import paste_rle

COCO = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco-mini"
SIDE, PATCH, COEFFICIENTS = 112, 8, 6
#: (width, height) and the least ratio that we promise there.
SIZES = {(640, 480): 25, (2048, 1024): 120, (4000, 3000): 700}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The instances of one image: values float32 [N, 112, 112], boxes float32 [N, 4] (x0, y0, x1, y1) in pixels."""

    values: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    height: int
    width: int

    def scaled(self, width: int, height: int) -> Image:
        """The same instances in an image of another size."""
        factors = np.array([width / self.width, height / self.height] * 2, np.float32)
        return Image(values=self.values, boxes=self.boxes * factors, height=height, width=width)


def as_predicted(mask: npt.NDArray[np.uint8], rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], ...]:
    """What a PatchDCT head would give for a mask uint8 [H, W]: values [112, 112] and a box a few percent off."""
    ys, xs = np.nonzero(mask)
    box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)
    size = np.array([box[2] - box[0], box[3] - box[1]] * 2, np.float32)
    limits = np.array([mask.shape[1], mask.shape[0]] * 2, np.float32)
    box = np.clip(box + size * rng.uniform(-0.03, 0.03, 4).astype(np.float32), 0, limits)
    pixels = torch.from_numpy(mask).float()[None, None]
    crop = roi_align(pixels, [torch.from_numpy(box)[None]], SIDE, aligned=True)[0, 0].numpy()
    patches = crop.reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).swapaxes(1, 2)
    spectrum = dctn(patches, axes=(2, 3), norm="ortho")
    zigzag = (
        np.add.outer(np.arange(PATCH), np.arange(PATCH)) < 3
    )  # the first 6: rows and columns that add up to 2 at most
    assert zigzag.sum() == COEFFICIENTS
    ringing = idctn(spectrum * zigzag, axes=(2, 3), norm="ortho").swapaxes(1, 2).reshape(SIDE, SIDE)
    return ringing.astype(np.float32), box


def coco_images(directory: Path, seed: int = 0) -> Iterator[Image]:
    """The images of a COCO data set (annotations/*.json) with their instances as predicted, without crowds."""
    rng = np.random.default_rng(seed)
    for path in sorted((directory / "annotations").glob("*.json")):
        content = json.loads(path.read_text())
        by_image = defaultdict(list)
        for annotation in content["annotations"]:
            if not annotation["iscrowd"]:
                by_image[annotation["image_id"]].append(annotation["segmentation"])
        for image in content["images"]:
            height, width = image["height"], image["width"]
            masks = [
                coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
                for polygons in by_image[image["id"]]
            ]
            if instances := [as_predicted(mask, rng) for mask in masks if mask.any()]:
                values, boxes = (np.stack(column) for column in zip(*instances, strict=True))
                yield Image(values=values, boxes=boxes, height=height, width=width)


def drawn_images(seed: int = 0) -> Iterator[Image]:
    """Images of 640 x 480 with 9 ellipses each, without end."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:480, :640]
    while True:
        instances = []
        for _ in range(9):
            angle, (a, b) = rng.uniform(0, np.pi), rng.uniform(8, 100, 2)
            dx, dy = x - rng.uniform(0, 640), y - rng.uniform(0, 480)
            along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
            mask = ((along / a) ** 2 + (across / b) ** 2 < 1).astype(np.uint8)
            if mask.any():
                instances.append(as_predicted(mask, rng))
        values, boxes = (np.stack(column) for column in zip(*instances, strict=True))
        yield Image(values=values, boxes=boxes, height=480, width=640)


def detectron2_way(image: Image) -> list[str]:
    """A: the counts of an image by way of full-size masks."""
    pasted = paste_masks_in_image(
        torch.from_numpy(image.values), torch.from_numpy(image.boxes), (image.height, image.width)
    )
    columns = [np.array(mask[:, :, None], order="F", dtype=np.uint8) for mask in pasted.numpy()]
    return [coco_mask.encode(mask)[0]["counts"].decode() for mask in columns]


def truth(
    values: npt.NDArray[np.float32], box: npt.NDArray[np.float32], height: int, width: int, threshold: float = 0.5
) -> tuple[str, int, list[float]]:
    """Counts, area and box of one instance (values [M, M], box [4]) by detectron2's paste over the whole image."""
    inputs = torch.from_numpy(values[None, None]), torch.from_numpy(box[None])
    pasted, _ = _do_paste_mask(*inputs, height, width, skip_empty=False)
    return figures(coco_mask.encode(np.asfortranarray((pasted[0] >= threshold).numpy(), np.uint8)))


def figures(rle: dict[str, Any]) -> tuple[str, int, list[float]]:
    """Counts, area and box of a compressed RLE by pycocotools."""
    return rle["counts"].decode(), int(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist()


def compare(image: Image) -> tuple[int, int]:
    """How many instances differ from A, and how many are wrong."""
    counts, areas, boxes = paste_rle(image.values, image.boxes, image.height, image.width)
    differ = wrong = 0
    for i, expected in enumerate(detectron2_way(image)):
        found = counts[i], areas[i].item(), boxes[i].tolist()
        if counts[i] == expected:
            wrong += found != figures({"size": [image.height, image.width], "counts": expected.encode()})
        else:
            differ += 1
            wrong += found != truth(image.values[i], image.boxes[i], image.height, image.width)
    return differ, wrong


def seconds(function: Callable[[Image], object], images: list[Image]) -> float:
    """CPU time of one pass over the images, each with values just written, as they come from the model."""
    total = 0.0
    for image in images:
        fresh = replace(
            image, values=image.values.copy()
        )  # else what was pasted before has pushed them out of the cache
        begin = time.thread_time()
        function(fresh)
        total += time.thread_time() - begin
    return total


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 where something is wrong or too slow."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=6, help="images for each size")
    parser.add_argument("--rounds", type=int, default=5, help="times that A and B take turns")
    parser.add_argument("--coco", type=Path, default=COCO, help="directory of a COCO data set")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    real = (options.coco / "annotations").is_dir()
    source = coco_images(options.coco) if real else drawn_images()
    originals = [image for image, _ in zip(source, range(options.images), strict=False)]
    instances = sum(len(image.boxes) for image in originals)
    print(f"{instances} {'real' if real else 'drawn'} instances in {len(originals)} images, {options.rounds} rounds")
    print(f"{'size':>10}{'A, us':>12}{'B, us':>10}{'A / B':>9}{'least':>7}{'differ':>8}{'wrong':>7}")
    failed = False
    for (width, height), least in SIZES.items():
        images = [image.scaled(width, height) for image in originals]
        differ, wrong = (sum(column) for column in zip(*map(compare, images), strict=True))  # also warms up A and B
        a, b = [], []
        for _ in range(options.rounds):
            a.append(seconds(detectron2_way, images))
            b.append(seconds(lambda i: paste_rle(i.values, i.boxes, i.height, i.width), images))
        ratio = statistics.median(x / y for x, y in zip(a, b, strict=True))
        per_instance = [1e6 * statistics.median(times) / instances for times in (a, b)]
        size = f"{width}x{height}"
        print(f"{size:>10}{per_instance[0]:12.1f}{per_instance[1]:10.2f}{ratio:9.1f}{least:7}{differ:8}{wrong:7}")
        failed |= bool(wrong) or ratio < least
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
