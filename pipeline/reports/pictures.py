"""Pictures of one image's truth and predictions, side by side, at a size that suits a page."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as mask_api

from pipeline import images, masks, overlay
from pipeline.errors import ImageError, StoreError
from pipeline.records import NO_INSTANCES, Category, Instances, Pixels
from pipeline.reports.sections import Example
from pipeline.store import Store

#: The longer side of a picture, about, in pixels.
LONG_SIDE = 720

#: The names of more instances than this would hide them.
MOST_NAMES = 20

#: From this IoU on, a prediction has found an object.
LEAST_IOU = 0.5

RED = (220, 38, 38)
#: Below this side in pixels a box is drawn thinly.
SMALL = 24

#: What an image may cost, in bytes and in pixels.
MOST_BYTES, MOST_PIXELS = 100_000_000, 100_000_000


def example(
    title: str,
    caption: str,
    *,
    uri: str | None,
    size: tuple[int, int],
    truth: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
    categories: Sequence[Category],
    store: Store,
) -> Example:
    """Fetch an image and draw its annotations and its predictions over it.

    A prediction and the object that it finds have the same colour; what has no partner is in a red box.

    Args:
        title: the name of the image.
        caption: what is wrong with its predictions.
        uri: where the image is; None: nowhere.
        size: (height, width) of the masks, in pixels.
        truth: COCO annotations, of polygons or RLE; crowd regions are not drawn, and excuse the predictions in them.
        predictions: COCO results with RLE.
        categories: what the category ids mean.
        store: where to fetch from.

    Returns:
        The example; with a `problem` where the image cannot be read, or has another size than its masks.
    """
    if uri is None:
        return Example(title=title, caption=caption, problem="the image is not there")
    try:
        pixels = images.decode(store.get(uri, limit=MOST_BYTES), max_bytes=MOST_BYTES, max_pixels=MOST_PIXELS)
    except (StoreError, ImageError) as error:
        return Example(title=title, caption=caption, problem=str(error))
    if pixels.shape[:2] != size:
        sizes = f"{pixels.shape[1]} x {pixels.shape[0]} pixels, and its truth is for {size[1]} x {size[0]}"
        return Example(title=title, caption=caption, problem=f"the image has {sizes}")
    real = instances([row for row in truth if not row.get("iscrowd")], *size)
    crowds = instances([row for row in truth if row.get("iscrowd")], *size)
    found = instances(predictions, *size)
    partners, excused = match(found, real, crowds, size)
    taken = {index for index in partners if index is not None}
    pairs = [(place, index) for place, index in enumerate(partners) if index is not None]
    missed = [index for index in range(len(real)) if index not in taken]
    alone = [place for place, index in enumerate(partners) if index is None]
    # Colours go by the order of drawing: partners get the same one.
    ours = chosen(found, [*(place for place, _ in pairs), *alone])
    theirs = chosen(real, [*(index for _, index in pairs), *missed])
    spurious = [len(pairs) + number for number, place in enumerate(alone) if place not in excused]
    names = categories if max(len(ours), len(theirs)) <= MOST_NAMES else None
    return Example(
        title=title,
        caption=caption,
        pictures=(
            ("truth", jpeg(draw(pixels, theirs, names, marked=range(len(pairs), len(theirs)), scores=False))),
            ("predictions", jpeg(draw(pixels, ours, names, marked=spurious, scores=True))),
        ),
    )


def instances(rows: Sequence[Mapping[str, Any]], height: int, width: int) -> Instances:
    """COCO annotations or results (score 1 where they have none) as instances, best scored first, largest first."""
    if not rows:
        return NO_INSTANCES
    counts = [_counts(row["segmentation"], height, width) for row in rows]
    measures = masks.measure(counts, (height, width))
    scores = np.array([row.get("score", 1.0) for row in rows], np.float32)
    order = np.lexsort((-measures.areas, -scores))
    return Instances(
        category_ids=np.array([row["category_id"] for row in rows], np.int32)[order],
        scores=scores[order],
        boxes=measures.boxes.astype(np.float32)[order],
        areas=measures.areas[order],
        counts=tuple(counts[index] for index in order),
    )


def match(
    found: Instances, real: Instances, crowds: Instances, size: tuple[int, int]
) -> tuple[list[int | None], set[int]]:
    """Which predictions are right: by descending score each takes the free object of its category of highest IoU.

    Args:
        found: the predictions, best scored first.
        real: the objects.
        crowds: regions of many objects.
        size: (height, width) of all masks.

    Returns:
        For each prediction the object that it takes, at IoU 0.5 or more; and which of the others are excused, as they
        lie by half or more in a crowd of their category.
    """
    shares = _ious(found, real, size, crowd=False), _ious(found, crowds, size, crowd=True)
    partners: list[int | None] = []
    free = np.ones(len(real), bool)
    for place, category in enumerate(found.category_ids):
        fits = shares[0][place] * (free & (real.category_ids == category))
        index = int(fits.argmax()) if fits.max(initial=0.0) >= LEAST_IOU else None
        partners.append(index)
        if index is not None:
            free[index] = False
    inside = (shares[1] >= LEAST_IOU) & (found.category_ids[:, None] == crowds.category_ids[None])
    return partners, {place for place in np.flatnonzero(inside.any(axis=1)).tolist() if partners[place] is None}


def draw(
    image: Pixels, found: Instances, categories: Sequence[Category] | None, *, marked: Collection[int], scores: bool
) -> Pixels:
    """Draw instances over an image (uint8 [H, W, 3]) brought to about LONG_SIDE pixels, some of them in a red box.

    Without categories, neither names nor scores are written.
    """
    long_side = max(image.shape[:2])
    if long_side > LONG_SIDE:
        image, found = _shrink(image, found, LONG_SIDE / long_side)
    scale = max(1, round(LONG_SIDE / long_side))
    written = categories is not None
    picture = overlay.draw_labels(image, found, categories or (), scale=scale, names=written, scores=written and scores)
    for index in marked:
        x, y, w, h = (float(side) * scale for side in found.boxes[index])
        thickness = 2 if min(w, h) > SMALL else 1
        cv2.rectangle(picture, (round(x) - 2, round(y) - 2), (round(x + w) + 1, round(y + h) + 1), RED, thickness)
    return picture


def _ious(found: Instances, others: Instances, size: tuple[int, int], *, crowd: bool) -> npt.NDArray[np.float64]:
    """IoU, or the share within a crowd, of masks [N] and [M]: float64 [N, M]."""
    if not len(found) or not len(others):
        return np.zeros((len(found), len(others)))
    left, right = ([{"size": [*size], "counts": one} for one in some.counts] for some in (found, others))
    return np.asarray(mask_api.iou(left, right, [int(crowd)] * len(right)), np.float64)


def chosen(found: Instances, order: Sequence[int]) -> Instances:
    """Some instances, in this order, without their quality columns."""
    index = np.array(order, np.int64)
    return Instances(
        category_ids=found.category_ids[index],
        scores=found.scores[index],
        boxes=found.boxes[index],
        areas=found.areas[index],
        counts=tuple(found.counts[place] for place in order),
    )


def _shrink(image: Pixels, found: Instances, factor: float) -> tuple[Pixels, Instances]:
    height, width = image.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    counts = []
    for one in found.counts:
        mask = mask_api.decode({"size": [height, width], "counts": one})
        mask = np.asfortranarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST))
        counts.append(mask_api.encode(mask)["counts"].decode())
    return small, replace(found, boxes=found.boxes * np.float32(factor), counts=tuple(counts))


def _counts(segmentation: Any, height: int, width: int) -> str:
    """Polygons, or either kind of RLE, as the string of a compressed RLE."""
    if isinstance(segmentation, list):
        segmentation = mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_api.frPyObjects(segmentation, height, width)
    counts = segmentation["counts"]
    return counts if isinstance(counts, str) else str(counts, "ascii")


def jpeg(pixels: Pixels) -> bytes:
    """A picture as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88, subsampling=0)  # thin lines keep their colour
    return buffer.getvalue()
