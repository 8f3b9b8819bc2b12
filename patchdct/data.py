"""Training data: COCO annotations -> model inputs, with detectron2's multi-scale and flip augmentation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T  # noqa: N812 - detectron2's own convention
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_api
from torch.utils.data import Dataset, Sampler

from patchdct.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """A COCO data set: image records with annotations in detectron2's form, and the categories (id, name) in order."""

    records: tuple[dict[str, Any], ...]
    categories: tuple[tuple[int, str], ...]


def read_coco(annotations: Path, images: Path) -> Truth:
    """Read a COCO json. Class i of the model is the i-th category by id; crowds and images without objects stay out.

    Raises:
        DataError: no such file, no COCO json, an annotation of an unknown image or category, no objects at all.
    """
    try:
        coco = json.loads(annotations.read_bytes())
        names = tuple(sorted((int(c["id"]), str(c["name"])) for c in coco["categories"]))
        classes = {category: i for i, (category, _) in enumerate(names)}
        records = {
            i["id"]: {
                "file_name": str(images / i["file_name"]),
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
                    raise DataError(f"{annotations}: annotations[{i}] has the unknown {key} {annotation[key]!r}")
            segmentation = None if annotation.get("iscrowd") else _segmentation(annotation.get("segmentation"))
            if segmentation:
                records[annotation["image_id"]]["annotations"].append(
                    {
                        "bbox": [float(v) for v in annotation["bbox"]],
                        "bbox_mode": BoxMode.XYWH_ABS,
                        "category_id": classes[annotation["category_id"]],
                        "segmentation": segmentation,
                    }
                )
    except OSError as error:
        raise DataError(f"{annotations} cannot be read ({error.strerror}); give the path of a COCO json") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{annotations} is no COCO json with images, annotations and categories ({error!r})") from error
    annotated = tuple(record for record in records.values() if record["annotations"])
    if not annotated:
        raise DataError(f"{annotations} has no annotated objects; training needs at least one")
    return Truth(records=annotated, categories=names)


def _segmentation(value: Any) -> Any:
    """COCO's three forms (polygons, compressed and uncompressed RLE) to the two that detectron2 takes; nothing to None.

    Polygons of less than three points are left out. Coordinates become floats, as detectron2 would round whole numbers
    down to whole numbers when it resizes.
    """
    if isinstance(value, dict):
        return mask_api.frPyObjects(value, *value["size"]) if isinstance(value["counts"], list) else value
    polygons = [polygon for polygon in value or () if len(polygon) >= 6 and len(polygon) % 2 == 0]
    return [[float(v) for v in polygon] for polygon in polygons] or None


class TrainingSet(Dataset[dict[str, Any]]):
    """Maps `(epoch, index)` to a model input, augmented reproducibly from (seed, epoch, index)."""

    def __init__(self, truth: Truth, cfg: CfgNode, *, seed: int) -> None:
        """`cfg.INPUT` gives sizes, flip, colour order and mask format."""
        self._truth, self._seed = truth, seed
        self._format, self._mask_format = cfg.INPUT.FORMAT, cfg.INPUT.MASK_FORMAT
        self._augmentations = detection_utils.build_augmentation(cfg, is_train=True)

    def __len__(self) -> int:
        return len(self._truth.records)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        """The input of (epoch, index).

        Raises:
            DataError: the image cannot be read, or has another size than its annotations say.
        """
        epoch, index = place
        record = self._truth.records[index]
        image = _read_image(record, self._format)
        seed = np.random.SeedSequence((self._seed, epoch, index)).generate_state(1)[0]
        np.random.seed(seed)  # detectron2 draws from it
        aug_input = T.AugInput(image)
        transforms = T.AugmentationList(self._augmentations)(aug_input)
        size = aug_input.image.shape[:2]
        objects = [
            detection_utils.transform_instance_annotations(dict(a), transforms, size) for a in record["annotations"]
        ]
        polygons = all(isinstance(o["segmentation"], list) for o in objects)  # RLE cannot become any
        mask_format = self._mask_format if polygons else "bitmask"
        instances = detection_utils.annotations_to_instances(objects, size, mask_format=mask_format)
        instances = detection_utils.filter_empty_instances(instances)
        pixels = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        return {"image": pixels, "instances": instances, "height": record["height"], "width": record["width"]}


def _read_image(record: dict[str, Any], color_format: str) -> npt.NDArray[np.uint8]:
    name = record["file_name"]
    try:
        image: npt.NDArray[np.uint8] = detection_utils.read_image(name, format=color_format)
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"image {name} cannot be read ({error})") from error
    height, width = image.shape[:2]
    if (height, width) != (record["height"], record["width"]):
        said = f"{record['width']}x{record['height']}"
        raise DataError(f"image {name} is {width}x{height} pixels, but its annotations are for {said}")
    return image


class EndlessSampler(Sampler[tuple[int, int]]):
    """Epoch after epoch of (epoch, index), each shuffled by (seed, epoch), so that any position can be taken up."""

    def __init__(self, size: int, *, seed: int, start: int = 0) -> None:
        """`start` is how many samples were drawn before."""
        self._size, self._seed, self._start = size, seed, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, offset = divmod(self._start, self._size)
        while True:
            order = np.random.default_rng((self._seed, epoch)).permutation(self._size)
            for index in order[offset:]:
                yield epoch, int(index)
            epoch, offset = epoch + 1, 0


def loader(dataset: TrainingSet, *, batch_size: int, seed: int, start: int = 0, workers: int = 0) -> Any:
    """An endless iterator of lists of `batch_size` model inputs; `start` as for `EndlessSampler`."""
    return torch.utils.data.DataLoader(
        dataset,
        sampler=EndlessSampler(len(dataset), seed=seed, start=start),
        batch_size=batch_size,
        collate_fn=list,
        num_workers=workers,
        drop_last=True,
    )


class DatasetMapper_with_GT(DatasetMapper):  # noqa: N801 - the name that scripts for PatchDCT use
    """detectron2's `DatasetMapper` that under EVAL_GT keeps the ground truth at inference, resized with the image."""

    def __init__(self, cfg: CfgNode, is_train: bool = True) -> None:
        super().__init__(cfg, is_train)
        # Augmentations are chosen; all that this decides from here on is whether annotations stay.
        self.is_train = is_train or cfg.MODEL.ROI_MASK_HEAD.EVAL_GT
