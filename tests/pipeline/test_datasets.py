"""COCO data sets: what is read, which images are found, what is refused, and several as one."""

from __future__ import annotations

import copy
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_api

from pipeline import datasets
from pipeline.config import DatasetConfig, TruthConfig
from pipeline.datasets import Dataset
from pipeline.errors import UserError
from pipeline.store import Store, join

HEIGHT, WIDTH = 32, 48
SQUARE = [10, 10, 31, 10, 31, 31, 10, 31]
CATEGORIES = [{"id": 7, "name": "dark"}, {"id": 1, "name": "bright"}]


def blob(seed: int) -> np.ndarray:
    """A mask bool [HEIGHT, WIDTH] with a hole and loose pixels."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[4:20, 5:30] = True
    mask[8:12, 10:14] = False
    return mask ^ (rng.random(mask.shape) < 0.05)


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_api.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    groups = [(value, len(list(run))) for value, run in itertools.groupby(mask.T.ravel().tolist())]
    return {"size": list(mask.shape), "counts": [0] * groups[0][0] + [length for _, length in groups]}


def mask_of(segmentation: Any) -> np.ndarray:
    if isinstance(segmentation, list):
        segmentation = mask_api.merge(mask_api.frPyObjects(segmentation, HEIGHT, WIDTH))
    return mask_api.decode(segmentation).astype(bool)


def image(id_: int, file_name: str | None = None) -> dict[str, Any]:
    return {"id": id_, "file_name": file_name or f"{id_}.png", "height": HEIGHT, "width": WIDTH, "license": 3}


def annotation(image_id: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": 7, "segmentation": segmentation, **more}


def document(annotations: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """Three images, of which the last one has no objects."""
    rows = [annotation(4, [SQUARE]), annotation(9, [SQUARE])] if annotations is None else annotations
    return {"images": [image(4), image(9), image(5)], "annotations": rows, "categories": CATEGORIES, **changes}


def fill(place: str, names: list[str], store: Store) -> None:
    for name in names:
        store.put(join(place, "images", name), b"an image")


@pytest.fixture
def folder(tmp_path: Path, store: Store) -> Path:
    """Where the images of `document` are."""
    fill(str(tmp_path), ["4.png", "9.png", "5.png", "other.png"], store)
    return tmp_path


def read(
    folder: Path, content: Any, store: Store, *, strict: bool = False, images: str | None = "images", name: str = "coco"
) -> Dataset:
    path = folder / "truth.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    root = None if images is None else str(folder / images)
    if strict:
        return datasets.read(TruthConfig(name=name, annotations=str(path), images=root), store, key="truth")
    return datasets.read(DatasetConfig(name=name, annotations=str(path), images=root), store, key="data.train")


def test_masks_stay_as_they_were_drawn(folder: Path, store: Store) -> None:
    """Polygons and both forms of RLE; a mask that is moved by a pixel or turned round trains a wrong model."""
    mask = blob(1)
    rows = [annotation(9, form) for form in ([SQUARE], compressed(mask), uncompressed(mask))]
    for strict in (False, True):
        found = read(folder, document(rows), store, strict=strict).coco["annotations"]
        square = np.zeros_like(mask)
        square[10:31, 10:31] = True
        assert found[0]["segmentation"] == [SQUARE]
        for one, expected in zip(found, (square, mask, mask), strict=True):
            np.testing.assert_array_equal(mask_of(one["segmentation"]), expected)
            assert one["area"] == expected.sum()
            rows_, columns = np.nonzero(expected)
            left, top = columns.min(), rows_.min()
            assert one["bbox"] == [left, top, columns.max() + 1 - left, rows_.max() + 1 - top]
        assert isinstance(found[2]["segmentation"]["counts"], str)


def test_what_a_data_set_says(folder: Path, store: Store) -> None:
    """What the file says of boxes and areas is kept; ids that begin at 0 would be no match for COCO's evaluation."""
    rows = [
        annotation(9, [SQUARE], id=0, bbox=[1, 2, 3, 4.5], area=2.5, iscrowd=1),
        annotation(4, [SQUARE], iscrowd=True),
    ]
    found = read(folder, document(rows), store)
    assert found.coco["images"] == [
        {"id": id_, "file_name": f"{id_}.png", "height": HEIGHT, "width": WIDTH} for id_ in (4, 9, 5)
    ]
    first, second = found.coco["annotations"]
    expected = {"id": 1, "image_id": 9, "category_id": 7, "bbox": [1, 2, 3, 4.5], "area": 2.5, "iscrowd": 1}
    assert first == {**expected, "segmentation": [SQUARE]}
    assert (second["id"], second["iscrowd"]) == (2, 1)
    assert found.coco["categories"] == CATEGORIES
    assert found.uris == {id_: str(folder / "images" / f"{id_}.png") for id_ in (4, 9, 5)}
    assert (found.name, found.missing) == (str(folder / "truth.json"), ())


def test_annotations_without_masks(folder: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Real sets have a few. They must not stop a training, nor reach pycocotools, which takes 4 numbers for a box."""
    line = [1, 1, 5, 5]
    rows = [annotation(4, []), annotation(4, None), annotation(4, [line]), annotation(9, [line, SQUARE, [*SQUARE, 3]])]
    with caplog.at_level(logging.WARNING):
        [found] = read(folder, document(rows), store).coco["annotations"]
    assert found["segmentation"] == [SQUARE]
    assert "3 of 4 annotations have no mask and are left out" in caplog.text
    for row, sentence in (
        (rows[0], "annotations[0].segmentation must be a list of 1 or more"),
        (rows[2], "annotations[0].segmentation[0] must be a list of 6 or more"),
        (annotation(4, [[*SQUARE, 3]]), "annotations[0].segmentation[0] must be a list of x, y, x, y, ..."),
        ({"image_id": 4, "category_id": 7}, "annotations[0].segmentation is missing"),
    ):
        with pytest.raises(UserError) as caught:
            read(folder, document([row]), store, strict=True)
        assert str(caught.value) == f"truth.annotations: {folder}/truth.json is no COCO json: {sentence}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "{",
            " is no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); give a COCO "
            "json",
        ),
        ("[" * 100_000, " is no JSON; give a COCO json"),
        ([1], " is no COCO json: it must be an object"),
        (document(categories=None), " is no COCO json: categories must be a list"),
        ({"images": [], "annotations": []}, " is no COCO json: categories is missing"),
        (document(images=[{"id": 1}]), " is no COCO json: images[0].file_name is missing"),
        (document(images=[{**image(1), "width": 0}]), " is no COCO json: images[0].width must be more than 0"),
        (document(images=[{**image(1), "width": 1 << 20}]), " is no COCO json: images[0].width must be 65535 or less"),
        (
            document(images=[image(4), image(9), image(4, "b.png")]),
            ": images[2] has the id 4 of an earlier one; each needs its own",
        ),
        (document(categories=CATEGORIES * 2), ": categories[2] has the id 7 of an earlier one; each needs its own"),
        (document([annotation(3, [SQUARE])]), ": annotations[0] has the image_id 3, which is unknown"),
        (
            document([annotation(4, [SQUARE]), annotation(4, [SQUARE], category_id=2)]),
            ": annotations[1] has the category_id 2, which is unknown",
        ),
        (
            document([annotation(4, [["a"] * 6])]),
            " is no COCO json: annotations[0].segmentation[0][0] must be a number",
        ),
        (
            document([annotation(4, [[*SQUARE[:-1], 1e9]])]),
            " is no COCO json: annotations[0].segmentation[0][7] must be 1000000.0 or less",
        ),
        (
            document([annotation(4, [[float("nan"), *SQUARE[1:]]])]),
            " is no COCO json: annotations[0].segmentation[0][0] must be a finite number",
        ),
        (
            document([annotation(4, [SQUARE], bbox=[1, 2, 3])]),
            " is no COCO json: annotations[0].bbox must be a list of 4 or more",
        ),
        (
            document([annotation(4, [SQUARE], area=float("inf"))]),
            " is no COCO json: annotations[0].area must be a finite number",
        ),
        (
            document([annotation(4, [SQUARE], iscrowd="no")]),
            " is no COCO json: annotations[0].iscrowd must be a whole number",
        ),
        (
            document([annotation(4, {"size": [9, 9], "counts": [81]})]),
            ": annotations[0] has a mask of [9, 9] (height, width), and its image is [32, 48]",
        ),
        (
            document([annotation(4, [SQUARE]), annotation(4, {"size": [HEIGHT, WIDTH], "counts": "zzzz"})]),
            ": annotations[1] has a mask that cannot be decoded: its counts hold a character that is none of COCO's",
        ),
        (
            document([annotation(4, {"size": [HEIGHT, WIDTH], "counts": [3, 4]})]),
            ": annotations[0] has a mask that cannot be decoded: its counts add up to 7 pixels, and the image has 1536",
        ),
    ],
)
def test_what_is_no_coco(folder: Path, store: Store, content: Any, sentence: str) -> None:
    """One sentence names the place, before pycocotools draws or decodes anything, whose C code trusts its input."""
    for strict, key in ((False, "data.train"), (True, "truth")):
        with pytest.raises(UserError) as caught:
            read(folder, content, store, strict=strict)
        assert str(caught.value) == f"{key}.annotations: {folder}/truth.json{sentence}"


def test_faults_far_down_are_found(folder: Path, store: Store) -> None:
    """Large files are checked in parts, and the sentence counts from the beginning of the file."""
    rows = [annotation(4, [SQUARE])] * 20_000
    with pytest.raises(UserError, match=r"annotations\[20000\]\.image_id must be a whole number"):
        read(folder, document([*rows, {**rows[0], "image_id": "4"}]), store)


def test_nothing_to_measure_against(folder: Path, store: Store) -> None:
    """A truth without objects gives no figures; among data sets to train on, it may be one of several."""
    assert read(folder, document([]), store).coco["annotations"] == []
    with pytest.raises(UserError, match="has no annotations, so there is nothing to measure against"):
        read(folder, document([]), store, strict=True)


def test_annotations_that_are_not_there(folder: Path, store: Store) -> None:
    """A typing error in a path."""
    config = DatasetConfig(annotations=str(folder / "no.json"), images=str(folder))
    with pytest.raises(UserError) as caught:
        datasets.read(config, store, key="data.val[1]")
    assert str(caught.value) == (
        f"data.val[1].annotations: {folder}/no.json: no such file or directory; give a COCO json"
    )


def test_images_that_are_not_there(folder: Path, store: Store) -> None:
    """Some missing images are named, and nothing of them stays; none at all is a wrong root."""
    (folder / "images" / "9.png").unlink()
    found = read(folder, document(), store)
    assert found.missing == ("9.png",)
    assert [one["id"] for one in found.coco["images"]] == [4, 5]
    assert [one["image_id"] for one in found.coco["annotations"]] == [4]
    assert set(found.uris) == {4, 5}
    for images in ("elsewhere", "truth.json"):
        with pytest.raises(UserError) as caught:
            read(folder, document(), store, images=images)
        assert str(caught.value) == (
            f"data.train.images: none of the 3 images of {folder}/truth.json is below {folder}/{images} "
            "(the first is 4.png)"
        )


def test_no_images_are_looked_for(folder: Path, store: Store) -> None:
    """A truth without images is measured against as it is."""
    found = read(folder, document(), store, strict=True, images=None)
    assert (len(found.coco["images"]), found.uris, found.missing) == (3, {}, ())


def test_names_of_images(folder: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Names in folders, with "./" or doubled slashes, with wildcard characters, and paths of their own."""
    own = tmp_path_factory.mktemp("own") / "5.png"
    names = ["./a//4.png", "b[1]/9*.png", str(own)]
    fill(str(folder), ["a/4.png", "b[1]/9*.png"], store)
    content = document(images=[image(id_, name) for id_, name in zip((4, 9, 5), names, strict=True)])
    found = read(folder, content, store)
    assert found.missing == ()
    assert found.uris == {4: f"{folder}/images/a/4.png", 9: f"{folder}/images/b[1]/9*.png", 5: str(own)}
    assert [one["file_name"] for one in found.coco["images"]] == names


def test_relative_paths_become_absolute(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that load images may have another working directory."""
    (folder / "truth.json").write_text(json.dumps(document()))
    monkeypatch.chdir(folder)
    config = DatasetConfig(annotations="truth.json", images="images/")
    assert datasets.read(config, store, key="data.train").uris[4] == str(folder / "images" / "4.png")


def test_on_s3(s3_uri: str, store: Store) -> None:
    """The same from a bucket, and what of it is missing; a bucket that is not there is a sentence."""
    fill(s3_uri, ["4.png", "5.png"], store)
    store.put(join(s3_uri, "truth.json"), json.dumps(document()).encode())
    config = DatasetConfig(annotations=join(s3_uri, "truth.json"), images=join(s3_uri, "images"))
    found = datasets.read(config, store, key="data.train")
    assert found.uris == {4: f"{s3_uri}/images/4.png", 5: f"{s3_uri}/images/5.png"}
    assert found.missing == ("9.png",)
    assert store.get(found.uris[4]) == b"an image"
    elsewhere = DatasetConfig(annotations=join(s3_uri, "truth.json"), images="s3://test-no-such-bucket/images")
    with pytest.raises(UserError, match=r"data\.train\.images cannot be listed: s3://test-no-such-bucket"):
        datasets.read(elsewhere, store, key="data.train")


def test_images_are_listed_once(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for each of COCO's 118,000 images would take an hour before the first step."""
    asked: list[str] = []
    for verb in ("list", "stat", "exists", "open"):
        real = getattr(Store, verb)
        monkeypatch.setattr(
            Store, verb, lambda *a, _real=real, _verb=verb, **k: (asked.append(_verb), _real(*a, **k))[1]
        )
    read(folder, document(), store)
    assert asked == ["open", "list"]


def test_several_as_one(folder: Path, store: Store) -> None:
    """Ids of images that come in both sets must not bring masks to the wrong images."""
    first = read(folder, document([annotation(9, compressed(blob(1)))]), store)
    (folder / "images" / "9.png").unlink()
    second = read(folder, document([annotation(4, compressed(blob(2)))]), store)
    before = copy.deepcopy((first, second))
    merged = datasets.merge([first, second])
    assert (first, second) == before
    assert [one["id"] for one in merged.coco["images"]] == [1, 2, 3, 4, 5]
    assert [one["id"] for one in merged.coco["annotations"]] == [1, 2]
    names = {one["id"]: one["file_name"] for one in merged.coco["images"]}
    assert {id_: Path(uri).name for id_, uri in merged.uris.items()} == names
    for one, name, seed in zip(merged.coco["annotations"], ("9.png", "4.png"), (1, 2), strict=True):
        assert names[one["image_id"]] == name
        np.testing.assert_array_equal(mask_of(one["segmentation"]), blob(seed))
    assert merged.missing == ("9.png",)
    assert merged.name == f"{first.name} + {second.name}"
    assert merged.coco["categories"] == CATEGORIES
    assert datasets.merge([first]) is first


@pytest.mark.parametrize(
    ("categories", "difference"),
    [
        ([{"id": 7, "name": "light"}, CATEGORIES[1]], "the id 7 is 'dark' in the first and is 'light' in the second"),
        ([CATEGORIES[0]], "the id 1 is 'bright' in the first and is not there in the second"),
        ([*CATEGORIES, {"id": 9, "name": "new"}], "the id 9 is not there in the first and is 'new' in the second"),
    ],
)
def test_categories_that_differ(folder: Path, store: Store, categories: Any, difference: str) -> None:
    """A class that means two things would train, silently, a model of neither."""
    first = read(folder, document(), store)
    other = read(folder, document(categories=[*reversed(CATEGORIES)]), store)
    datasets.merge([first, other])
    second = read(folder, document([annotation(4, [SQUARE])], categories=categories), store)
    with pytest.raises(UserError) as caught:
        datasets.merge([first, second])
    assert str(caught.value) == (
        f"{first.name} and {second.name} cannot be used together, as their categories differ: {difference}"
    )


def test_coco_mini(shared_data: Path, store: Store) -> None:
    """Real annotations: all images found, all masks kept, crowds included."""
    root = shared_data / "coco-mini"
    config = DatasetConfig(annotations=str(root / "annotations/instances_val.json"), images=str(root / "val"))
    found = datasets.read(config, store, key="data.val")
    real = json.loads((root / "annotations/instances_val.json").read_text())
    assert (len(found.uris), found.missing) == (80, ())
    assert sum(one["iscrowd"] for one in found.coco["annotations"]) == 11
    for ours, theirs in zip(found.coco["annotations"], real["annotations"], strict=True):
        assert {key: ours[key] for key in ("bbox", "area", "image_id", "category_id")}.items() <= theirs.items()
        assert isinstance(ours["segmentation"], list) == (not theirs["iscrowd"])
