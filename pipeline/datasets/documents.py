"""COCO jsons: read, and brought to the form of `dataset.Dataset.coco`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from pycocotools import mask as mask_api

from pipeline.errors import NotFoundError, UserError
from pipeline.store import Store, redact

log = logging.getLogger("pipeline.datasets")


def parsed(uri: str, *, store: Store, key: str, what: str) -> Any:
    """The content of a JSON that a key of the config names.

    Raises:
        UserError: it is not there, or no JSON; the sentence says to give `what`.
    """
    try:
        return json.loads(store.get(uri))
    except NotFoundError as error:
        raise UserError(f"{key}: {str(error).rstrip('.')}; give {what}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{key}: {redact(uri)} is no JSON ({error}); give {what}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: {redact(uri)} is no JSON; give {what}") from error


def normal(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A checked document as `dataset.Dataset.coco` says: nothing missing, nothing beside it.

    Annotations are numbered anew, as some tools leave their ids out or let them begin at 0, which COCO's evaluation
    takes for "no match". Polygons of less than three points are left out, and annotations to which no mask remains.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    annotations: list[dict[str, Any]] = []
    for annotation in document["annotations"]:
        segmentation = _segmentation(annotation.get("segmentation"), *sizes[annotation["image_id"]])
        if segmentation is None:
            continue
        box, area = annotation.get("bbox"), annotation.get("area")
        if box is None or area is None:
            rle = _rle(segmentation, *sizes[annotation["image_id"]])
            box = mask_api.toBbox(rle).tolist() if box is None else box
            area = int(mask_api.area(rle)) if area is None else area
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": box,
                "area": area,
                "iscrowd": int(annotation.get("iscrowd", 0)),
                "segmentation": segmentation,
            }
        )
    if left_out := len(document["annotations"]) - len(annotations):
        log.warning(
            "%s: %d of %d annotations have no mask and are left out", where, left_out, left_out + len(annotations)
        )
    return {
        "images": [{key: image[key] for key in ("id", "file_name", "height", "width")} for image in document["images"]],
        "annotations": annotations,
        "categories": [{"id": category["id"], "name": category["name"]} for category in document["categories"]],
    }


def _segmentation(value: Any, height: int, width: int) -> Any:
    """Polygons of three points or more, or compressed RLE; None where nothing of that is there."""
    if isinstance(value, Mapping):
        rle = mask_api.frPyObjects(value, height, width) if isinstance(value["counts"], list) else value
        counts = rle["counts"]
        return {"size": [height, width], "counts": counts if isinstance(counts, str) else counts.decode()}
    return [polygon for polygon in value or () if len(polygon) >= 6 and len(polygon) % 2 == 0] or None


def _rle(segmentation: Any, height: int, width: int) -> Any:
    if isinstance(segmentation, list):
        return mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    return segmentation
