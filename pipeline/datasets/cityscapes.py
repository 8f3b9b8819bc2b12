"""Cityscapes: a split folder of gtFine, such as gtFine/train, and the one of leftImg8bit.

A pixel of `*_gtFine_instanceIds.png` says 1000 * label + number where it belongs to an object, and the label alone
where it does not, or where the objects of a group could not be told apart (cityscapesScripts, json2instanceImg).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.PngImagePlugin import PngImageFile
from pycocotools import mask as mask_api

from pipeline.datasets.dataset import Dataset, found
from pipeline.errors import AccessError, NotFoundError, UserError
from pipeline.images import DAMAGE
from pipeline.parallel import ahead
from pipeline.store import Store, absolute, join, redact
from pipeline.store.uris import local_path

#: The classes that have instances and count in the benchmark, by the label ids of cityscapesScripts.
CATEGORIES = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}

MAX_BYTES, MAX_PIXELS = 100_000_000, 100_000_000

_MAP, _IMAGE = "_gtFine_instanceIds.png", "_leftImg8bit.png"
_FIRST_INSTANCE = 1000
_THREADS = 8


def read(annotations: str, images: str | None, *, store: Store, key: str, strict: bool) -> Dataset:
    """Read a split; see `datasets.read`. Masks are exact to the pixel, groups are crowds, images have ids from 1 on."""
    root = join(absolute(local_path(annotations)), "")
    where = f"{key}.annotations: {redact(annotations)}"
    try:
        listed = sorted(info.uri for info in store.list(root, literal=True) if info.uri.endswith(_MAP))
    except (NotFoundError, AccessError, UserError) as error:
        raise UserError(f"{key}.annotations cannot be listed: {error}") from error
    if not listed:
        raise UserError(f"{where} holds no *{_MAP}; give a split folder of gtFine, such as gtFine/train")
    coco: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": id_, "name": name} for id_, name in CATEGORIES.items()],
    }
    load = partial(_load, store=store, where=where)
    for image_id, (uri, ids) in enumerate(zip(listed, ahead(load, listed, threads=_THREADS), strict=True), start=1):
        (height, width), objects = ids
        file_name = uri[len(root) :].removesuffix(_MAP) + _IMAGE
        coco["images"].append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for one in objects:
            coco["annotations"].append({"id": len(coco["annotations"]) + 1, "image_id": image_id, **one})
    if strict and not coco["annotations"]:
        raise UserError(f"{where} has no annotations, so there is nothing to measure against")
    names = {image["id"]: (image["file_name"],) for image in coco["images"]}
    return found(coco, names, images, store=store, key=key, name=redact(annotations))


def _load(uri: str, *, store: Store, where: str) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    """The size of a map, and its objects."""
    ids = decode(store.get(uri, limit=MAX_BYTES), where=f"{where}: {redact(uri)}")
    return (ids.shape[0], ids.shape[1]), list(objects_of(ids))


def decode(data: bytes, *, where: str) -> npt.NDArray[np.int64]:
    """A map of ids, int64 [H, W].

    Raises:
        UserError: it is damaged, too large, or no PNG of 8 or 16 bits of grey; the sentence begins with `where`.
    """
    sides = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise UserError(f"{where} is no PNG")
    if sides[0] * sides[1] > MAX_PIXELS:
        raise UserError(f"{where} has {sides[0]} x {sides[1]} pixels; at most {MAX_PIXELS} are taken")
    try:
        with PngImageFile(io.BytesIO(data)) as image:
            image.load()
            if image.mode not in ("L", "I", "I;16", "I;16B"):
                raise UserError(f"{where} is no map of ids, which is a PNG of 16 bits of grey, but one of {image.mode}")
            return np.asarray(image).astype(np.int64)
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{where} cannot be decoded: {str(error) or type(error).__name__}") from error


def objects_of(ids: npt.NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """The objects and groups of the eight classes in a map [H, W], by ascending id, as COCO annotations without ids.

    Runs of equal pixels down the columns are found once for all of them, and are what COCO's RLE is made of.
    """
    height, width = ids.shape
    pixels = ids.T.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(pixels)) + 1])
    ends = np.append(starts[1:], len(pixels))
    values = pixels[starts]
    for value in np.unique(values).tolist():
        label = value // _FIRST_INSTANCE if value >= _FIRST_INSTANCE else value
        if label not in CATEGORIES:
            continue
        first, last = starts[values == value], ends[values == value]
        edges = np.concatenate([[0], np.stack([first, last], axis=1).ravel(), [len(pixels)]])
        rle = mask_api.frPyObjects({"size": [height, width], "counts": np.diff(edges).tolist()}, height, width)
        yield {
            "category_id": label,
            "bbox": mask_api.toBbox(rle).tolist(),
            "area": int((last - first).sum()),
            "iscrowd": int(value < _FIRST_INSTANCE),
            "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
        }
