"""Truths and predictions to measure, and pycocotools' own way to measure them."""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from patchdct.evaluate.engines import ENGINES
from patchdct.evaluate.rows import Rows
from patchdct.evaluate.tally import Curves, Kind

COCO_MINI = Path(__file__).parents[3] / "shared/data/coco-mini/annotations/instances_val.json"
KERNEL = np.ones((3, 3), np.uint8)


def encode(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def block(side: int, top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """A rectangle in an image of side x side pixels."""
    mask = np.zeros((side, side), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return encode(mask)


def perfect(truth: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {key: row[key] for key in ("image_id", "category_id", "segmentation", "bbox")} | {"score": 0.9}
        for row in truth["annotations"]
    ]


def perturbed(truth: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """Predictions that are moved, thickened, thinned, confused, doubled or missing, with scores of their own."""
    rng = np.random.default_rng(seed)
    coco = quiet_coco(truth)
    category_ids = [row["id"] for row in truth["categories"]]
    results = []
    for row in coco.dataset["annotations"]:
        if row.get("iscrowd"):
            continue
        for _ in range(rng.integers(0, 3)):
            mask = np.roll(coco.annToMask(row), rng.integers(-1, 2, 2), axis=(0, 1))
            change = cv2.dilate if rng.random() < 0.5 else cv2.erode
            rle = encode(change(mask, KERNEL, iterations=int(rng.integers(0, 3))))
            category_id = row["category_id"] if rng.random() < 0.9 else int(rng.choice(category_ids))
            box = (np.array(mask_api.toBbox(rle)) + rng.uniform(-2, 2, 4)).tolist()
            result = {"image_id": row["image_id"], "category_id": category_id, "segmentation": rle, "bbox": box}
            results.append(result | {"score": float(rng.random())})
    return results


def nasty(
    seed: int, *, images: int = 6, objects: int = 6, found: int = 14, categories: int = 4, side: int = 112
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A random truth and results, with all that evaluations stumble over.

    Crowds, tied and all but tied scores, areas at the limits of the sizes, objects that overlap, empty masks, images
    and categories without objects, results or both, ids without order, boxes that do not fit their masks.
    """
    rng = np.random.default_rng(seed)
    image_ids = rng.permutation(50)[:images] * 7 + 2**40
    category_ids = (rng.permutation(20)[:categories] * 3 + 1).tolist()
    truth: dict[str, Any] = {
        "images": [{"id": int(i), "file_name": f"{i}.jpg", "height": side, "width": side} for i in image_ids],
        "categories": [{"id": category_id, "name": f"class {category_id}"} for category_id in category_ids],
        "annotations": [],
    }

    def shape() -> np.ndarray:
        mask = np.zeros((side, side), np.uint8)
        size = int(rng.choice([1, 2, 5, 16, 32, 33, 96, 97]))
        y, x = rng.integers(0, max(side - size, 1), 2)
        if rng.random() < 0.5:
            mask[y : y + size, x : x + size] = 1
        else:
            cv2.ellipse(mask, (int(x), int(y)), (size, int(rng.integers(1, size + 1))), size * 7, 0, 360, 1, -1)
        return mask

    results = []
    for image_id in rng.permutation(image_ids).tolist():
        drawn = []
        for _ in range(0 if rng.random() < 0.2 else rng.integers(objects + 1)):
            mask, category_id = shape(), int(rng.choice(category_ids[1:] or category_ids))
            drawn.append((mask, category_id))
            row = {"image_id": image_id, "category_id": category_id, "segmentation": encode(mask)}
            row |= {"id": len(truth["annotations"]), "iscrowd": int(rng.random() < 0.25)}
            if rng.random() < 0.5:
                row["area"] = float(rng.choice([0, 1023.9999, 1024, 1024.0001, 9216, 9216.0001, 1e10, 2e10]))
            truth["annotations"].append(row)
        for _ in range(0 if rng.random() < 0.2 else rng.integers(found + 1)):
            if drawn and rng.random() < 0.7:
                mask, category_id = drawn[rng.integers(len(drawn))]
                mask = np.roll(mask, rng.integers(-1, 2, 2), axis=(0, 1))
            else:
                mask, category_id = shape() * (rng.random() < 0.9), int(rng.choice(category_ids[:-1] or category_ids))
            score = rng.choice([0.25, 0.5, 0.5 + 1e-12, rng.random()])
            row = {"image_id": image_id, "category_id": category_id, "segmentation": encode(mask)}
            row |= {"score": float(score)}
            if rng.random() < 0.5:
                row["bbox"] = (mask_api.toBbox(row["segmentation"]) + rng.choice([0, 0.5, 2])).tolist()
            results.append(row)
    truth["annotations"] = [truth["annotations"][i] for i in rng.permutation(len(truth["annotations"]))]
    return truth, [results[i] for i in rng.permutation(len(results))]


def curves_of(engine: str, rows: Rows, kind: Kind, max_detections: int) -> Curves:
    """What an engine makes of rows that come all at once."""
    tally = ENGINES[engine](rows.categories, [kind], max_detections)
    tally.add(rows)
    return tally.curves(kind)


def quiet_coco(truth: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def accumulated(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    kind: str,
    max_detections: int = 100,
    evaluation: type[COCOeval] = COCOeval,
) -> COCOeval:
    """What pycocotools makes of a truth and results."""

    def completed(number: int, row: dict[str, Any], of_truth: bool) -> dict[str, Any]:
        box = row.get("bbox") or mask_api.toBbox(row["segmentation"]).tolist()
        if of_truth and "area" in row:
            area = row["area"]
        else:
            area = box[2] * box[3] if kind == "bbox" and not of_truth else float(mask_api.area(row["segmentation"]))
        return {"iscrowd": 0, **row, "id": number, "bbox": box, "area": area}

    whole, found = (
        quiet_coco({**truth, "annotations": [completed(i, row, of_truth) for i, row in enumerate(rows, start=1)]})
        for rows, of_truth in ((truth["annotations"], True), (results, False))
    )
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = evaluation(whole, found, kind)
        evaluator.params.maxDets = [max_detections]
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator
