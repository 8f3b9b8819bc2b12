"""Average precision: the figures of pycocotools."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from patchdct import scenes
from patchdct.evaluate import Evaluation, Truth, blocks, evaluate
from patchdct.evaluate.engines import ENGINES
from patchdct.evaluate.rows import read_rows
from patchdct.evaluate.tally import Kind
from tests.patchdct.evaluated import COCO_MINI, accumulated, curves_of, encode, nasty, perfect, perturbed, quiet_coco


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The truth of eight drawn scenes."""
    path = scenes.write_scenes(tmp_path_factory.mktemp("scenes"), images=8, seed=1, size=128)
    return dict(json.loads(path.read_text()))


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

    reports = [evaluate(truth, results, metrics=["coco"], engine=engine) for engine in ENGINES]

    for section, kind in (("mask", "segm"), ("box", "bbox")):
        stats = summarized(truth, results, kind)
        expected = stats[:6] + stats[8:]
        assert 0.05 < expected[0] < 0.95
        for report in reports:
            assert figures(report[section]) == pytest.approx(expected, abs=1e-9)
    assert "boundary" not in reports[0]
    assert reports[0]["mask"]["per_class"] == pytest.approx(reports[1]["mask"]["per_class"], abs=1e-9)


MANY = {"seed": 9, "images": 2, "found": 900, "categories": 2, "side": 32}


@pytest.mark.parametrize("kind", ["mask", "box"])
@pytest.mark.parametrize(
    ("case", "limit"),
    [
        ({"seed": 0}, 1),
        ({"seed": 1}, 3),
        *(({"seed": seed}, 100) for seed in (2, 4, 6)),
        *((MANY, limit) for limit in (1, 100, 400)),
        ({"seed": 10, "objects": 0}, 100),
        ({"seed": 11, "found": 0}, 100),
        ({"seed": 12, "images": 1, "categories": 1}, 100),
    ],
)
def test_curves_are_those_of_pycocotools(case: dict[str, int], limit: int, kind: Kind) -> None:
    """Where AP agrees by chance, ties, crowds, limits of size and empty images still shift single curves."""
    truth, results = nasty(**case)
    rows = read_rows(truth, results)

    expected = accumulated(truth, results, "segm" if kind == "mask" else "bbox", limit).eval

    for engine in ENGINES:
        curves = curves_of(engine, rows, kind, limit)
        for name in ("precision", "recall", "scores"):
            assert getattr(curves, name) == pytest.approx(expected[name][..., 0], abs=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("seed", "size"), [(0, 1), (2, 4), (5, 7)])
def test_images_in_parts_have_the_figures_of_all_at_once(seed: int, size: int, engine: str) -> None:
    """Equal scores rank by image id: were it by arrival, figures would change with the order of shards."""
    truth, results = nasty(seed, images=16)
    whole = Evaluation(Truth(truth), engine=engine)
    whole.add(read_rows(truth, results))
    parts = list(blocks(results, [image["id"] for image in truth["images"]], size))
    assert len(parts) > 2

    index = Truth(truth)
    evaluation = Evaluation(index, engine=engine)
    for image_ids, some in (parts[place] for place in np.random.default_rng(seed).permutation(len(parts))):
        evaluation.add(index.rows(some, image_ids))

    assert evaluation.report() == whole.report() == evaluate(truth, results, engine=engine)


def test_images_that_were_measured_are_not_held() -> None:
    """A million images with their masks do not fit into memory; their matches do, in a hundred bytes a prediction."""
    truth, results = nasty(3, images=50)
    index = Truth(truth)
    parts = list(blocks(results * 10, list(index.images), 10))
    evaluation = Evaluation(index)
    evaluation.add(index.rows(parts[0][1], parts[0][0]))  # what is compiled now stays
    gc.collect()
    tracemalloc.start()
    for image_ids, some in parts[1:]:
        evaluation.add(index.rows(some, image_ids))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    count = sum(len(some) for _, some in parts[1:])
    assert count > 1000
    assert held / count < 100


def test_blocks_have_each_result_once() -> None:
    """A result that is lost is a missed object; and one of a strange image must still come, to be refused."""
    results = [{"image_id": image_id, "number": number} for number, image_id in enumerate([3, 9, 1, 3, 2, 9, 1])]

    found = list(blocks(results, [3, 1, 2, 4], 2))

    assert [(ids, [row["number"] for row in rows]) for ids, rows in found] == [
        ([1, 2], [1, 5, 2, 6, 4]),
        ([3, 4], [0, 3]),
    ]
    assert [(ids, len(rows)) for ids, rows in blocks(results, [], 2)] == [([], 7)]


def test_an_image_id_of_more_than_64_bits_is_refused() -> None:
    """An overflow in the middle of an evaluation would not name its cause."""
    with pytest.raises(ValueError, match=f"image id {2**70}; an id must fit 64 bits"):
        evaluate({"images": [{"id": 2**70}], "categories": [], "annotations": []}, [])


def test_the_fast_engine_takes_empty_data_sets() -> None:
    """A subset without images, and a truth without categories, have no figures, but are no errors."""
    nothing = evaluate({"images": [], "annotations": [], "categories": []}, [])
    truth, _ = nasty(0)

    assert nothing["mask"] == nothing["boundary"] == evaluate({**truth, "categories": []}, [])["box"]
    assert nothing["mask"]["AP"] is None
    assert evaluate(truth, [], image_ids=[])["mask"]["AP"] is None


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
        ({"bbox": [1, 2, 3]}, r"image 1 has the bbox \[1, 2, 3\]; it must be 4 numbers"),
        ({"score": math.nan}, r"image 1 has the score nan; it must be a finite number"),
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
        ({"metrics": ["coco", "lvix"]}, "lvix; accepted are coco, boundary, pr"),
        ({"max_detections": 0}, "at least 1"),
        ({"engine": "quick"}, "engine is quick; accepted are fast, pycocotools"),
        ({"image_ids": [99]}, "image_ids names image 99"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], sentence: str, drawn: dict[str, Any]) -> None:
    """A metric with a slip in it would otherwise be left out without a word."""
    with pytest.raises(ValueError, match=sentence):
        evaluate(drawn, [], **settings)
