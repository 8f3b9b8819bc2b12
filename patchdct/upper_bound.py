"""How good masks could be at best: the ground truth itself, encoded, decoded and compared with the original.

Each mask of the truth is cropped to its box and brought to a grid as training targets are, encoded, decoded, pasted
back as predictions are, and compared with the mask that it came from. What is lost is lost to the encoding, whatever a
model learns. DCT-Mask (Shen et al., CVPR 2021) and PatchDCT (Wen et al., ICLR 2023) argue by such comparisons.

The box is the mask's own, tight around its pixels and in whole pixels (toBbox of the RLE). So the whole grid lies on
the object, no pixel is cut off, and no detector is needed. Other boxes give other figures. Those of a detector
(EVAL_GT) bring in its errors of boxes, classes and scores, and so a much lower AP. COCO's own `bbox`, which follows the
polygons and ends within a pixel, moves the grid by a part of a pixel: on 801 instances of COCO the mean mask IoU of
four encodings changed by 0.12 points at most.

A mask that fills its box comes back perfect unless its sides are longer than 2.4 grids (67 pixels for 28 x 28, 270 for
112 x 112): pasting is bilinear with zeros around the grid, as in detectron2, and takes the corners off.

Shape legend: N masks of an image, M x M grid, H and W image height and width in pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from detectron2.structures import BitMasks, Boxes
from pycocotools import mask as mask_api
from torch import Tensor

from patchdct import dct, patches, targets
from patchdct.errors import DataError
from patchdct.evaluate import boundary, boundary_width, evaluate
from patchdct.evaluate.rows import Row, read_rows
from patchdct.paste import paste_rle

_Mask: TypeAlias = npt.NDArray[np.uint8]

#: Bits of a coefficient (float32) and of a patch's class (one of three).
_COEFFICIENT, _CLASS = 32, 2
#: How many pixels the masks that are cropped together may have, in the image or on the grid.
_PIXELS = 2**23


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """Masks that were encoded and decoded again.

    values float32 [N, M, M], to be cut at 0.5. numbers int64 [N]: how many numbers the code of each mask has. bits
    int64 [N]: how many bits they take, at 1 for a cell of a binary grid, 2 for the class of a patch, 32 for a
    coefficient.
    """

    values: Tensor
    numbers: Tensor
    bits: Tensor


class Encoding(Protocol):
    """A way to describe a mask."""

    @property
    def name(self) -> str:
        """What the report and the table call it."""

    @property
    def grid(self) -> int:
        """M, the side of the crops that it takes."""

    def code(self, crops: Tensor) -> Coded:
        """Encode crops, bool [N, M, M], and decode them."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A binary grid, as in Mask R-CNN."""

    grid: int

    @property
    def name(self) -> str:
        """Such as "grid 28x28"."""
        return f"grid {self.grid}x{self.grid}"

    def code(self, crops: Tensor) -> Coded:
        """As they are."""
        cells = torch.full((len(crops),), self.grid**2)
        return Coded(values=crops.float(), numbers=cells, bits=cells)


@dataclass(frozen=True, slots=True)
class Dct:
    """The lowest `dim` DCT coefficients of the whole mask, as in DCT-Mask."""

    dim: int
    grid: int = 112

    @property
    def name(self) -> str:
        """Such as "DCT-300"."""
        return f"DCT-{self.dim}"

    def code(self, crops: Tensor) -> Coded:
        """Encode and decode with `dct`."""
        values = dct.decode(dct.encode(crops, self.dim), self.grid)
        numbers = torch.full((len(crops),), self.dim)
        return Coded(values=_rounded(values), numbers=numbers, bits=_COEFFICIENT * numbers)


@dataclass(frozen=True, slots=True)
class PatchDct:
    """A class for each patch, and the lowest `dim` DCT coefficients of the mixed ones, as in PatchDCT."""

    dim: int
    grid: int = 112
    patch: int = 8

    @property
    def name(self) -> str:
        """Such as "PatchDCT 6"."""
        return f"PatchDCT {self.dim}"

    def code(self, crops: Tensor) -> Coded:
        """Encode and decode with `patches` and `dct`: pure patches are all 0 or all 1."""
        side = self.grid // self.patch
        cells = patches.split(crops, self.patch)
        classes = patches.label(cells)
        values = patches.assemble(patches.decode(classes, dct.encode(cells, self.dim), self.patch), side)
        coefficients = self.dim * (classes == patches.MIXED).unflatten(0, (-1, side**2)).sum(1)
        return Coded(
            values=_rounded(values),
            numbers=side**2 + coefficients,
            bits=_CLASS * side**2 + _COEFFICIENT * coefficients,
        )


def _rounded(values: Tensor) -> Tensor:
    """Values to multiples of 2^-16: far above what float32 rounds off them, far below what shows in a mask.

    A pixel midway between a 0 and a 1 has a value of exactly 0.5 and belongs to the mask; in boxes of 8, 28 or 56
    pixels each lies midway. Between 1e-7 and 1 - 1e-7, which decoding makes of 0 and 1, chance would decide on it.
    """
    return (values * 2.0**16).round() * 2.0**-16


DEFAULT: tuple[Encoding, ...] = (
    *(Grid(side) for side in (28, 56, 112)),
    Dct(300),
    *(PatchDct(dim) for dim in (3, 6, 10, 15, 64)),
)


def measure(
    truth: Mapping[str, Any],
    *,
    encodings: Sequence[Encoding] = DEFAULT,
    max_detections: int = 100,
    image_ids: Collection[int] | None = None,
) -> dict[str, Any]:
    """Encode, decode and measure the masks of the truth, which is not changed.

    Crowds are not encoded; AP ignores them, as always. Annotations without a pixel are left out altogether.

    Args:
        truth: A COCO data set: images, annotations (polygons or RLE), categories.
        encodings: What to measure; no two with the same name.
        max_detections: As for `evaluate`. All scores are 1: of more instances of one category in an image, AP counts
            any so many, and the rest as missed.
        image_ids: The images to measure on; all of the truth's where None.

    Returns:
        The counts `images`, `instances`, `empty` (annotations without a pixel) and `max_detections`, and `encodings`,
        with a row by name: `mask_iou` and `boundary_iou` (Cheng et al., CVPR 2021), the means over all instances, where
        one that vanished counts as 0; `mask` and `boundary`, the figures of `evaluate` but for its `per_class`;
        `numbers` and `bytes`, the mean size of a mask's code. IoU and AP are in 0..1.

    Raises:
        DataError: The truth has no mask to encode, two encodings have the same name, or what `evaluate` refuses.
    """
    names = [encoding.name for encoding in encodings]
    if len(set(names)) < len(names):
        raise DataError(f"encodings must have different names, not {', '.join(names)}.")
    rows = read_rows(truth, [], image_ids)
    seen = [row for row in rows.annotations if mask_api.area(row["segmentation"])]
    by_image: dict[int, list[Row]] = defaultdict(list)
    for row in seen:
        if not row["iscrowd"]:
            by_image[row["image_id"]].append(row)
    if not by_image:
        raise DataError("The truth has no mask to encode; crowds and masks without a pixel do not count.")

    tallies = [_Tally(encoding) for encoding in encodings]
    largest = max((encoding.grid for encoding in encodings), default=1)
    for instances in by_image.values():
        for chunk in _chunks(instances, largest):
            _add(chunk, tallies)

    report: dict[str, Any] = {
        "images": len(rows.images),
        "instances": sum(map(len, by_image.values())),
        "empty": len(rows.annotations) - len(seen),
        "max_detections": max_detections,
        "encodings": {},
    }
    for tally in tallies:
        found = evaluate(
            {**truth, "annotations": seen},
            tally.results,
            metrics=("coco", "boundary"),
            max_detections=max_detections,
            image_ids=image_ids,
        )
        sections = {kind: {k: v for k, v in found[kind].items() if k != "per_class"} for kind in ("mask", "boundary")}
        report["encodings"][tally.encoding.name] = tally.means() | sections
    return report


def table(report: Mapping[str, Any]) -> str:
    """What `measure` returns as a table in Markdown, IoU and AP in percent.

    >>> row = {"mask_iou": 0.987, "boundary_iou": 0.9, "mask": {"AP": 0.95}, "boundary": {"AP": None}}
    >>> print(table({"encodings": {"grid 28x28": {**row, "numbers": 784.0, "bytes": 98.0}}}))
    | encoding | mask IoU | boundary IoU | mask AP | boundary AP | numbers | bytes |
    |---|---:|---:|---:|---:|---:|---:|
    | grid 28x28 | 98.70 | 90.00 | 95.00 | - | 784 | 98 |
    """
    lines = [
        "| encoding | mask IoU | boundary IoU | mask AP | boundary AP | numbers | bytes |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in report["encodings"].items():
        shares = (row["mask_iou"], row["boundary_iou"], row["mask"]["AP"], row["boundary"]["AP"])
        percents = ["-" if share is None else f"{100 * share:.2f}" for share in shares]
        lines.append(f"| {' | '.join([name, *percents])} | {row['numbers']:.0f} | {row['bytes']:.0f} |")
    return "\n".join(lines)


class _Tally:
    """What has been measured of one encoding."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.results: list[Row] = []
        self._rows: list[tuple[float, ...]] = []

    def add(self, *, mask_iou: float, boundary_iou: float, numbers: int, bits: int) -> None:
        self._rows.append((mask_iou, boundary_iou, numbers, bits / 8))

    def means(self) -> dict[str, Any]:
        means = np.mean(self._rows, axis=0).tolist()
        return dict(zip(("mask_iou", "boundary_iou", "numbers", "bytes"), means, strict=True))


def _add(rows: Sequence[Row], tallies: Sequence[_Tally]) -> None:
    """Encode, decode and compare some instances of one image, and add what comes of it to the tallies."""
    rles = [row["segmentation"] for row in rows]
    height, width = rles[0]["size"]
    x, y, w, h = mask_api.toBbox(rles).T
    boxes = np.stack([x, y, x + w, y + h], 1).astype(np.float32)
    originals: _Mask = np.ascontiguousarray(mask_api.decode(rles).transpose(2, 0, 1))
    masks, rois = BitMasks(torch.from_numpy(originals)), Boxes(torch.from_numpy(boxes))
    crops = {side: targets.crop(masks, rois, side) for side in {tally.encoding.grid for tally in tallies}}
    for tally in tallies:
        coded = tally.encoding.code(crops[tally.encoding.grid])
        counts, areas, tight = paste_rle(coded.values.numpy(), boxes, height, width)
        for i, row in enumerate(rows):
            rle = {"size": [height, width], "counts": counts[i]}
            window = _window(boxes[i], tight[i])
            ious = _ious(originals[i][window], mask_api.decode(rle)[window], boundary_width(height, width))
            tally.add(**ious, numbers=int(coded.numbers[i]), bits=int(coded.bits[i]))
            if areas[i]:  # a model predicts no mask without a pixel
                found = {"image_id": row["image_id"], "category_id": row["category_id"], "score": 1.0}
                tally.results.append({**found, "segmentation": rle})


def _window(box: npt.NDArray[np.float32], tight: npt.NDArray[np.float64]) -> tuple[slice, slice]:
    """Rows and columns of the window around the boxes (x0, y0, x1, y1) and (x, y, w, h); the latter may be empty."""
    x0, y0, x1, y1 = map(int, box)
    x, y, w, h = map(int, tight)
    if w and h:
        x0, y0, x1, y1 = min(x0, x), min(y0, y), max(x1, x + w), max(y1, y + h)
    return slice(y0, y1), slice(x0, x1)


def _ious(truth: _Mask, mask: _Mask, width: int) -> dict[str, float]:
    """Mask IoU and boundary IoU of two masks in a window that holds all of both."""
    return {"mask_iou": _iou(truth, mask), "boundary_iou": _iou(boundary(truth, width), boundary(mask, width))}


def _iou(a: _Mask, b: _Mask) -> float:
    return float(np.count_nonzero(a & b) / np.count_nonzero(a | b))


def _chunks(rows: Sequence[Row], grid: int) -> Iterator[Sequence[Row]]:
    """The instances of one image in portions that fit into memory."""
    height, width = rows[0]["segmentation"]["size"]
    step = max(1, _PIXELS // max(height * width, grid**2))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
