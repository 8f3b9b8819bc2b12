"""One image for the page: its picture, its masks at the size of the picture, and how they compare with others."""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as mask_api

from pipeline import images, masks, polygons
from pipeline.config import LimitsConfig
from pipeline.errors import ImageError
from pipeline.gallery.comparing import Comparison
from pipeline.image_headers import announced_size
from pipeline.records import ImageLabels, ImageRecord, Pixels

_QUALITY = 85


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What the page knows of an image.

    worst: whether it is shown for being among the worst. size: (height, width) of picture and masks here. counts: the
    masks at that size, as compressed COCO RLE. picture: the name of its file; None where it cannot be shown, and
    `problem` says why. truth, truth_counts: if it was given for this image. change: how far people's corrections are
    from what the model found, 0..1.
    """

    row: ImageLabels
    worst: bool
    size: tuple[int, int]
    counts: tuple[str, ...]
    picture: str | None = None
    problem: str | None = None
    truth: Comparison | None = None
    truth_counts: tuple[str, ...] = ()
    change: float | None = None


def picture_of(row: ImageLabels, record: ImageRecord | None, *, longest: int, limits: LimitsConfig) -> bytes:
    """An image as a JPEG, upright, its longer side at most `longest` pixels.

    Raises:
        ImageError: the sentence for the page, where it is gone, damaged, or another one than was labelled.
    """
    if record is None:
        raise ImageError("the image is no longer in its shard")
    if record.error is not None:
        raise ImageError(record.error)
    height, width = row.height, row.width
    part = _reduction(record.data, longest)
    pixels = images.decode(
        record.data, max_bytes=limits.max_image_bytes, max_pixels=limits.max_image_pixels, reduce=part
    )
    if pixels.shape[:2] not in {(height, width), (-(-height // part), -(-width // part))}:
        raise ImageError(f"the image is another one than was labelled, which had {width} x {height} pixels")
    size = scaled((height, width), longest)
    if pixels.shape[:2] != size:
        pixels = np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    return _jpeg(pixels)


def scaled(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """A (height, width) brought to a longest side, if it is larger.

    >>> scaled((3000, 4000), 640), scaled((300, 400), 640)
    ((480, 640), (300, 400))
    """
    factor = min(1.0, longest / max(1, *size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def scaled_counts(counts: tuple[str, ...], size: tuple[int, int], to: tuple[int, int]) -> tuple[str, ...]:
    """Masks (compressed COCO RLE) of one size (height, width) at another: the pixel in the middle decides.

    No mask vanishes. One that cannot be decoded becomes an empty one.
    """
    faults = masks.measure(counts, size).faults
    nothing = _encoded(np.zeros(0, np.int64), to)
    return tuple(
        nothing if place in faults else one if size == to else _resized(one, size, to)
        for place, one in enumerate(counts)
    )


def _resized(counts: str, size: tuple[int, int], to: tuple[int, int]) -> str:
    """A sound mask at a smaller size."""
    columns, tops, ends = polygons.spans(counts, *size).T
    # The rows and columns of which the pixels are taken.
    rows_taken, columns_taken = (
        ((np.arange(few) + 0.5) * many / few).astype(np.int64) for many, few in zip(size, to, strict=True)
    )
    places = np.searchsorted(columns_taken, columns)
    first, last = np.searchsorted(rows_taken, tops), np.searchsorted(rows_taken, ends)
    kept = (places < to[1]) & (columns_taken[np.minimum(places, to[1] - 1)] == columns) & (first < last)
    if not kept.any() and len(columns):
        middle = len(columns) // 2
        pixel = int(columns[middle] * to[1] / size[1]) * to[0] + int(tops[middle] * to[0] / size[0])
        return _encoded(np.array([pixel, pixel + 1]), to)
    starts = places[kept] * to[0]
    edges = np.stack([starts + first[kept], starts + last[kept]], axis=1).ravel()
    return _encoded(edges, to)


def _encoded(edges: npt.NDArray[np.int64], size: tuple[int, int]) -> str:
    """A mask as compressed RLE, given where its runs begin and end, by turns, counted down the columns."""
    height, width = size
    meeting = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # one run begins where another ends
    edges = np.delete(edges, np.concatenate([2 * meeting + 1, 2 * meeting + 2]))
    lengths = np.diff(edges, prepend=0, append=height * width)
    lengths = lengths[: len(lengths) - (lengths[-1] == 0)]
    found = mask_api.frPyObjects({"size": [height, width], "counts": lengths.tolist()}, height, width)
    return str(found["counts"], "ascii")


def _reduction(data: bytes, longest: int) -> int:
    """The part at which a JPEG can be decoded without becoming smaller than it is shown."""
    side = max(announced_size(data) or (0, 0))
    return next((part for part in (8, 4, 2) if side >= part * longest), 1)


def _jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
