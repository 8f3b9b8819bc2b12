"""Cityscapes' average precision of instance masks, on the label maps of gtFine.

The rules are those of cityscapesscripts 2.3 (evalInstanceLevelSemanticLabeling), which the tests compare with. That
script takes a PNG for each mask, does not run on NumPy 2.4, and fails where every prediction of a class is excused.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as mask_api

from patchdct.categories import CITYSCAPES
from patchdct.errors import DataError
from patchdct.evaluate.rows import Row, read_rows

#: A prediction matches an instance where their IoU exceeds this. The floats of cityscapesscripts, not rounded.
THRESHOLDS = np.arange(0.5, 1.0, 0.05)
#: Smaller instances, in pixels, need not be found.
MIN_AREA = 100

#: Pixels of label v have the value v, those of its instance n the value 1000 v + n. A value below 1000 of a class with
#: instances is a group: objects that could not be told apart.
_FIRST_INSTANCE = 1000
_LAST_LABEL = 33
_VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)


def evaluate(truth: Mapping[int, bytes], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measure predictions against label maps. Neither argument is changed.

    An instance is found by the best scored prediction of its class that matches it; further ones are errors. One that
    matches nothing is an error unless it is excused: its share on void, on groups of its class and on instances of it
    below 100 pixels exceeds the threshold. AP is the area below precision over recall by the trapezoidal rule, from
    precision 1 at recall 0.

    Args:
        truth: What the `*_gtFine_instanceIds.png` of each image holds, by image id. Measured on are these images.
        results: COCO results: image_id, category_id (Cityscapes' label id), score, segmentation (RLE at image size).

    Returns:
        The counts `images`, `annotations` (instances to find), `results`, `ignored_results` (of labels other than the
        eight classes), and AP (over IoU 0.5 to 0.95), AP50 and `per_class`, AP by class name. All are in 0..1, or None
        where the truth has no instance to find.

    Raises:
        DataError: No images, a label map that is none, or results that do not fit them, as `read_rows` says.
    """
    if not truth:
        raise DataError("truth has no images to measure on.")
    sizes = {image_id: _open(label_map, image_id).size for image_id, label_map in truth.items()}
    known = {
        "images": [{"id": image_id, "height": height, "width": width} for image_id, (width, height) in sizes.items()],
        "categories": [{"id": label, "name": name} for label, name in CITYSCAPES],
        "annotations": [],
    }
    rows = read_rows(known, results)
    predictions: dict[int, list[Row]] = {image_id: [] for image_id in truth}
    for row in rows.predictions:
        predictions[row["image_id"]].append(row)

    images = [_match(_read(truth[image_id], image_id), found) for image_id, found in predictions.items()]
    classes = {label: _join([image[label] for image in images]) for label, _ in CITYSCAPES}
    curves = {label: _average_precisions(matches) for label, matches in classes.items() if matches.wanted.any()}
    return {
        "images": len(images),
        "annotations": sum(int(matches.wanted.sum()) for matches in classes.values()),
        "results": len(rows.predictions),
        "ignored_results": rows.ignored_results,
        "AP": float(np.mean(list(curves.values()))) if curves else None,
        "AP50": float(np.mean([curve[0] for curve in curves.values()])) if curves else None,
        "per_class": {name: float(curves[label].mean()) if label in curves else None for label, name in CITYSCAPES},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matches:
    """P predictions of one class and its G instances, groups among them.

    Instances share no pixel, so IoU exceeds 0.5 with one at most: each prediction is held against its best alone.
    """

    scores: npt.NDArray[np.float64]  # [P]
    ious: npt.NDArray[np.float64]  # [P], with the best instance; 0 where there is none
    instances: npt.NDArray[np.intp]  # [P], which one that is; means nothing where the IoU is 0
    excused: npt.NDArray[np.float64]  # [P], the share on void, groups and small instances
    wanted: npt.NDArray[np.bool_]  # [G], neither a group nor small


def _match(values: npt.NDArray[np.int32], predictions: Sequence[Row]) -> dict[int, _Matches]:
    """The predictions of one image against its label map [H, W], by label."""
    areas = np.bincount(values.ravel())
    present = np.flatnonzero(areas)  # K values
    areas, places = areas[present], (np.cumsum(areas > 0) - 1)[values]
    labels = np.where(present < _FIRST_INSTANCE, present, present // _FIRST_INSTANCE)
    groups, small, void = present < _FIRST_INSTANCE, areas < MIN_AREA, np.isin(present, _VOID)

    predictions = [row for row in predictions if row["area"]]
    scores = np.array([row["score"] for row in predictions], np.float64)
    predicted = np.array([row["category_id"] for row in predictions], np.int64)
    overlaps = np.zeros((len(predictions), len(present)), np.int64)  # pixels that prediction and value share
    for overlap, row in zip(overlaps, predictions, strict=True):
        overlap[:] = np.bincount(_below(row["segmentation"], places), minlength=len(present))
    totals = overlaps.sum(1)

    matches = {}
    for label, _ in CITYSCAPES:
        mine, own = predicted == label, labels == label
        shared, total = overlaps[np.ix_(mine, own)], totals[mine]
        ious = shared / (total[:, None] + areas[own] - shared)
        # What is small and a group counts twice, as in cityscapesscripts.
        excused = overlaps[mine] @ (void + own * (groups.astype(int) + small))
        matches[label] = _Matches(
            scores=scores[mine],
            ious=ious.max(1, initial=0.0),
            instances=ious.argmax(1) if own.any() else np.zeros(len(total), np.intp),
            excused=excused / total,
            wanted=~(groups | small)[own],
        )
    return matches


def _join(images: Sequence[_Matches]) -> _Matches:
    """One class over all images, with its instances in one row."""
    starts = np.cumsum([0, *(len(image.wanted) for image in images)])[:-1]
    return _Matches(
        scores=np.concatenate([image.scores for image in images]),
        ious=np.concatenate([image.ious for image in images]),
        instances=np.concatenate([image.instances + start for image, start in zip(images, starts, strict=True)]),
        excused=np.concatenate([image.excused for image in images]),
        wanted=np.concatenate([image.wanted for image in images]),
    )


def _average_precisions(matches: _Matches) -> npt.NDArray[np.float64]:
    """AP at each threshold, float64 [10]."""
    order = np.argsort(-matches.scores, kind="stable")
    scores, ious, excused = matches.scores[order], matches.ious[order], matches.excused[order]
    instances = matches.instances[order]
    precisions = np.zeros(len(THRESHOLDS))
    for number, threshold in enumerate(THRESHOLDS):
        hits = np.flatnonzero(ious > threshold)
        hits = hits[matches.wanted[instances[hits]]]
        best = hits[np.unique(instances[hits], return_index=True)[1]]  # the first of each instance
        right = np.zeros(len(scores), bool)
        right[best] = True
        wrong = excused <= threshold  # so not what matches a group or a small instance: its share is above its IoU
        wrong[hits] = ~right[hits]
        counted = right | wrong
        precisions[number] = _area_below(scores[counted], right[counted], int(matches.wanted.sum()))
    return precisions


def _area_below(scores: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], wanted: int) -> float:
    """The area below precision over recall; scores [P] descend, and equal ones are one point of the curve."""
    last = np.flatnonzero(np.diff(scores, append=-np.inf))
    found = np.cumsum(right)[last]
    recall = np.concatenate([[0.0], found / wanted])
    precision = np.concatenate([[1.0], found / (last + 1)])
    return float(np.diff(recall) @ (precision[1:] + precision[:-1]) / 2)


def _open(label_map: bytes, image_id: int) -> Image.Image:
    where = f"The label map of image {image_id}"
    try:
        image = Image.open(io.BytesIO(label_map), formats=("PNG",))
    except (OSError, ValueError) as error:
        raise DataError(f"{where} is no PNG; give its *_gtFine_instanceIds.png.") from error
    if not image.mode.startswith("I"):  # I or I;16, by the version of Pillow
        raise DataError(f"{where} has not one channel of 16 bits; give its *_gtFine_instanceIds.png.")
    return image


def _read(label_map: bytes, image_id: int) -> npt.NDArray[np.int32]:
    """A label map, int32 [H, W]."""
    try:
        values = np.asarray(_open(label_map, image_id), np.int32)
    except (OSError, SyntaxError) as error:
        raise DataError(f"The label map of image {image_id} is a damaged PNG.") from error
    if (np.where(values < _FIRST_INSTANCE, values, values // _FIRST_INSTANCE) > _LAST_LABEL).any():
        raise DataError(
            f"The label map of image {image_id} has values that are no label of Cityscapes; give its "
            "*_gtFine_instanceIds.png."
        )
    return values


def _below(rle: Any, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What lies below a mask in an array [H, W], int64 [area]."""
    x, y, w, h = (int(side) for side in mask_api.toBbox(rle))
    box = np.s_[y : y + h, x : x + w]
    return np.asarray(places[box][mask_api.decode(rle)[box].astype(bool)])
