"""Which objects of a COCO data set are trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from pycocotools import mask as mask_api

from patchdct.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """A COCO data set: image records with annotations in detectron2's form, and the categories (id, name) in order."""

    records: tuple[dict[str, Any], ...]
    categories: tuple[tuple[int, str], ...]


def truth_of(coco: Mapping[str, Any], uris: Mapping[int, str], *, name: str) -> Truth:
    """The objects to train on. Class i of the model is the i-th category by id.

    Crowds are no objects; neither are polygons of less than three points. Images without objects stay out.

    Args:
        coco: images, annotations (polygons or RLE) and categories as in a COCO json; it is not changed.
        uris: where each image is, by its id; images that are not among them stay out.
        name: of the data set, for messages.

    Raises:
        DataError: not in COCO form, an annotation of an unknown image or category or of another size, no objects.
    """
    try:
        names = tuple(sorted((int(c["id"]), str(c["name"])) for c in coco["categories"]))
        classes = {category: i for i, (category, _) in enumerate(names)}
        records = {
            i["id"]: {
                "file_name": uris.get(i["id"]),
                "image_id": i["id"],
                "height": int(i["height"]),
                "width": int(i["width"]),
                "annotations": [],
            }
            for i in coco["images"]
        }
        for i, annotation in enumerate(coco["annotations"]):
            for key, known in (("image_id", records), ("category_id", classes)):
                if annotation[key] not in known:
                    raise DataError(f"{name}: annotations[{i}] has the unknown {key} {annotation[key]!r}")
            record = records[annotation["image_id"]]
            size = [record["height"], record["width"]]
            value = None if annotation.get("iscrowd") else annotation.get("segmentation")
            if isinstance(value, Mapping) and list(value["size"]) != size:
                raise DataError(
                    f"{name}: annotations[{i}] has a mask of {list(value['size'])}, and its image is {size}"
                )
            if segmentation := _segmentation(value):
                record["annotations"].append(
                    {
                        "bbox": [float(v) for v in annotation["bbox"]],
                        "bbox_mode": BoxMode.XYWH_ABS,
                        "category_id": classes[annotation["category_id"]],
                        "segmentation": segmentation,
                    }
                )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} is no COCO json with images, annotations and categories ({error!r})") from error
    annotated = tuple(one for one in records.values() if one["annotations"] and one["file_name"] is not None)
    if not annotated:
        raise DataError(f"{name} has no annotated objects; training needs at least one")
    return Truth(records=annotated, categories=names)


def read_coco(annotations: Path, images: Path) -> Truth:
    """`truth_of` a COCO json on this machine, whose file names start in the folder `images`.

    Raises:
        DataError: it cannot be read; and see `truth_of`.
    """
    try:
        coco = json.loads(annotations.read_bytes())
        uris = {image["id"]: str(images / image["file_name"]) for image in coco["images"]}
    except OSError as error:
        raise DataError(f"{annotations} cannot be read ({error.strerror}); give the path of a COCO json") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{annotations} is no COCO json with images, annotations and categories ({error!r})") from error
    return truth_of(coco, uris, name=str(annotations))


def _segmentation(value: Any) -> Any:
    """COCO's three forms (polygons, compressed and uncompressed RLE) to the two that detectron2 takes; nothing to None.

    Polygons of less than three points are left out. Coordinates become floats, as detectron2 would round whole numbers
    down to whole numbers when it resizes.
    """
    if isinstance(value, Mapping):
        rle = mask_api.frPyObjects(value, *value["size"]) if isinstance(value["counts"], list) else value
        counts = rle["counts"]
        return {"size": list(rle["size"]), "counts": counts if isinstance(counts, str) else counts.decode()}
    polygons = [polygon for polygon in value or () if len(polygon) >= 6 and len(polygon) % 2 == 0]
    return [[float(v) for v in polygon] for polygon in polygons] or None
