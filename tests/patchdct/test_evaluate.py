"""Average precision: the figures of pycocotools, and boundary AP against a second computation of it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from patchdct import scenes
from patchdct.evaluate import boundary, boundary_width, evaluate, match_keys

COCO_MINI = Path(__file__).parents[3] / "shared/data/coco-mini/annotations/instances_val.json"
KERNEL = np.ones((3, 3), np.uint8)


def encode(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The truth of eight drawn scenes."""
    path = scenes.write_scenes(tmp_path_factory.mktemp("scenes"), images=8, seed=1, size=128)
    return dict(json.loads(path.read_text()))


def perfect(truth: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {key: row[key] for key in ("image_id", "category_id", "segmentation", "bbox")} | {"score": 0.9}
        for row in truth["annotations"]
    ]


def perturbed(truth: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """Predictions that are moved, thickened, thinned, confused, doubled or missing, with scores of their own."""
    rng = np.random.default_rng(seed)
    coco = quiet_coco(truth)
    category_ids = [row["id"] for row in truth["categories"]]
    results = []
    for row in coco.dataset["annotations"]:
        if row.get("iscrowd"):
            continue
        for _ in range(rng.integers(0, 3)):
            mask = np.roll(coco.annToMask(row), rng.integers(-1, 2, 2), axis=(0, 1))
            change = cv2.dilate if rng.random() < 0.5 else cv2.erode
            rle = encode(change(mask, KERNEL, iterations=int(rng.integers(0, 3))))
            category_id = row["category_id"] if rng.random() < 0.9 else int(rng.choice(category_ids))
            box = (np.array(mask_api.toBbox(rle)) + rng.uniform(-2, 2, 4)).tolist()
            result = {"image_id": row["image_id"], "category_id": category_id, "segmentation": rle, "bbox": box}
            results.append(result | {"score": float(rng.random())})
    return results


def quiet_coco(truth: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def summarized(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> list[float]:
    """The twelve figures that pycocotools prints."""
    columns = ("image_id", "category_id", "score", "segmentation" if kind == "segm" else "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = quiet_coco(truth)
        found = coco.loadRes([{key: row[key] for key in columns} for row in copy.deepcopy(results)])
        evaluator = COCOeval(coco, found, kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return list(evaluator.stats)


def figures(section: dict[str, Any]) -> list[float]:
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl")
    return [-1.0 if section[name] is None else section[name] for name in names]


@pytest.mark.parametrize("source", ["coco-mini", "scenes"])
def test_figures_are_those_of_pycocotools(source: str, drawn: dict[str, Any]) -> None:
    """Figures that differ from pycocotools' could not be compared with any published ones."""
    if source == "coco-mini" and not COCO_MINI.is_file():
        pytest.skip("the coco-mini data set is not beside the repository")
    truth = json.loads(COCO_MINI.read_text()) if source == "coco-mini" else drawn
    results = perturbed(truth)

    report = evaluate(truth, results, metrics=["coco"])

    for section, kind in (("mask", "segm"), ("box", "bbox")):
        stats = summarized(truth, results, kind)
        expected = stats[:6] + stats[8:]
        assert figures(report[section]) == pytest.approx(expected, abs=1e-9)
        assert 0.05 < expected[0] < 0.95
    assert "boundary" not in report


def test_perfect_predictions_reach_one(drawn: dict[str, Any]) -> None:
    """A prediction equal to the truth that does not count fully means masks are shifted or ids are mixed up."""
    report = evaluate(drawn, perfect(drawn))

    for section in ("mask", "box", "boundary"):
        assert report[section]["AP"] == pytest.approx(1.0)
        assert report[section]["AR"] == pytest.approx(1.0)
        assert report[section]["per_class"] == pytest.approx({name: 1.0 for _, name in scenes.CATEGORIES})
    assert (report["images"], report["results"]) == (8, len(drawn["annotations"]))


def test_annotation_ids_from_zero_lose_no_match(drawn: dict[str, Any]) -> None:
    """COCOeval reads a match with id 0 as none, and would count that instance as missed."""
    truth = drawn | {"annotations": [row | {"id": row["id"] - 1} for row in drawn["annotations"]]}

    assert evaluate(truth, perfect(truth), metrics=["coco"])["mask"]["AR"] == pytest.approx(1.0)


def test_arguments_are_left_as_they_were(drawn: dict[str, Any]) -> None:
    """COCOeval writes into what it is given; a caller who evaluates twice would get other figures."""
    results = perfect(drawn)
    before = copy.deepcopy((drawn, results))

    evaluate(drawn, results)

    assert (drawn, results) == before


def test_no_predictions_are_zero_not_a_crash(drawn: dict[str, Any]) -> None:
    """An untrained model finds nothing, and its evaluation must still say so."""
    report = evaluate(drawn, [])

    assert {report[section]["AP"] for section in ("mask", "box", "boundary")} == {0.0}
    assert report["results"] == 0


def test_what_the_truth_does_not_have_is_none(drawn: dict[str, Any]) -> None:
    """A zero for a size or class without instances would read as a failure of the model."""
    report = evaluate(drawn | {"annotations": []}, perfect(drawn), metrics=["coco"])

    assert report["mask"]["AP"] is None
    assert set(report["mask"]["per_class"].values()) == {None}


def test_one_pixel_costs_boundary_ap_more_than_mask_ap(drawn: dict[str, Any]) -> None:
    """Boundary AP that does not react to a thicker outline would not measure what PatchDCT improves."""
    results = perfect(drawn)
    for row in results:
        row["segmentation"] = encode(cv2.dilate(mask_api.decode(row["segmentation"]), KERNEL))

    report = evaluate(drawn, results)

    assert report["boundary"]["AP"] < report["mask"]["AP"] - 0.05 < 0.95


def test_boundary_ap_equals_a_second_computation(drawn: dict[str, Any]) -> None:
    """An outline too wide, or one that ends at the image's edge, would shift every boundary figure."""
    results = perturbed(drawn, seed=3)

    assert evaluate(drawn, results)["boundary"]["AP"] == pytest.approx(boundary_ap(drawn, results), abs=1e-9)


def boundary_ap(truth: dict[str, Any], results: list[dict[str, Any]]) -> float:
    """Boundary AP over IoU 0.5 to 0.95 from its definition: for truth without crowds, with fewer than 100 results."""

    def regions(rle: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        mask = mask_api.decode(rle).astype(bool)
        steps = max(1, round(0.02 * math.hypot(*mask.shape)))
        # Outside the image counts as outside the mask (border_value 0).
        return mask, mask & ~ndimage.binary_erosion(mask, np.ones((3, 3), bool), iterations=steps, border_value=0)

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        return float((a & b).sum() / max((a | b).sum(), 1))

    precisions = []
    for category_id in {row["category_id"] for row in truth["annotations"]}:
        wanted = [
            (row, regions(row["segmentation"])) for row in truth["annotations"] if row["category_id"] == category_id
        ]
        ranked = sorted((row for row in results if row["category_id"] == category_id), key=lambda row: -row["score"])
        found = [(row, regions(row["segmentation"])) for row in ranked]
        for threshold in np.linspace(0.5, 0.95, 10):
            taken: set[int] = set()
            hits = []
            for result, (mask, edge) in found:
                best, match = threshold, None
                for number, (row, (other_mask, other_edge)) in enumerate(wanted):
                    if number in taken or row["image_id"] != result["image_id"]:
                        continue
                    overlap = min(iou(mask, other_mask), iou(edge, other_edge))
                    if overlap >= best:
                        best, match = overlap, number
                hits.append(match is not None)
                taken |= {match} if match is not None else set()
            true = np.cumsum(hits)
            recall, precision = true / len(wanted), true / np.arange(1, len(hits) + 1)
            precisions += [precision[recall >= level].max(initial=0) for level in np.linspace(0, 1, 101)]
    return float(np.mean(precisions))


def test_an_outline_alone_is_no_match() -> None:
    """A ring as wide as the boundary has its disc's boundary, and boundary IoU alone would take it for the disc."""
    disc = np.zeros((100, 100), np.uint8)
    cv2.circle(disc, (50, 50), 35, 1, -1)
    truth = {
        "images": [{"id": 4, "file_name": "a.jpg", "height": 100, "width": 100}],
        "categories": [{"id": 9, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 4, "category_id": 9, "segmentation": encode(disc)}],
    }
    ring = boundary(disc, boundary_width(100, 100))

    report = evaluate(truth, [{"image_id": 4, "category_id": 9, "score": 0.9, "segmentation": encode(ring)}])

    assert report["boundary"]["AP"] == report["mask"]["AP"] == 0


def test_boundary_is_closed_at_the_edge_of_the_image() -> None:
    """Without the zeros around the image, a mask that is cut by its edge would have no outline there."""
    full = np.ones((20, 30), np.uint8)

    edge = boundary(full, 2)

    expected = np.ones_like(full)
    expected[2:-2, 2:-2] = 0
    assert np.array_equal(edge, expected)
    assert (boundary_width(480, 640), boundary_width(10, 10)) == (16, 1)


def test_crowd_regions_excuse_predictions_inside_them() -> None:
    """A prediction amid a crowd has no outline in common with it, and must be ignored all the same."""
    crowd, inside, single = (np.zeros((100, 100), np.uint8) for _ in range(3))
    crowd[:60] = 1
    inside[20:40, 20:40] = 1
    single[70:95, 70:95] = 1
    truth = {
        "images": [{"id": 4, "file_name": "a.jpg", "height": 100, "width": 100}],
        "categories": [{"id": 9, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 9, "segmentation": encode(crowd), "iscrowd": 1},
            {"id": 2, "image_id": 4, "category_id": 9, "segmentation": encode(single)},
        ],
    }
    results = [
        {"image_id": 4, "category_id": 9, "score": 0.9, "segmentation": encode(inside)},
        {"image_id": 4, "category_id": 9, "score": 0.5, "segmentation": encode(single)},
    ]

    report = evaluate(truth, results)

    assert report["boundary"]["AP"] == pytest.approx(1.0)
    assert report["mask"]["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("limit", [1, 3, 150])
def test_only_the_best_detections_count(limit: int, drawn: dict[str, Any]) -> None:
    """A limit that pycocotools' summary does not know must not give -1, nor be passed over."""
    row = drawn["annotations"][0]
    wrong = {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": [0, 0, 2, 2]}
    corner = np.zeros((128, 128), np.uint8)
    corner[:2, :2] = 1
    better = [wrong | {"segmentation": encode(corner), "score": 0.95} for _ in range(2)]
    truth = drawn | {"annotations": [row]}

    report = evaluate(truth, [*better, *perfect(truth)], max_detections=limit)

    found = 0.0 if limit == 1 else 1.0
    assert report["mask"]["AR"] == report["boundary"]["AR"] == found


def test_image_ids_restrict_truth_and_results(drawn: dict[str, Any]) -> None:
    """Instances of images that were never labelled would count as missed."""
    labelled = {1, 2, 3}
    results = [row for row in perfect(drawn) if row["image_id"] in labelled]

    assert evaluate(drawn, results, metrics=["coco"])["mask"]["AR"] < 0.9
    report = evaluate(drawn, results, metrics=["coco"], image_ids=labelled)
    assert report["mask"]["AR"] == pytest.approx(1.0)
    assert report["images"] == 3


def test_results_of_other_categories_are_counted_as_ignored(drawn: dict[str, Any]) -> None:
    """A model with more classes than the truth is fine, but the user should see how much was passed over."""
    results = perfect(drawn)
    stranger = results[0] | {"category_id": 77}

    report = evaluate(drawn, [*results, stranger], metrics=["coco"])

    assert json.loads(json.dumps(report)) == report
    assert report["ignored_results"] == 1
    assert report["mask"]["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_id": 4711}, r"results names image 4711.* 8 with ids from 1 to 8"),
        ({"category_id": 77}, r"results names category 77.* 6 with ids from 1 to 6"),
        ({"segmentation": {"size": [5, 5], "counts": "i0"}}, r"image 1 has a mask of \[5, 5\].* \[128, 128\]"),
        ({"segmentation": None}, r"image 1 has no segmentation"),
    ],
)
def test_results_that_do_not_fit_the_truth_are_refused(
    change: dict[str, Any], sentence: str, drawn: dict[str, Any]
) -> None:
    """Measured against the wrong truth, pycocotools gives an assertion or a plain zero."""
    with pytest.raises(ValueError, match=sentence):
        evaluate(drawn, [perfect(drawn)[0] | change])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"metrics": ["coco", "lvix"]}, "lvix; accepted are coco, boundary"),
        ({"max_detections": 0}, "at least 1"),
        ({"image_ids": [99]}, "image_ids names image 99"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], sentence: str, drawn: dict[str, Any]) -> None:
    """A metric with a slip in it would otherwise be left out without a word."""
    with pytest.raises(ValueError, match=sentence):
        evaluate(drawn, [], **settings)


def truth_of(*file_names: str) -> dict[str, Any]:
    return {"images": [{"id": 10 + number, "file_name": name} for number, name in enumerate(file_names)]}


@pytest.mark.parametrize(
    ("file_name", "key"),
    [
        ("a.jpg", "a.jpg"),
        ("a.jpg", "a"),
        ("a.jpg", "a.png"),
        ("a", "a.png"),
        ("val/a.jpg", "val/a"),
        ("val/a.jpg", "a.jpg"),
        ("val/a.jpg", "a.png"),
        ("val/a.jpg", "shards/x/a"),
        ("aachen_000.left.png", "val/aachen_000.left"),
    ],
)
def test_keys_find_their_image(file_name: str, key: str) -> None:
    """Keys of a tar, a Parquet file or a folder differ from file_name in folder and extension only."""
    assert match_keys(truth_of("b.jpg", file_name), [key]) == {key: 11}


@pytest.mark.parametrize(
    ("file_names", "key", "image_id"),
    [
        (("x/a.jpg", "y/a.jpg", "a.jpg"), "a.jpg", 12),
        (("x/a.jpg", "y/a.jpg"), "y/a", 11),
        (("x/a.jpg", "y/a.jpg"), "y/a.png", 11),
        (("x/a.left.jpg", "y/a.left.jpg"), "y/a.left", 11),
        (("a.jpg", "a.png"), "a.png", 11),
        (("x/a.jpg", "x/a.png"), "y/a.png", 11),
    ],
)
def test_the_nearest_name_wins(file_names: tuple[str, ...], key: str, image_id: int) -> None:
    """With like names in two folders or formats, a key must get its own image, and must get one where it can."""
    assert match_keys(truth_of(*file_names), [key]) == {key: image_id}


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (["z.jpg", "b.jpg"], r"1 of 2 image keys match no single image of the truth \(first 'z.jpg'\).*'x/a.jpg'"),
        (["a.jpg"], r"1 of 1 image keys"),
        (["b.jpg", "b.png"], r"'b.jpg' and 'b.png' both match image 12"),
    ],
)
def test_keys_without_a_single_image_are_named(keys: list[str], sentence: str) -> None:
    """Predictions given to a guessed image, or to one image twice, would lower the figures without a sign."""
    with pytest.raises(ValueError, match=sentence):
        match_keys(truth_of("x/a.jpg", "y/a.jpg", "b.jpg"), keys)
