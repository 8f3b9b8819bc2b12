"""Cityscapes' folders of label maps and images."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from pipeline import datasets
from pipeline.config import DatasetConfig, TruthConfig
from pipeline.datasets import Dataset, cityscapes
from pipeline.errors import UserError
from pipeline.store import Store, join

ROAD, CAR, RIDER, CARAVAN = 7, 26, 25, 29


def scene(seed: int) -> np.ndarray:
    """Ids of two cars that touch and are each in two parts, a rider at the edge, a group of cars, and a caravan."""
    rng = np.random.default_rng(seed)
    ids = np.full((40, 60), ROAD, np.uint16)
    ids[5:20, 5:25] = 1000 * CAR
    ids[5:20, 15:25] = 1000 * CAR + 1
    ids[30:34, 5:9] = 1000 * CAR
    ids[10:12, :] = ROAD
    ids[25:, 59] = 1000 * RIDER + 12
    ids[0:4, 0:60] = CAR
    ids[36:40, 30:40] = 1000 * CARAVAN
    ids[rng.random(ids.shape) < 0.02] = 0
    return ids


def png(ids: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, "PNG")
    return buffer.getvalue()


def file_of(root: str, city: str, kind: str) -> str:
    folder = "leftImg8bit" if kind == "leftImg8bit" else "gtFine"
    return join(root, folder, "train", city, f"{city}_000000_000019_{kind}.png")


def write(root: str, store: Store, cities: dict[str, np.ndarray]) -> None:
    """A small copy of the layout, with the other files that are there."""
    for city, ids in cities.items():
        store.put(file_of(root, city, "gtFine_instanceIds"), png(ids))
        store.put(file_of(root, city, "gtFine_labelIds"), png(ids))
        store.put(file_of(root, city, "gtFine_color"), b"not read")
        store.put(file_of(root, city, "leftImg8bit"), b"an image")


def read(root: str, store: Store, split: str = "train") -> Dataset:
    config = DatasetConfig(
        name="cityscapes", annotations=join(root, "gtFine", split), images=join(root, "leftImg8bit", "train")
    )
    return datasets.read(config, store, key="data.train")


def test_masks_to_the_pixel(place: str, store: Store) -> None:
    """Objects that touch or are in parts keep their pixels, on disk and on S3; nothing else becomes an object."""
    scenes = {"bonn": scene(1), "aachen": scene(2)}
    write(place, store, scenes)
    found = read(place, store)
    assert [one["file_name"] for one in found.coco["images"]] == [
        f"{city}/{city}_000000_000019_leftImg8bit.png" for city in ("aachen", "bonn")
    ]
    assert {one["id"] for one in found.coco["categories"]} == {24, 25, 26, 27, 28, 31, 32, 33}
    assert found.missing == ()
    for image in found.coco["images"]:
        ids = scenes[image["file_name"].partition("/")[0]]
        assert (image["height"], image["width"]) == ids.shape
        assert store.get(found.uris[image["id"]]) == b"an image"
        drawn = np.full(ids.shape, ROAD, np.uint16)
        objects = [one for one in found.coco["annotations"] if one["image_id"] == image["id"]]
        assert [(one["category_id"], one["iscrowd"]) for one in objects] == [(CAR, 1), (RIDER, 0), (CAR, 0), (CAR, 0)]
        for one, value in zip(objects, (CAR, 1000 * RIDER + 12, 1000 * CAR, 1000 * CAR + 1), strict=True):
            mask = mask_api.decode(one["segmentation"]).astype(bool)
            drawn[mask] = value
            rows, columns = np.nonzero(ids == value)
            assert one["area"] == len(rows)
            corner = [columns.min(), rows.min()]
            assert one["bbox"] == [*corner, columns.max() + 1 - corner[0], rows.max() + 1 - corner[1]]
        others = np.isin(ids, (0, ROAD, 1000 * CARAVAN))
        np.testing.assert_array_equal(drawn, np.where(others, ROAD, ids))
    ids_ = [one["id"] for one in found.coco["annotations"]]
    assert ids_ == list(range(1, 9))


def test_a_map_of_one_object() -> None:
    """The run lengths of a mask that covers the image, or begins in its first pixel, begin with zero."""
    [one] = cityscapes.objects_of(np.full((3, 4), 1000 * CAR, np.int64))
    assert mask_api.decode(one["segmentation"]).all()
    ids = np.zeros((3, 4), np.int64)
    ids[0, 0] = ids[2, 3] = 1000 * CAR
    [one] = cityscapes.objects_of(ids)
    np.testing.assert_array_equal(mask_api.decode(one["segmentation"]), ids > 0)


def test_maps_of_8_bits(tmp_path: Path, store: Store) -> None:
    """A map without instances fits into 8 bits, which some tools then write."""
    write(str(tmp_path), store, {"bonn": np.full((8, 8), CAR, np.uint8)})
    [one] = read(str(tmp_path), store).coco["annotations"]
    assert (one["iscrowd"], one["area"]) == (1, 64)


def test_images_that_are_missing(tmp_path: Path, store: Store) -> None:
    """The rest of a split that was downloaded in part can be used."""
    write(str(tmp_path), store, {"bonn": scene(1), "aachen": scene(2)})
    Path(file_of(str(tmp_path), "aachen", "leftImg8bit")).unlink()
    found = read(str(tmp_path), store)
    assert found.missing == ("aachen/aachen_000000_000019_leftImg8bit.png",)
    assert [one["id"] for one in found.coco["images"]] == list(found.uris) == [2]
    assert {one["image_id"] for one in found.coco["annotations"]} == {2}


def test_a_folder_that_is_no_split(tmp_path: Path, store: Store) -> None:
    """A wrong folder, or the json of another form, is not a data set without objects."""
    write(str(tmp_path), store, {"bonn": scene(1)})
    with pytest.raises(UserError) as caught:
        read(str(tmp_path), store, "val")
    assert str(caught.value) == (
        f"data.train.annotations: {tmp_path}/gtFine/val holds no *_gtFine_instanceIds.png; give a split folder of "
        "gtFine, such as gtFine/train"
    )
    write(str(tmp_path), store, {"bonn": np.full((8, 8), ROAD, np.uint16)})
    truth = TruthConfig(name="cityscapes", annotations=f"{tmp_path}/gtFine/train")
    with pytest.raises(UserError, match="has no annotations, so there is nothing to measure against"):
        datasets.read(truth, store, key="truth")


def _huge() -> bytes:
    """The header of a PNG of 100,000 x 100,000 pixels, and little more."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 16, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0" * 100


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is no PNG"),
        (b"\xff\xd8\xff and so on", "is no PNG"),
        (_huge(), "has 100000 x 100000 pixels; at most 100000000 are taken"),
        (png(scene(1))[:-80], "cannot be decoded: "),
        (png(np.zeros((8, 8, 3), np.uint8)), "is no map of ids, which is a PNG of 16 bits of grey, but one of RGB"),
    ],
)
def test_maps_that_cannot_be_read(tmp_path: Path, store: Store, data: bytes, sentence: str) -> None:
    """A damaged map is named; left out, its objects would be learned as background."""
    write(str(tmp_path), store, {"bonn": scene(1)})
    path = file_of(str(tmp_path), "bonn", "gtFine_instanceIds")
    Path(path).write_bytes(data)
    with pytest.raises(UserError) as caught:
        read(str(tmp_path), store)
    assert str(caught.value).startswith(f"data.train.annotations: {tmp_path}/gtFine/train: {path} {sentence}")
