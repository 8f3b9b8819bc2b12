"""LVIS v0.5 as training data and as truth."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_api

from pipeline import datasets
from pipeline.config import DatasetConfig, TruthConfig
from pipeline.datasets import Dataset, lvis
from pipeline.errors import UserError
from pipeline.store import Store

HEIGHT, WIDTH = 32, 48
SQUARE = [10, 10, 31, 10, 31, 31, 10, 31]
#: Ids as in LVIS v0.5.
ACORN, PERSON, SUITCASE, COW = 1, 805, 36, 81
CATEGORIES = [
    {"id": ACORN, "name": "acorn", "synset": "acorn.n.01", "frequency": "r"},
    {"id": SUITCASE, "name": "suitcase", "synset": "bag.n.06", "frequency": "f"},
    {"id": COW, "name": "cow", "synset": "beef.n.01", "frequency": "f"},
    {"id": PERSON, "name": "baby", "synset": "person.n.01", "frequency": "f"},
]


def image(id_: int, **more: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "file_name": f"COCO_val2014_{id_:012}.jpg",
        "coco_url": f"http://images.cocodataset.org/val2017/{id_:012}.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
        **more,
    }


def annotation(category_id: int, x: int = 10) -> dict[str, Any]:
    segmentation = [[x, 10, 31, 10, 31, 31, x, 31]]
    return {
        "id": 7,
        "image_id": 5,
        "category_id": category_id,
        "bbox": [x, 10, 31 - x, 21],
        "segmentation": segmentation,
    }


def document(**changes: Any) -> dict[str, Any]:
    rows = [annotation(ACORN, 11), annotation(PERSON, 12), annotation(COW, 13)]
    return {"images": [image(5), image(6)], "annotations": rows, "categories": CATEGORIES, **changes}


def read(folder: Path, content: Any, files: list[str], store: Store, *, images: bool = True) -> Dataset:
    """Read an LVIS json whose images have these names below the root."""
    (folder / "lvis.json").write_text(json.dumps(content))
    for name in files:
        store.put(str(folder / "images" / name), b"an image")
    where = {"annotations": str(folder / "lvis.json"), "images": str(folder / "images") if images else None}
    if not images:
        return datasets.read(TruthConfig(name="lvis_v0.5", **where), store, key="truth")
    return datasets.read(DatasetConfig(name="lvis_v0.5", **where), store, key="data.train")


def test_the_categories_of_coco() -> None:
    """The table has COCO's 80 ids, each once, and only synsets that LVIS uses, but for the two that it lacks."""
    spec = importlib.util.find_spec("detectron2")  # its tables are plain files; importing them would load torch
    assert spec is not None
    assert spec.origin is not None
    tables = Path(spec.origin).parent / "data" / "datasets"
    theirs = runpy.run_path(str(tables / "builtin_meta.py"))["COCO_CATEGORIES"]
    assert [(id_, name) for id_, name, _ in lvis.CATEGORIES] == [(c["id"], c["name"]) for c in theirs if c["isthing"]]
    ids = {c["synset"]: c["id"] for c in runpy.run_path(str(tables / "lvis_v0_5_categories.py"))["LVIS_CATEGORIES"]}
    assert {name for _, name, synset in lvis.CATEGORIES if synset not in ids} == {"hot dog", "oven"}
    assert (ids["person.n.01"], ids["bag.n.06"], ids["beef.n.01"]) == (PERSON, SUITCASE, COW)


def test_objects_under_the_ids_of_coco(tmp_path: Path, store: Store) -> None:
    """Objects of the other categories train nothing, and those of COCO's have its ids, with the masks of the file."""
    found = read(tmp_path, document(), ["5.jpg", f"{5:012}.jpg", f"{6:012}.jpg"], store)
    assert [(one["id"], one["category_id"]) for one in found.coco["annotations"]] == [(1, 1), (2, 21)]
    for one, x in zip(found.coco["annotations"], (12, 13), strict=True):
        mask = mask_api.decode(mask_api.merge(mask_api.frPyObjects(one["segmentation"], HEIGHT, WIDTH)))
        expected = np.zeros((HEIGHT, WIDTH))
        expected[10:31, x:31] = 1
        np.testing.assert_array_equal(mask, expected)
    categories = {one["id"]: one["name"] for one in found.coco["categories"]}
    assert (len(categories), categories[1], categories[21], categories[33]) == (80, "person", "cow", "suitcase")
    assert [one["id"] for one in found.coco["images"]] == [5, 6]


def test_what_is_known_of_images(tmp_path: Path, store: Store) -> None:
    """Without these lists, LVIS' metric takes every find of an unmarked category for an error."""
    images = [
        image(5, neg_category_ids=[ACORN, SUITCASE], not_exhaustive_category_ids=[PERSON]),
        image(6, neg_category_ids=[COW, PERSON, ACORN]),
    ]
    found = read(tmp_path, document(images=images), [f"{5:012}.jpg", f"{6:012}.jpg"], store)
    lists = [(one["neg_category_ids"], one["not_exhaustive_category_ids"]) for one in found.coco["images"]]
    assert lists == [([33], [1]), ([1, 21], [])]
    with pytest.raises(UserError, match=r"neg_category_ids of the image 5 must be a list of category ids"):
        read(tmp_path, document(images=[image(5, neg_category_ids="none")]), [], store)


@pytest.mark.parametrize("synsets", [True, False])
def test_a_json_that_was_cofied_before(tmp_path: Path, store: Store, synsets: bool) -> None:
    """Its categories have COCO's ids already; taken for LVIS' own ids, a cow (21) would be another animal."""
    categories = [
        {"id": 1, "name": "person", "synset": "person.n.01"},
        {"id": 21, "name": "cow", "synset": "beef.n.01"},
    ]
    if not synsets:
        categories = [{"id": one["id"], "name": one["name"]} for one in categories]
    images = [image(5, neg_category_ids=[21]), image(6)]
    content = document(images=images, categories=categories, annotations=[annotation(21), annotation(1)])
    found = read(tmp_path, content, [f"{5:012}.jpg", f"{6:012}.jpg"], store)
    assert [one["category_id"] for one in found.coco["annotations"]] == [21, 1]
    assert found.coco["images"][0]["neg_category_ids"] == [21]
    assert len(found.coco["categories"]) == 80


@pytest.mark.parametrize("name", ["COCO_val2014_000000000005.jpg", "000000000005.jpg", "val2017/000000000005.jpg"])
def test_where_images_are(tmp_path: Path, store: Store, name: str) -> None:
    """COCO's files were renamed in 2017, and lie in one folder or in one for each split."""
    for content in (document(), document(images=[{**image(5), "coco_url": f"http://x/val2017/{5:012}.jpg"}, image(6)])):
        found = read(tmp_path, content, [name], store)
        assert found.uris == {5: f"{tmp_path}/images/{name}"}
        assert found.coco["images"][0]["file_name"] == name
        assert found.missing == (f"val2017/{6:012}.jpg",)
    without = {key: value for key, value in image(5).items() if key != "coco_url"}
    if "/" not in name:
        assert read(tmp_path, document(images=[without]), [], store).uris == {5: f"{tmp_path}/images/{name}"}
    with pytest.raises(UserError, match=r"none of the 1 images of .*lvis\.json is below .* \(the first is val2017/0+6"):
        read(tmp_path, document(images=[image(6)], annotations=[]), [], store)


def test_a_truth_without_images(tmp_path: Path, store: Store) -> None:
    """The keys of a run over COCO's images of 2017 are then found in the truth; later versions have no file_name."""
    unnamed = {key: value for key, value in image(6).items() if key != "file_name"}
    found = read(tmp_path, document(images=[image(5), unnamed]), [], store, images=False)
    assert [one["file_name"] for one in found.coco["images"]] == [f"val2017/{5:012}.jpg", f"val2017/{6:012}.jpg"]


def test_no_category_of_coco(tmp_path: Path, store: Store) -> None:
    """Another data set under the name of LVIS is not read as one without objects."""
    other = document(categories=[{"id": 1, "name": "nucleus"}], annotations=[annotation(1)])
    with pytest.raises(UserError) as caught:
        read(tmp_path, other, [], store)
    assert str(caught.value) == (
        f"data.train.annotations: {tmp_path}/lvis.json has none of COCO's 80 categories; give an LVIS v0.5 json"
    )
    with pytest.raises(UserError, match=r"lvis\.json is no COCO json: annotations is missing"):
        read(tmp_path, {"images": [], "categories": []}, [], store)
