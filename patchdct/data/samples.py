"""Images with their objects as model inputs, resized, flipped and cropped as detectron2 does it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from torch.utils.data import Dataset

from patchdct.data.truth import Truth
from patchdct.errors import DataError

#: So many images that cannot be used, one after the other, are no accident.
MOST_SKIPPED = 20


def read_file(path: str) -> npt.NDArray[np.uint8]:
    """The pixels of an image file, uint8 [H, W, 3] RGB.

    Raises:
        DataError: it cannot be read.
    """
    try:
        image: npt.NDArray[np.uint8] = detection_utils.read_image(path, format="RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"image {path} cannot be read ({error})") from error
    return image


class TrainingSet(Dataset[dict[str, Any]]):
    """Maps (epoch, index) to a model input, augmented reproducibly from (seed, epoch, index)."""

    def __init__(
        self,
        truth: Truth,
        cfg: CfgNode,
        *,
        seed: int,
        read: Callable[[str], npt.NDArray[np.uint8]] = read_file,
    ) -> None:
        """Take a truth.

        Args:
            truth: what to train on. It is copied.
            cfg: of whose INPUT the sizes, flip, crop, colour order and mask format count.
            seed: of the augmentation.
            read: gives the pixels at a file_name of the truth, uint8 [H, W, 3] RGB, or raises DataError.

        Raises:
            DataError: INPUT.FORMAT is neither RGB nor BGR.
        """
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise DataError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; accepted are RGB and BGR")
        self._records, self._seed, self._read = _Packed(truth.records), seed, read
        self._bgr, self._mask_format = cfg.INPUT.FORMAT == "BGR", cfg.INPUT.MASK_FORMAT
        self._crops = cfg.INPUT.CROP.ENABLED
        augmentations = detection_utils.build_augmentation(cfg, is_train=True)
        if self._crops:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        self._augment = T.AugmentationList(augmentations)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        """The input of (epoch, index).

        An image that cannot be read, or has another size than its annotations say, is skipped, and another one drawn in
        its place, the same each time.

        Returns:
            image (uint8 [3, H, W]) and instances, as detectron2's models take them; height, width and file_name of the
            file; skipped: (file_name, reason) of the images in whose place this one is.

        Raises:
            DataError: MOST_SKIPPED images in a row cannot be used.
        """
        index = place[1]
        skipped: list[tuple[str, str]] = []
        while len(skipped) < MOST_SKIPPED:
            record = self._records[index]
            try:
                image = self._pixels(record)
            except DataError as error:
                skipped.append((record["file_name"], str(error)))
                index = int(np.random.default_rng((self._seed, *place, len(skipped))).integers(len(self)))
                continue
            with _seeded(self._seed, *place):
                sample = self._augmented(record, image)
            return {**sample, "skipped": tuple(dict.fromkeys(skipped))}
        name, reason = skipped[0]
        raise DataError(f"{MOST_SKIPPED} images in a row cannot be used, the first of them {name}: {reason}")

    def _pixels(self, record: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
        image = self._read(record["file_name"])
        height, width = image.shape[:2]
        if (height, width) != (record["height"], record["width"]):
            said = f"{record['width']}x{record['height']}"
            raise DataError(f"it is {width}x{height} pixels, but its annotations are for {said}")
        return image[:, :, ::-1] if self._bgr else image

    def _augmented(self, record: Mapping[str, Any], image: npt.NDArray[np.uint8]) -> dict[str, Any]:
        augmented = T.AugInput(image)
        transforms = self._augment(augmented)
        size = augmented.image.shape[:2]
        objects = [_moved(annotation, transforms, size) for annotation in record["annotations"]]
        # RLE cannot become polygons, and cropped ones would have to be cut.
        polygons = not self._crops and all(isinstance(one["segmentation"], list) for one in objects)
        mask_format = self._mask_format if polygons else "bitmask"
        instances = detection_utils.annotations_to_instances(objects, size, mask_format=mask_format)
        if self._crops:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return {
            "image": torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1))),
            "instances": detection_utils.filter_empty_instances(instances),
            "height": record["height"],
            "width": record["width"],
            "file_name": record["file_name"],
        }


class _Packed(Sequence[dict[str, Any]]):
    """Records as JSON in one array.

    Processes that are forked share it, whereas the counting of references would soon copy millions of small objects.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        lines = [json.dumps(record).encode() for record in records]
        self._ends = np.cumsum([len(line) for line in lines])
        self._bytes = np.frombuffer(b"".join(lines), np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        start = self._ends[index - 1] if index else 0
        return json.loads(self._bytes[start : self._ends[index]].tobytes())


@contextmanager
def _seeded(*seed: int) -> Iterator[None]:
    """Seed numpy's global random numbers, which detectron2 draws from, and leave them as they were."""
    before = np.random.get_state()
    np.random.seed(np.random.SeedSequence(seed).generate_state(1)[0])
    try:
        yield
    finally:
        np.random.set_state(before)


def _moved(annotation: Mapping[str, Any], transforms: T.TransformList, size: tuple[int, int]) -> dict[str, Any]:
    """An annotation in the augmented image, which is of `size` (height, width).

    As detectron2's `transform_instance_annotations`, but that polygons are not cut at a crop, which takes another
    package: what draws them does that.
    """
    height, width = size
    x, y, w, h = annotation["bbox"]
    box = transforms.apply_box(np.array([[x, y, x + w, y + h]]))[0]
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        moved = [transforms.apply_coords(np.reshape(polygon, (-1, 2))).reshape(-1) for polygon in segmentation]
    else:
        moved = transforms.apply_segmentation(mask_api.decode(segmentation))
    return {
        "bbox": np.clip(box, 0, (width, height, width, height)),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": annotation["category_id"],
        "segmentation": moved,
    }


class DatasetMapper_with_GT(DatasetMapper):  # noqa: N801 - the name that scripts for PatchDCT use
    """detectron2's `DatasetMapper` that under EVAL_GT keeps the ground truth at inference, resized with the image."""

    def __init__(self, cfg: CfgNode, is_train: bool = True) -> None:
        super().__init__(cfg, is_train)
        # Augmentations are chosen; all that this decides from here on is whether annotations stay.
        self.is_train = is_train or cfg.MODEL.ROI_MASK_HEAD.EVAL_GT
