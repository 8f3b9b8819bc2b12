"""Training data: which objects are trained on, augmentation that can be repeated, images that are skipped."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from pycocotools import mask as mask_api

from patchdct import data
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


def samples(folder: Path, content: Any, *overrides: object, seed: int = 1, **options: Any) -> data.TrainingSet:
    cfg = small.config("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.RANDOM_FLIP", "none", *overrides)
    return data.TrainingSet(read(folder, content), cfg, seed=seed, **options)


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


def test_truth_of(folder):
    """A data set from anywhere: images are named by their URI, and those that are not there train nothing."""
    content = coco([{"image_id": 4}, {"image_id": 9}])
    before = copy.deepcopy(content)
    truth = data.truth_of(content, {4: "s3://bucket/4.png", 9: "s3://bucket/9.png"}, name="a run")
    assert [record["file_name"] for record in truth.records] == ["s3://bucket/4.png", "s3://bucket/9.png"]
    assert content == before
    [record] = data.truth_of(content, {9: "9.png"}, name="a run").records
    assert record["image_id"] == 9
    with pytest.raises(DataError, match=r"^a run has no annotated objects; training needs at least one$"):
        data.truth_of(content, {}, name="a run")
    for counts in ([81], "Q2"):
        content = coco([{"segmentation": {"size": [9, 9], "counts": counts}}])
        with pytest.raises(
            DataError, match=r"^it: annotations\[0\] has a mask of \[9, 9\], and its image is \[64, 96\]$"
        ):
            data.truth_of(content, {9: "9.png"}, name="it")


def unusable(folder: Path, names: list[str]) -> Callable[[str], np.ndarray]:
    """Reads images, but for those of these names."""

    def read(uri: str) -> np.ndarray:
        if Path(uri).name in names:
            raise DataError(f"{Path(uri).name} is damaged")
        return data.read_file(uri)

    return read


def test_images_that_cannot_be_used(folder):
    """One that is missing, damaged, or of another size than its annotations must not end a training of days; what takes
    its place is the same each time."""
    (folder / "3.png").write_bytes(b"no image")
    for i in range(10, 15):
        (folder / f"{i}.png").write_bytes((folder / "9.png").read_bytes())
    ids = [1, 3, 4, *range(9, 15)]
    content = coco([{"image_id": i} for i in ids])
    content["images"] = [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 90 if i == 4 else 96} for i in ids]
    dataset = samples(folder, content)
    reasons = {}
    for epoch, index in itertools.product(range(4), range(len(ids))):
        sample, again = dataset[epoch, index], dataset[epoch, index]
        assert (sample["file_name"], sample["skipped"]) == (again["file_name"], again["skipped"])
        assert torch.equal(sample["image"], again["image"])
        assert Path(sample["file_name"]).name not in ("1.png", "3.png", "4.png")
        assert (index > 2) == (sample["skipped"] == ()) == (sample["file_name"] == str(folder / f"{ids[index]}.png"))
        reasons |= {Path(name).name: reason for name, reason in sample["skipped"]}
    assert set(reasons) == {"1.png", "3.png", "4.png"}
    assert reasons["4.png"] == "it is 96x64 pixels, but its annotations are for 90x64"
    for name in ("1.png", "3.png"):
        assert reasons[name].startswith(f"image {folder}/{name} cannot be read (")


def test_what_takes_the_place_of_an_image(folder):
    """It differs from place to place, so that no image is trained on far more often than others."""
    content = coco([{"image_id": i} for i in range(20)])
    content["images"] = [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 96} for i in range(20)]
    for i in range(1, 20):
        (folder / f"{i}.png").write_bytes((folder / "4.png").read_bytes())
    dataset = samples(folder, content, read=unusable(folder, ["0.png"]))
    taken = {dataset[epoch, 0]["file_name"] for epoch in range(30)}
    assert len(taken) > 10
    assert dataset[0, 0]["skipped"] == ((str(folder / "0.png"), "0.png is damaged"),)
    assert dataset[0, 1]["skipped"] == ()
    other = samples(folder, content, seed=2, read=unusable(folder, ["0.png"]))
    assert [dataset[e, 0]["file_name"] for e in range(9)] != [other[e, 0]["file_name"] for e in range(9)]


def test_no_image_can_be_used(folder):
    """A wrong folder, or credentials that ran out, is an error and no endless search."""
    tried = []

    def read(uri: str) -> np.ndarray:
        tried.append(uri)
        raise DataError("the bucket is gone")

    dataset = samples(folder, coco([{"image_id": 4}, {"image_id": 9}]), read=read)
    with pytest.raises(DataError) as caught:
        dataset[0, 1]
    assert str(caught.value) == (
        f"20 images in a row cannot be used, the first of them {folder}/9.png: the bucket is gone"
    )
    assert len(tried) == 20


def test_the_order_of_colours(folder):
    """A model that was trained on BGR must not be fed RGB."""
    rgb = samples(folder, coco(), "INPUT.FORMAT", "RGB")[0, 0]["image"]
    bgr = samples(folder, coco(), "INPUT.FORMAT", "BGR")[0, 0]["image"]
    assert torch.equal(rgb.flip(0), bgr)
    assert not torch.equal(rgb, bgr)
    np.testing.assert_array_equal(bgr.permute(1, 2, 0).numpy(), cv2.imread(str(folder / "9.png")))
    with pytest.raises(DataError, match=r"^INPUT\.FORMAT is 'L'; accepted are RGB and BGR$"):
        samples(folder, coco(), "INPUT.FORMAT", "L")


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
    assert set(plain) == {"image", "instances", "height", "width", "file_name", "skipped"}
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


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_as_detectron2_does_it(folder, mask_format):
    """The same images, boxes and masks as detectron2's own mapper, from the same random numbers."""
    square = np.zeros((64, 96), np.uint8)
    square[5:60, 3:44] = 1
    rows = [{}, {"bbox": [50.5, 5, 50, 50], "segmentation": [[50.5, 5, 99.5, 5, 90, 55], [1, 1, 9, 1, 9, 9.5]]}]
    rows += [{"segmentation": uncompressed(square)}] if mask_format == "bitmask" else []
    options = ("INPUT.MIN_SIZE_TRAIN", (48, 80), "INPUT.RANDOM_FLIP", "horizontal", "INPUT.MASK_FORMAT", mask_format)
    cfg = small.config(*options)
    dataset, [record] = samples(folder, coco(rows), *options), read(folder, coco(rows)).records
    for epoch in range(6):
        ours = dataset[epoch, 0]
        np.random.seed(np.random.SeedSequence((1, epoch, 0)).generate_state(1)[0])
        theirs = data.DatasetMapper_with_GT(cfg)(record)
        assert torch.equal(ours["image"], theirs["image"])
        assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)
        assert torch.equal(ours["instances"].gt_classes, theirs["instances"].gt_classes)
        assert len(ours["instances"]) == len(rows)
        for one, other in zip(ours["instances"].gt_masks, theirs["instances"].gt_masks, strict=True):
            for part, its_part in zip(one, other, strict=True):  # a row of pixels, or a polygon
                np.testing.assert_array_equal(part, its_part)


@pytest.mark.parametrize("as_polygons", [True, False])
def test_crop(folder, as_polygons):
    """INPUT.CROP cuts before resizing. Masks stay where their image is, boxes are tight, what is outside is gone."""
    mask = np.zeros((64, 96), np.uint8)
    mask[20:24, 30:70] = mask[20:40, 30:34] = 1  # without its upright, its box is flat
    middle = [[30, 20, 70, 20, 70, 24, 34, 24, 34, 40, 30, 40]] if as_polygons else uncompressed(mask)
    corner = {"bbox": [0, 0, 3, 3], "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]}
    image = np.zeros((64, 96, 3), np.uint8)
    image[mask > 0] = 200
    cv2.imwrite(str(folder / "9.png"), image)
    crop = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [40, 50])
    for scale in (1, 2):
        sizes = ("INPUT.MIN_SIZE_TRAIN", (40 * scale,), "INPUT.MAX_SIZE_TRAIN", 50 * scale)
        rows = [{"bbox": [30, 20, 40, 20], "segmentation": middle}, corner]
        dataset = samples(folder, coco(rows), *crop, *sizes)
        offsets = set()
        for epoch in range(16):
            sample = dataset[epoch, 0]
            found = sample["instances"]
            assert sample["image"].shape == (3, 40 * scale, 50 * scale)
            assert (sample["height"], sample["width"]) == (64, 96)
            seen = sample["image"][0] > 100
            assert len(found) == int(seen.any())
            for mask, box in zip(found.gt_masks, found.gt_boxes, strict=True):
                assert (mask != seen).sum() <= 4 * (40 + 50) * scale * (scale - 1)
                rows_, columns = np.nonzero(mask.numpy())
                assert box.tolist() == [columns.min(), rows_.min(), columns.max() + 1, rows_.max() + 1]
                offsets.add(tuple(box.tolist()))
        assert len(offsets) > 3


def test_random_numbers_of_others(folder):
    """Reading a sample must neither depend on the global random numbers nor change them."""
    dataset = samples(folder, coco(), "INPUT.MIN_SIZE_TRAIN", (48, 64, 80), "INPUT.RANDOM_FLIP", "horizontal")
    np.random.seed(3)
    expected = np.random.rand(4)
    np.random.seed(3)
    found = [np.random.rand(), dataset[0, 0] and np.random.rand(), *np.random.rand(2)]
    np.testing.assert_array_equal(found, expected)


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
