"""How good predicted masks are: COCO average precision of masks, boxes and boundaries.

Matching, ranking and averaging are those of pycocotools. Boundary AP follows Cheng et al., "Boundary IoU" (CVPR 2021),
and their released evaluation: a match counts by the smaller of mask IoU and boundary IoU.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from posixpath import basename, splitext
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from patchdct.errors import DataError

METRICS = ("coco", "boundary")

#: The width of the boundary region, as a share of the image's diagonal.
DILATION_RATIO = 0.02


def evaluate(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    metrics: Collection[str] = METRICS,
    max_detections: int = 100,
    image_ids: Collection[int] | None = None,
) -> dict[str, Any]:
    """Measure predictions against the truth. Neither argument is changed.

    Args:
        truth: A COCO data set: images, annotations (polygons or RLE), categories.
        results: COCO results: image_id, category_id, score, segmentation (RLE at image size) and, if at hand, bbox.
        metrics: `coco` gives the sections `mask` and `box` of the report, `boundary` the section `boundary`.
        max_detections: How many predictions of one image and category count, the best scored first.
        image_ids: The images to measure on; all of the truth's where None.

    Returns:
        The counts `images`, `annotations`, `results`, `ignored_results` (of categories that the truth lacks) and
        `max_detections`, and the sections. A section has AP (over IoU 0.5 to 0.95), AP50, AP75, APs, APm, APl (areas
        below 32^2, up to 96^2 and above), AR, ARs, ARm, ARl, and `per_class`, AP by category name. All are in 0..1, or
        None where the truth has no instance to find.

    Raises:
        DataError: An unknown metric or image, only unknown categories, or a mask that has not its image's size.
    """
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise DataError(f"metrics names {', '.join(unknown)}; accepted are {', '.join(METRICS)}.")
    if max_detections < 1:
        raise DataError(f"max_detections is {max_detections}; it must be at least 1.")
    images = {image["id"]: image for image in truth["images"]}
    chosen = set(images) if image_ids is None else set(image_ids)
    _check_known("image_ids", chosen, images, "image")
    _check_known("results", {result["image_id"] for result in results}, images, "image")
    categories = {category["id"]: str(category["name"]) for category in truth["categories"]}
    known = [result for result in results if result["category_id"] in categories]
    if results and not known:
        _check_known("results", {result["category_id"] for result in results}, categories, "category")

    annotations = [_annotation(row, images) for row in truth["annotations"] if row["image_id"] in chosen]
    predictions = [_prediction(row, images) for row in known if row["image_id"] in chosen]
    report: dict[str, Any] = {
        "images": len(chosen),
        "annotations": len(annotations),
        "results": len(predictions),
        "ignored_results": len(results) - len(known),
        "max_detections": max_detections,
    }
    rows = [images[image_id] for image_id in sorted(chosen)]
    with contextlib.redirect_stdout(io.StringIO()):
        ground = _coco(rows, truth["categories"], annotations)
        found = _coco(rows, truth["categories"], predictions)
        if "coco" in metrics:
            # The area decides which size class an unmatched prediction belongs to: its own, of mask or of box.
            boxed = [{**row, "area": row["bbox"][2] * row["bbox"][3]} for row in predictions]
            found_boxes = _coco(rows, truth["categories"], boxed)
            report["mask"] = _figures(COCOeval(ground, found, "segm"), categories, max_detections)
            report["box"] = _figures(COCOeval(ground, found_boxes, "bbox"), categories, max_detections)
        if "boundary" in metrics:
            report["boundary"] = _figures(_BoundaryEval(ground, found, "segm"), categories, max_detections)
    return report


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


def match_keys(truth: Mapping[str, Any], keys: Iterable[str]) -> dict[str, int]:
    """The truth's image id for each image key of a labeling run.

    A key is an image's `file_name`; or else its file name without the extension (of either); or else, where that is
    unique in the truth, the last part of its path, with or without the extension.

    Raises:
        DataError: Some keys match no image, more than one, or the same image as another key.
    """
    file_names = {image["id"]: str(image["file_name"]) for image in truth["images"]}
    whole = _index(file_names, str)
    stems = _index(file_names, _stem)
    bases = _index(file_names, basename)
    base_stems = _index(file_names, lambda name: _stem(basename(name)))

    matched: dict[str, int] = {}
    owners: dict[int, str] = {}
    unmatched: list[str] = []
    for key in keys:
        base = basename(key)
        candidates = (
            whole.get(key)
            or stems.get(key)
            or stems.get(_stem(key))
            or bases.get(base)
            or base_stems.get(base)
            or base_stems.get(_stem(base))
            or []
        )
        if len(candidates) != 1:
            unmatched.append(key)
            continue
        image_id = candidates[0]
        if image_id in owners:
            raise DataError(f"The keys {owners[image_id]!r} and {key!r} both match image {image_id} of the truth.")
        owners[image_id] = key
        matched[key] = image_id
    if unmatched:
        names = ", ".join(map(repr, list(file_names.values())[:2])) or "none"
        raise DataError(
            f"{len(unmatched)} of {len(unmatched) + len(matched)} image keys match no single image of the truth "
            f"(first {', '.join(map(repr, unmatched[:3]))}); its file names are like {names}."
        )
    return matched


class _BoundaryEval(COCOeval):
    """COCO evaluation by the smaller of mask IoU and boundary IoU; for crowd regions, by mask IoU alone."""

    def computeIoU(self, image_id: int, category_id: int) -> Any:  # noqa: N802  (the name that COCOeval calls)
        ious = super().computeIoU(image_id, category_id)
        if len(ious) == 0:
            return ious
        truth = self._gts[image_id, category_id]
        # In the order and number in which COCOeval ranks predictions: these are the rows of `ious`.
        predictions = sorted(self._dts[image_id, category_id], key=lambda row: -row["score"])[: self.params.maxDets[-1]]
        edges = mask_api.iou(
            [_boundary_rle(row["segmentation"]) for row in predictions],
            [_boundary_rle(row["segmentation"]) for row in truth],
            [0] * len(truth),
        )
        crowd = np.array([row["iscrowd"] for row in truth], bool)
        return np.where(crowd[None], ious, np.minimum(ious, edges))


def _boundary_rle(rle: Mapping[str, Any]) -> dict[str, Any]:
    """The boundary of one mask, RLE to RLE."""
    height, width = rle["size"]
    x, y, w, h = (int(side) for side in mask_api.toBbox(rle))
    mask = mask_api.decode(rle)
    # Outside its box a mask has nothing to erode.
    mask[y : y + h, x : x + w] = boundary(mask[y : y + h, x : x + w], boundary_width(height, width))
    return dict(mask_api.encode(mask))


def _figures(evaluator: Any, categories: Mapping[int, str], max_detections: int) -> dict[str, Any]:
    """Run an evaluator and read its figures, which its own summary would print for 100 detections only."""
    evaluator.params.maxDets = [max_detections]
    evaluator.evaluate()
    evaluator.accumulate()
    precision = evaluator.eval["precision"][..., 0]  # [IoU, recall, category, area]
    recall = evaluator.eval["recall"][..., 0]  # [IoU, category, area]
    figures: dict[str, Any] = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
    }
    figures |= {f"AP{size}": _mean(precision[..., area]) for area, size in enumerate("sml", start=1)}
    figures |= {f"AR{size}": _mean(recall[..., area]) for area, size in enumerate(("", "s", "m", "l"))}
    figures["per_class"] = {
        categories[category_id]: _mean(precision[:, :, k, 0]) for k, category_id in enumerate(evaluator.params.catIds)
    }
    return figures


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """The mean of what could be measured; pycocotools marks the rest by -1."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None


def _coco(images: list[Any], categories: Any, annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    # Ids from 1: COCOeval takes a match with id 0 for no match.
    rows = [{**row, "id": number} for number, row in enumerate(annotations, start=1)]
    coco.dataset = {"images": images, "categories": categories, "annotations": rows}
    coco.createIndex()
    return coco


def _annotation(row: Mapping[str, Any], images: Mapping[int, Any]) -> dict[str, Any]:
    rle = _rle(row, images, "annotation")
    area = row["area"] if "area" in row else int(mask_api.area(rle))
    box = row["bbox"] if "bbox" in row else mask_api.toBbox(rle).tolist()
    return {**row, "segmentation": rle, "area": area, "bbox": box, "iscrowd": int(row.get("iscrowd", 0))}


def _prediction(row: Mapping[str, Any], images: Mapping[int, Any]) -> dict[str, Any]:
    rle = _rle(row, images, "result")
    box = row["bbox"] if "bbox" in row else mask_api.toBbox(rle).tolist()
    return {**row, "segmentation": rle, "area": int(mask_api.area(rle)), "bbox": box, "iscrowd": 0}


def _rle(row: Mapping[str, Any], images: Mapping[int, Any], what: str) -> dict[str, Any]:
    """The mask of an annotation or a result as compressed RLE, from polygons or either kind of RLE."""
    image = images[row["image_id"]]
    segmentation, size = row.get("segmentation"), [image["height"], image["width"]]
    if isinstance(segmentation, list):
        return dict(mask_api.merge(mask_api.frPyObjects(segmentation, *size)))
    if not isinstance(segmentation, Mapping):
        raise DataError(f"The {what} of image {row['image_id']} has no segmentation; COCO RLE or polygons are taken.")
    if list(segmentation["size"]) != size:
        raise DataError(
            f"The {what} of image {row['image_id']} has a mask of {list(segmentation['size'])} (height, width), "
            f"but the truth has the image as {size}."
        )
    if isinstance(segmentation["counts"], list):
        return dict(mask_api.frPyObjects(segmentation, *size))
    return dict(segmentation)


def _check_known(where: str, ids: set[int], known: Mapping[int, Any], what: str) -> None:
    strangers = sorted(ids - set(known))
    if strangers:
        named = ", ".join(map(str, strangers[:3]))
        raise DataError(f"{where} names {what} {named}, and the truth has no such {what}; it has {_range(known)}.")


def _range(known: Mapping[int, Any]) -> str:
    return f"{len(known)} with ids from {min(known)} to {max(known)}" if known else "none"


def _index(file_names: Mapping[int, str], way: Callable[[str], str]) -> dict[str, list[int]]:
    """The image ids by what `way` makes of their file names."""
    index: dict[str, list[int]] = {}
    for image_id, name in file_names.items():
        index.setdefault(way(name), []).append(image_id)
    return index


def _stem(name: str) -> str:
    return splitext(name)[0]
