"""Which masks of an image are right: by its true objects, and the rules of COCO's evaluation.

Legend of shapes: N masks, M objects, C crowd regions of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

from pipeline import masks
from pipeline.records import Instances


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What became of each of N masks.

    iou: float64 [N], the greatest IoU with an object of its class, even one that another mask has; 0 where there is
    none. right: bool [N], whether it is the match of an object: by descending score each mask takes the free object of
    its class of greatest IoU, if that is enough. excused: bool [N], those that are neither right nor wrong, as they
    match nothing and lie in a crowd region of their class.
    """

    iou: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]
    excused: npt.NDArray[np.bool_]


def judge(found: Instances, objects: Sequence[Mapping[str, Any]], size: tuple[int, int], *, least: float) -> Judged:
    """Compare the masks of an image with its objects.

    Args:
        found: N instances.
        objects: M annotations of COCO, with polygons or compressed RLE, crowd regions among them.
        size: (height, width) of the image.
        least: the IoU from which on a mask may be the match of an object.

    Raises:
        ValueError: a mask cannot be decoded, or has another size.
    """
    real = [one for one in objects if not one["iscrowd"]]
    crowds = [one for one in objects if one["iscrowd"]]
    ious = _ious(found, real, size)
    right, free = np.zeros(len(found), bool), np.ones(len(real), bool)
    for place in np.argsort(-found.scores, kind="stable"):
        fits = ious[place] * free
        if fits.max(initial=0.0) >= least:
            right[place], free[fits.argmax()] = True, False
    best = ious.max(axis=1, initial=0.0)
    inside = _shares_inside(found, crowds, size).max(axis=1, initial=0.0) >= least
    return Judged(iou=best, right=right, excused=inside & ~right & (best < least))


def _ious(found: Instances, objects: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """IoUs [N, M], 0 where the classes differ."""
    counts = [_counts(one["segmentation"], *size) for one in objects]
    classes = np.array([one["category_id"] for one in objects], np.int64)
    same = found.category_ids[:, None] == classes[None]
    return np.where(same, masks.iou(found.counts, counts, *size), 0.0)


def _shares_inside(
    found: Instances, crowds: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """How much of each mask lies in each crowd region of its class, [N, C]."""
    if not crowds:
        return np.zeros((len(found), 0))
    areas = np.array([masks.area(_counts(one["segmentation"], *size), *size) for one in crowds], np.float64)
    ious = _ious(found, crowds, size)
    common = ious * (found.areas[:, None] + areas[None]) / (1 + ious)
    return np.asarray(common / np.maximum(found.areas[:, None], 1), np.float64)


def _counts(segmentation: Any, height: int, width: int) -> str:
    """Compressed RLE of polygons, or as it is."""
    if isinstance(segmentation, Mapping):
        return str(segmentation["counts"])
    merged = mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    return str(merged["counts"].decode())
