"""A COCO truth and COCO results, checked and brought to one form: what every metric reads."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pycocotools import mask as mask_api

from patchdct.errors import DataError

#: An annotation or a result, in plain Python values: id (counted from 1), image_id, category_id, segmentation
#: (compressed RLE), area, bbox (x, y, w, h), iscrowd (0 or 1), and, of a result, score.
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is measured.

    images: id, height and width, by ascending id. categories: the truth's names by id, ascending. annotations and
    predictions: those of these images and categories, in the order given. ignored_results: how many results are of
    other categories.
    """

    images: list[dict[str, int]]
    categories: dict[int, str]
    annotations: list[Row]
    predictions: list[Row]
    ignored_results: int


def read_rows(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], image_ids: Collection[int] | None = None
) -> Rows:
    """Check a truth and results against each other. Neither argument is changed.

    Args:
        truth: A COCO data set: images, annotations (polygons or RLE), categories.
        results: COCO results: image_id, category_id, score, segmentation (RLE at image size) and, if at hand, bbox.
        image_ids: The images to measure on; all of the truth's where None.

    Raises:
        DataError: An unknown image, only unknown categories, a mask that has not its image's size, a box that is not
            four finite numbers, or a score that is not finite.
    """
    images = {image["id"]: image for image in truth["images"]}
    chosen = set(images) if image_ids is None else set(image_ids)
    _check_known("image_ids", chosen, images, "image")
    _check_known("results", {result["image_id"] for result in results}, images, "image")
    categories = {category["id"]: str(category["name"]) for category in truth["categories"]}
    known = [result for result in results if result["category_id"] in categories]
    if results and not known:
        _check_known("results", {result["category_id"] for result in results}, categories, "category")

    wanted = [row for row in truth["annotations"] if row["image_id"] in chosen and row["category_id"] in categories]
    found = [row for row in known if row["image_id"] in chosen]
    return Rows(
        images=[{"id": i, "height": images[i]["height"], "width": images[i]["width"]} for i in sorted(chosen)],
        categories=dict(sorted(categories.items())),
        # Ids from 1: COCOeval takes a match with id 0 for no match.
        annotations=[_annotation(row, number, images) for number, row in enumerate(wanted, start=1)],
        predictions=[_prediction(row, number, images) for number, row in enumerate(found, start=1)],
        ignored_results=len(results) - len(known),
    )


def _annotation(row: Mapping[str, Any], number: int, images: Mapping[int, Any]) -> Row:
    form = _form(row, number, images, "annotation")
    if row.get("area") is not None:
        form["area"] = float(row["area"])
    return form | {"iscrowd": int(row.get("iscrowd", 0))}


def _prediction(row: Mapping[str, Any], number: int, images: Mapping[int, Any]) -> Row:
    score = float(row["score"])
    if not math.isfinite(score):
        raise DataError(f"A result of image {row['image_id']} has the score {score}; it must be a finite number.")
    return _form(row, number, images, "result") | {"score": score}


def _form(row: Mapping[str, Any], number: int, images: Mapping[int, Any], what: str) -> Row:
    rle = _rle(row, images[row["image_id"]], what)
    box = row.get("bbox")
    if box is None:
        box = mask_api.toBbox(rle)
    elif len(box) != 4 or not all(math.isfinite(side) for side in box):
        raise DataError(f"The {what} of image {row['image_id']} has the bbox {box}; it must be 4 numbers (x, y, w, h).")
    return {
        "id": number,
        "image_id": row["image_id"],
        "category_id": row["category_id"],
        "segmentation": rle,
        "area": float(mask_api.area(rle)),
        "bbox": [float(side) for side in box],
        "iscrowd": 0,
    }


def _rle(row: Mapping[str, Any], image: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The mask of an annotation or a result as compressed RLE, from polygons or either kind of RLE."""
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
    return {"size": size, "counts": segmentation["counts"]}


def _check_known(where: str, ids: set[int], known: Mapping[int, Any], what: str) -> None:
    strangers = sorted(ids - set(known))
    if strangers:
        named = ", ".join(map(str, strangers[:3]))
        raise DataError(f"{where} names {what} {named}, and the truth has no such {what}; it has {_range(known)}.")


def _range(known: Mapping[int, Any]) -> str:
    return f"{len(known)} with ids from {min(known)} to {max(known)}" if known else "none"
