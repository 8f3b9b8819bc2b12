"""Training data: reading COCO annotations, augmentation that can be repeated, and an order that can be resumed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from pycocotools import mask as mask_api

from patchdct import data, scenes
from patchdct.errors import DataError
from tests.patchdct import small

SQUARE = [10, 10, 31, 10, 31, 31, 10, 31]


def coco(annotations: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """A COCO json of two images of 96 x 64 pixels, with a square on the second."""
    square = {"id": 1, "image_id": 9, "category_id": 5, "bbox": [10, 10, 21, 21], "segmentation": [SQUARE]}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 96} for i in (4, 9)],
        "annotations": [square] if annotations is None else [{**square, **a} for a in annotations],
        "categories": [{"id": 7, "name": "b"}, {"id": 5, "name": "a"}],
        **changes,
    }


@pytest.fixture
def folder(tmp_path):
    """Two images of 96 x 64 pixels."""
    for name in ("4.png", "9.png"):
        cv2.imwrite(str(tmp_path / name), np.random.randint(0, 255, (64, 96, 3), np.uint8))
    return tmp_path


def write(folder: Path, content: Any) -> Path:
    path = folder / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(folder: Path, content: Any) -> data.Truth:
    return data.read_coco(write(folder, content), folder)


def samples(folder: Path, content: Any, *overrides: object, seed: int = 1) -> data.TrainingSet:
    cfg = small.config("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.RANDOM_FLIP", "none", *overrides)
    return data.TrainingSet(read(folder, content), cfg, seed=seed)


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's RLE as a list of counts, down the columns, zeros first."""
    pixels = mask.T.ravel().tolist()
    groups = [(value, len(list(run))) for value, run in itertools.groupby(pixels)]
    return {"size": list(mask.shape), "counts": [0] * groups[0][0] + [length for _, length in groups]}


def test_read_coco(folder):
    """Classes follow the ids of the categories, not their order in the file; images without objects train nothing."""
    truth = read(folder, coco())
    assert truth.categories == ((5, "a"), (7, "b"))
    [record] = truth.records
    assert record["file_name"] == str(folder / "9.png")
    assert (record["image_id"], record["height"], record["width"]) == (9, 64, 96)
    [annotation] = record["annotations"]
    assert annotation["category_id"] == 0
    assert annotation["bbox"] == [10, 10, 21, 21]
    assert annotation["bbox_mode"] == BoxMode.XYWH_ABS
    assert annotation["segmentation"] == [SQUARE]


def test_objects_that_do_not_train(folder):
    """Crowds have no instance masks; polygons of two points, or none at all, are no masks."""
    line = [1.0, 1.0, 5.0, 5.0]
    rows = [{}, {"iscrowd": 1}, {"segmentation": []}, {"segmentation": [line]}, {"segmentation": [line, SQUARE]}]
    [record] = read(folder, coco(rows)).records
    assert [a["segmentation"] for a in record["annotations"]] == [[SQUARE], [SQUARE]]
    with pytest.raises(DataError, match=r"annotations\.json has no annotated objects; training needs at least one"):
        read(folder, coco([{"iscrowd": 1}]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"annotations\.json is no COCO json with images, annotations and categories \(JSONDecodeError"),
        ([1], r"annotations\.json is no COCO json .* \(TypeError"),
        ({"images": []}, r"annotations\.json is no COCO json .* \(KeyError\('categories'\)"),
        (coco([{"category_id": 6}]), r"annotations\.json: annotations\[0\] has the unknown category_id 6"),
        (coco([{}, {"image_id": 2}]), r"annotations\.json: annotations\[1\] has the unknown image_id 2"),
        (coco([{"bbox": None}]), r"annotations\.json is no COCO json"),
        (coco([{"segmentation": [["a"] * 6]}]), r"annotations\.json is no COCO json .*could not convert string"),
        (coco([{"segmentation": {"counts": [5]}}]), r"annotations\.json is no COCO json .* \(KeyError\('size'\)"),
        (
            coco(images=[{"id": 9, "file_name": "9.png"}]),
            r"annotations\.json is no COCO json .* \(KeyError\('height'\)",
        ),
        (coco([]), r"annotations\.json has no annotated objects"),
    ],
)
def test_bad_annotations(folder, content, message):
    """What is wrong with a file of annotations is one sentence that names it, before the training starts."""
    with pytest.raises(DataError, match=message) as caught:
        read(folder, content)
    assert "\n" not in str(caught.value)


def test_annotations_that_are_not_there(folder):
    """A path that is missing, or a folder."""
    for path in (folder / "none.json", folder):
        with pytest.raises(DataError, match=r"cannot be read \(.*\); give the path of a COCO json"):
            data.read_coco(path, folder)


def test_bad_images(folder):
    """An image that is missing, damaged, or of another size than its annotations, is named."""
    (folder / "4.png").write_bytes(b"no image")
    rows = [{"image_id": 4}, {"image_id": 9}]
    content = coco(rows)
    content["images"][1]["width"] = 90
    content["images"].append({"id": 1, "file_name": "none.png", "height": 64, "width": 96})
    content["annotations"].append({**content["annotations"][0], "image_id": 1})
    dataset = samples(folder, content)
    for index, message in enumerate(
        (
            r"image .*4\.png cannot be read \(",
            r"image .*9\.png is 96x64 pixels, but its annotations are for 90x64",
            r"image .*none\.png cannot be read \(",
        )
    ):
        with pytest.raises(DataError, match=message):
            dataset[0, index]


def test_forms_of_segmentation(folder):
    """Polygons and both forms of RLE are the same object, whichever mask format is configured."""
    mask = np.zeros((64, 96), np.uint8)
    mask[10:31, 10:31] = 1
    compressed = mask_api.encode(np.asfortranarray(mask))
    compressed["counts"] = compressed["counts"].decode()
    forms = [[SQUARE], uncompressed(mask), compressed]
    for mask_format in ("bitmask", "polygon"):
        for form in forms:
            dataset = samples(folder, coco([{"segmentation": form}]), "INPUT.MASK_FORMAT", mask_format)
            found = dataset[0, 0]["instances"]
            kept = isinstance(form, list) and mask_format == "polygon"
            assert isinstance(found.gt_masks, PolygonMasks if kept else BitMasks)
            crop = found.gt_masks.crop_and_resize(torch.tensor([[0.0, 0.0, 64.0, 64.0]]), 64)[0].numpy()
            assert (crop != mask[:, :64]).sum() <= 45  # a row and a column of pixels, by the rule of the form


def test_sample(folder):
    """Image, boxes, masks and classes are resized and flipped together, and sizes are those of the file."""
    rows = [{}, {"category_id": 7, "bbox": [50, 5, 40, 50], "segmentation": [[50, 5, 90, 5, 90, 55, 50, 55]]}]
    forced = ("INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MAX_SIZE_TRAIN", 200)
    plain = samples(folder, coco(rows), *forced)[0, 0]
    assert set(plain) == {"image", "instances", "height", "width"}
    assert plain["image"].shape == (3, 96, 144)
    assert plain["image"].dtype == torch.uint8
    assert (plain["height"], plain["width"]) == (64, 96)
    assert plain["instances"].gt_classes.tolist() == [0, 1]
    boxes = torch.tensor([[15.0, 15.0, 46.5, 46.5], [75.0, 7.5, 135.0, 82.5]])
    torch.testing.assert_close(plain["instances"].gt_boxes.tensor, boxes)

    dataset = samples(folder, coco(rows), *forced, "INPUT.RANDOM_FLIP", "horizontal")
    flipped = next(s for s in (dataset[epoch, 0] for epoch in range(20)) if not torch.equal(s["image"], plain["image"]))
    torch.testing.assert_close(flipped["image"], plain["image"].flip(2))
    masks, mirrored = flipped["instances"].gt_masks.tensor, plain["instances"].gt_masks.tensor.flip(2)
    assert (masks != mirrored).float().mean() < 0.005  # drawing polygons rounds left and right differently
    expected = torch.stack([144 - boxes[:, 2], boxes[:, 1], 144 - boxes[:, 0], boxes[:, 3]], 1)
    torch.testing.assert_close(flipped["instances"].gt_boxes.tensor, expected)


def test_whole_numbers_keep_their_place(folder):
    """Polygons of whole numbers, resized by 1.5, must not be rounded down."""
    whole = samples(folder, coco(), "INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MASK_FORMAT", "polygon")
    [[polygon]] = whole[0, 0]["instances"].gt_masks.polygons
    np.testing.assert_allclose(polygon, 1.5 * np.array(SQUARE))


def test_augmentation_is_repeatable(folder):
    """A sample is a function of (seed, epoch, index), in any order of reading: a resumed run must see the same."""
    options = ("INPUT.MIN_SIZE_TRAIN", (48, 64, 80, 96), "INPUT.RANDOM_FLIP", "horizontal")
    content = coco([{"image_id": 4}, {"image_id": 9}])
    dataset = samples(folder, content, *options)
    places = [(epoch, index) for epoch in range(6) for index in range(2)]
    first = {place: dataset[place]["image"] for place in places}
    np.random.seed(5)
    for place in reversed(places):
        assert torch.equal(dataset[place]["image"], first[place])
    sizes = {tuple(first[epoch, 0].shape) for epoch in range(6)}
    assert len(sizes) > 1
    other = samples(folder, content, *options, seed=2)
    assert any(other[place]["image"].shape != first[place].shape for place in places)


def test_order_of_samples():
    """Each epoch has every sample once, in an order of its own; any position can be taken up again."""
    order = list(itertools.islice(data.EndlessSampler(5, seed=3), 23))
    for epoch in range(4):
        part = order[5 * epoch : 5 * epoch + 5]
        assert sorted(part) == [(epoch, index) for index in range(5)]
    assert len({tuple(index for _, index in order[5 * e : 5 * e + 5]) for e in range(4)}) > 1
    for start in (0, 1, 4, 5, 13):
        assert list(itertools.islice(data.EndlessSampler(5, seed=3, start=start), 23 - start)) == order[start:]
    assert list(itertools.islice(data.EndlessSampler(5, seed=4), 23)) != order


def test_loader_resumes(tmp_path):
    """The batches of a run that goes on are those of one that was never stopped, with and without worker processes."""
    path = scenes.write_scenes(tmp_path, images=3, seed=2, size=64)
    truth = data.read_coco(path, tmp_path / "images")
    dataset = data.TrainingSet(truth, small.config(), seed=1)
    whole = list(itertools.islice(data.loader(dataset, batch_size=2, seed=1), 5))
    assert [len(batch) for batch in whole] == [2] * 5
    for workers in (0, 1):
        rest = itertools.islice(data.loader(dataset, batch_size=2, seed=1, start=6, workers=workers), 2)
        for batch, expected in zip(rest, whole[3:], strict=True):
            for one, other in zip(batch, expected, strict=True):
                assert torch.equal(one["image"], other["image"])
                assert torch.equal(one["instances"].gt_masks.tensor, other["instances"].gt_masks.tensor)


@pytest.mark.parametrize("eval_gt", [False, True])
def test_mapper_with_ground_truth(folder, eval_gt):
    """Under EVAL_GT the test loader keeps the ground truth, resized as the image, without flips and without crowds."""
    cfg = small.config("MODEL.ROI_MASK_HEAD.EVAL_GT", eval_gt, "INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 200)
    [record] = read(folder, coco()).records
    record["annotations"].append({**record["annotations"][0], "iscrowd": 1})
    sample = data.DatasetMapper_with_GT(cfg, is_train=False)(record)
    assert sample["image"].shape == (3, 96, 144)
    assert "annotations" not in sample
    assert ("instances" in sample) == eval_gt
    if eval_gt:
        assert sample["instances"].gt_boxes.tensor.tolist() == [[15, 15, 46.5, 46.5]]
        assert sample["instances"].gt_masks.tensor.shape == (1, 96, 144)
    assert "instances" in data.DatasetMapper_with_GT(cfg)(record)
