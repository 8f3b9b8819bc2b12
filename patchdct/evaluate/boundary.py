"""Boundary IoU: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (CVPR 2021).

As in their released evaluation, a match counts by the smaller of mask IoU and boundary IoU, and in a crowd region by
the mask alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

from patchdct.evaluate.matching import IOU_THRESHOLDS, Floats, Group

#: The width of the boundary region, as a share of the image's diagonal.
DILATION_RATIO = 0.02


def boundary(mask: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.uint8]:
    """The pixels of a mask (uint8 [H, W], 0 or 1) within `width` pixels of its contour, which the image's edge closes.

    Distance is the chessboard's: what `width` erosions by a 3 x 3 kernel take away.
    """
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inside = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return np.asarray(mask - inside, np.uint8)


def boundary_width(height: int, width: int) -> int:
    """How wide, in pixels, the boundary region is in an image of this size."""
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def boundary_ious(group: Group, overlaps: Floats) -> Floats:
    """The smaller of mask IoU and boundary IoU, float64 [D, G]; of a crowd, the share of the prediction inside it.

    Where the mask IoU, `overlaps` [D, G], is below the lowest threshold nothing can match, and it stands as it is: the
    outlines, which take the time, are those of the few pairs that could.
    """
    ious = overlaps.copy()
    close = (ious >= IOU_THRESHOLDS[0]) & ~group.crowd
    found = {d: _Outline.of(group.predictions[d]["segmentation"]) for d in np.flatnonzero(close.any(axis=1))}
    wanted = {g: _Outline.of(group.annotations[g]["segmentation"]) for g in np.flatnonzero(close.any(axis=0))}
    for d, g in np.argwhere(close):
        ious[d, g] = min(ious[d, g], found[d].iou(wanted[g]))
    return ious


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outline:
    """The boundary of a mask that has at least one pixel: uint8 [h, w], with its upper left corner in the image."""

    x: int
    y: int
    pixels: npt.NDArray[np.uint8]
    area: int

    @classmethod
    def of(cls, rle: Mapping[str, Any]) -> _Outline:
        x, y, w, h = (int(side) for side in mask_api.toBbox(rle))
        # Outside its box a mask has nothing to erode.
        pixels = boundary(mask_api.decode(rle)[y : y + h, x : x + w], boundary_width(*rle["size"]))
        return cls(x=x, y=y, pixels=pixels, area=cv2.countNonZero(pixels))

    def iou(self, other: _Outline) -> float:
        left, right = max(self.x, other.x), min(self.x + self.pixels.shape[1], other.x + other.pixels.shape[1])
        top, bottom = max(self.y, other.y), min(self.y + self.pixels.shape[0], other.y + other.pixels.shape[0])
        mine, theirs = (one.pixels[top - one.y : bottom - one.y, left - one.x : right - one.x] for one in (self, other))
        shared = np.count_nonzero(mine & theirs)
        return shared / (self.area + other.area - shared)
