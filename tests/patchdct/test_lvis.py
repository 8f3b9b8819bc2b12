"""AP on LVIS: the figures of lvis-api, and each of its rules on masks that one can count."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_api

from patchdct.errors import DataError
from patchdct.evaluate.lvis import evaluate

SIZE = 120
CAR, CAT, DOG = 3, 17, 18
NAMES = {CAR: "car", CAT: "cat", DOG: "dog"}
Box = tuple[int, int, int, int]  # x, y, w, h
HERE, THERE = (10, 10, 20, 20), (60, 60, 20, 20)


def masked(box: Box) -> dict[str, Any]:
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
    rle = mask_api.encode(mask)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def image(image_id: int, *, negative: tuple[int, ...] = (), not_exhaustive: tuple[int, ...] = ()) -> dict[str, Any]:
    return {
        "id": image_id,
        "height": SIZE,
        "width": SIZE,
        "neg_category_ids": list(negative),
        "not_exhaustive_category_ids": list(not_exhaustive),
    }


def annotation(image_id: int, category_id: int, box: Box, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "segmentation": masked(box), "iscrowd": 0} | more


def result(image_id: int, category_id: int, box: Box, score: float, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "segmentation": masked(box), "score": score} | more


def federated(images: list[dict[str, Any]], annotations: list[dict[str, Any]], **frequencies: str) -> dict[str, Any]:
    categories = [
        {"id": category_id, "name": name} | ({"frequency": frequencies[name]} if name in frequencies else {})
        for category_id, name in NAMES.items()
    ]
    rows = [row | {"id": number} for number, row in enumerate(annotations, start=1)]
    return {"images": images, "annotations": rows, "categories": categories}


def random_data(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A federated truth, and results that hit, miss, double, confuse, are empty or of an unknown category."""
    rng = np.random.default_rng(seed)
    ids = [2, 5, 7, 30, 44, 90]
    unknown = 91

    def box() -> Box:
        x, y = (int(place) for place in rng.integers(0, SIZE - 5, 2))
        w, h = (int(side) for side in rng.integers(4, 110, 2))
        return x, y, w, h

    images, annotations, results = [], [], []
    for image_id in (9, 4, 1, 12, 30, 31, 32, 33):
        order = [int(category_id) for category_id in rng.permutation(ids)]
        positive, negative = order[: rng.integers(0, 4)], order[4 : rng.integers(4, 6)]
        images.append(image(image_id, negative=(*negative, 77), not_exhaustive=(*positive[:1], order[5])))
        for category_id in positive:
            for _ in range(rng.integers(1, 6)):
                x, y, w, h = box()
                area = float(mask_api.area(masked((x, y, w, h)))) * float(rng.choice([0.0, 1.0, 1.0, 1.0, 1.3]))
                annotations.append(annotation(image_id, category_id, (x, y, w, h), area=area))
                for _ in range(rng.integers(0, 3)):
                    moved = (max(x + int(rng.integers(-4, 5)), 0), y, w, h)
                    told = category_id if rng.random() < 0.8 else int(rng.choice(ids))
                    results.append(result(image_id, told, moved, round(float(rng.random()), 1)))
        for _ in range(12):
            place = box() if rng.random() < 0.8 else (0, 0, 0, 0)
            results.append(result(image_id, int(rng.choice([*ids, unknown])), place, round(float(rng.random()), 1)))
    truth = {
        "images": images,
        "annotations": [row | {"id": number} for number, row in enumerate(annotations, start=1)],
        "categories": [
            {"id": category_id, "name": f"c{category_id}", "frequency": "rrccff"[k]}
            for k, category_id in enumerate(ids)
        ],
    }
    return truth, [results[k] for k in rng.permutation(len(results))]


@pytest.mark.parametrize("max_detections", [300, 12])
@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_lvis_api(
    seed: int, max_detections: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures that differ from lvis-api's could not be compared with any published ones."""
    monkeypatch.setattr(np, "float", float, raising=False)  # which NumPy has no more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lvis = pytest.importorskip("lvis", reason="lvis is not installed: it would replace opencv-python-headless")
        truth, results = random_data(seed)
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(truth))
        ground = lvis.LVIS(str(path))
        found = lvis.LVISResults(ground, copy.deepcopy(results), max_dets=max_detections)
        evaluator = lvis.LVISEval(ground, found, "segm")
        evaluator.run()
    expected = {name: value for name, value in evaluator.get_results().items() if name.startswith("AP")}

    report = evaluate(truth, results, max_detections=max_detections)

    assert len(expected) == 9
    assert {name: -1 if report[name] is None else report[name] for name in expected} == pytest.approx(
        expected, abs=1e-9
    )
    assert 0.02 < report["AP"] < report["AP50"] < 0.9


def test_perfect_predictions_reach_one() -> None:
    """A prediction equal to the truth that does not count fully means masks are shifted or ids are mixed up."""
    polygon = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
    counts = {"size": [SIZE, SIZE], "counts": [0, SIZE * SIZE]}
    truth = federated(
        [image(1), image(2)],
        [
            annotation(1, CAR, HERE, segmentation=polygon),
            annotation(1, CAR, THERE),
            annotation(2, DOG, HERE, segmentation=counts),
        ],
        car="f",
        cat="r",
        dog="c",
    )
    results = [result(1, CAR, HERE, 0.3), result(1, CAR, THERE, 0.9), result(2, DOG, (0, 0, SIZE, SIZE), 0.1)]

    report = evaluate(truth, [*results, result(2, 99, HERE, 0.5)])

    ones = {name: report[name] for name in ("AP", "AP50", "AP75", "APs", "APl", "APc", "APf")}
    assert ones == pytest.approx(dict.fromkeys(ones, 1.0))
    assert report["APm"] is None
    assert report["APr"] is None
    assert report["per_class"] == {"car": pytest.approx(1.0), "cat": None, "dog": pytest.approx(1.0)}
    counts = {key: value for key, value in report.items() if isinstance(value, int)}
    assert counts == {
        "images": 2,
        "annotations": 3,
        "results": 3,
        "ignored_results": 1,
        "unjudged_results": 0,
        "max_detections": 300,
    }


@pytest.mark.parametrize(
    ("first", "expected", "unjudged"),
    [
        pytest.param(image(1), 1.0, 1, id="the image says nothing about dogs"),
        pytest.param(image(1, not_exhaustive=(DOG,)), 1.0, 1, id="nothing about how many"),
        pytest.param(image(1, negative=(DOG,)), 0.5, 0, id="there is no dog"),
        pytest.param(image(1, negative=(CAT,)), 1.0, 1, id="there is no cat"),
    ],
)
def test_a_category_is_judged_where_the_image_tells_of_it(
    first: dict[str, Any], expected: float, unjudged: int
) -> None:
    """Most objects of an LVIS image are not annotated: predictions of those would all be errors.

    A dog in image 1 is scored above the right one in image 2: where it is judged, precision is 1/2 at every recall.
    """
    truth = federated([first, image(2)], [annotation(1, CAR, HERE), annotation(2, DOG, HERE)])

    report = evaluate(truth, [result(1, DOG, THERE, 0.9), result(2, DOG, HERE, 0.8)])

    assert report["per_class"] == {"car": 0.0, "cat": None, "dog": pytest.approx(expected)}
    assert (report["results"], report["unjudged_results"]) == (2, unjudged)


@pytest.mark.parametrize(
    ("not_exhaustive", "results", "expected"),
    [
        # Of the recall levels 0, 0.01 ... 1 those to 0.5 are reached, 51 of 101.
        ((), [result(1, CAR, (90, 90, 20, 20), 0.9), result(1, CAR, HERE, 0.8)], 51 / 101 / 2),
        ((CAR,), [result(1, CAR, (90, 90, 20, 20), 0.9), result(1, CAR, HERE, 0.8)], 51 / 101),
        ((CAR,), [result(1, CAR, HERE, 0.9), result(1, CAR, HERE, 0.8)], 51 / 101),
        ((CAR,), [], 0.0),
        ((DOG,), [result(1, CAR, (90, 90, 20, 20), 0.9), result(1, CAR, HERE, 0.8)], 51 / 101 / 2),
    ],
    ids=["exhaustive", "unmatched", "found twice", "missed", "another category"],
)
def test_more_of_a_category_than_annotated_is_no_error(
    not_exhaustive: tuple[int, ...], results: list[dict[str, Any]], expected: float
) -> None:
    """Where not every car is annotated, further ones may be there; but those that are annotated must be found."""
    first = image(1, not_exhaustive=not_exhaustive)
    truth = federated([first], [annotation(1, CAR, HERE), annotation(1, CAR, THERE)])

    assert evaluate(truth, results)["per_class"]["car"] == pytest.approx(expected)


@pytest.mark.parametrize(("max_detections", "expected"), [(2, 0.0), (3, 1.0)])
def test_the_limit_holds_for_an_image_over_all_categories(max_detections: int, expected: float) -> None:
    """COCO limits each category alone; on LVIS that would let a model name everything everywhere."""
    truth = federated([image(1), image(2)], [annotation(1, CAR, HERE), annotation(2, DOG, HERE)])
    results = [
        result(1, CAR, HERE, 0.7),
        result(1, CAT, HERE, 0.9),
        result(1, 99, HERE, 0.8),
        result(2, DOG, HERE, 0.1),
    ]

    report = evaluate(truth, results, max_detections=max_detections)

    assert report["per_class"]["car"] == pytest.approx(expected)
    assert report["per_class"]["dog"] == pytest.approx(1.0)
    assert (report["results"], report["ignored_results"]) == (max_detections, 1)


def test_more_than_three_hundred_results_can_count() -> None:
    """hotcoco has a limit of its own, of 300, which would hold whatever was asked for."""
    truth = federated([image(1, negative=(CAT,))], [annotation(1, CAR, HERE)])
    results = [result(1, CAT, THERE, 0.9)] * 300 + [result(1, CAR, HERE, 0.1)]

    found = {limit: evaluate(truth, results, max_detections=limit)["AP"] for limit in (300, 301)}

    assert found == {300: 0.0, 301: pytest.approx(1.0)}


def test_a_crowd_is_an_annotation_like_others() -> None:
    """LVIS has no crowds; one that came along with COCO would excuse any number of predictions."""
    truth = federated([image(1)], [annotation(1, CAR, (0, 0, 100, 100), iscrowd=1)])
    inside = [result(1, CAR, HERE, 0.9), result(1, CAR, THERE, 0.8)]

    assert evaluate(truth, inside)["per_class"]["car"] == 0.0
    assert evaluate(truth, [*inside, result(1, CAR, (0, 0, 100, 100), 0.7)])["AP"] == pytest.approx(1 / 3)


def test_the_size_of_a_prediction_is_that_of_its_mask() -> None:
    """By a box around scattered pixels, small errors would count among large objects."""
    truth = federated([image(1)], [annotation(1, CAR, (0, 0, 100, 100))])
    results = [result(1, CAR, (105, 105, 5, 5), 0.9, bbox=[0, 0, 119, 119]), result(1, CAR, (0, 0, 100, 100), 0.8)]

    report = evaluate(truth, results)

    assert (report["AP"], report["APl"]) == (pytest.approx(0.5), pytest.approx(1.0))


def test_masks_without_a_pixel_do_not_count() -> None:
    """A model's empty mask would be an error, and an empty annotation an object that nobody can find."""
    nothing = (0, 0, 0, 0)
    truth = federated([image(1)], [annotation(1, CAR, HERE), annotation(1, CAR, nothing), annotation(1, DOG, nothing)])

    report = evaluate(truth, [result(1, CAR, nothing, 0.9), result(1, CAR, HERE, 0.8)])

    assert report["per_class"] == {"car": pytest.approx(1.0), "cat": None, "dog": None}
    assert report["annotations"] == 1


def test_a_mask_that_fits_less_counts_at_the_lower_thresholds() -> None:
    """AP50 or AP75 of another threshold would not be what their names say."""
    truth = federated([image(1)], [annotation(1, CAR, HERE)])

    report = evaluate(truth, [result(1, CAR, (10, 10, 20, 15), 0.9)])  # IoU 0.75: at six of ten thresholds

    assert [report[name] for name in ("AP", "AP50", "AP75")] == pytest.approx([0.6, 1.0, 1.0])


def test_frequencies_group_the_categories() -> None:
    """APr, APc and APf over the wrong categories would hide how rare ones fare; without frequency there are none."""
    annotations = [annotation(1, CAR, HERE), annotation(1, CAT, THERE), annotation(1, DOG, HERE)]
    results = [result(1, CAR, HERE, 0.9), result(1, DOG, THERE, 0.9)]

    report = evaluate(federated([image(1)], annotations, car="r", cat="f", dog="r"), results)
    without = evaluate(federated([image(1)], annotations), results)

    assert [report[name] for name in ("APr", "APc", "APf")] == [pytest.approx(0.5), None, 0.0]
    assert [without[name] for name in ("APr", "APc", "APf")] == [None, None, None]
    assert report["AP"] == without["AP"] == pytest.approx(1 / 3)


def test_images_can_be_chosen() -> None:
    """A run that labelled a part of the data set would be blamed for the rest."""
    truth = federated([image(1), image(2)], [annotation(1, CAR, HERE), annotation(2, CAR, HERE)])

    report = evaluate(truth, [result(1, CAR, HERE, 0.9), result(2, CAR, THERE, 0.9)], image_ids=[1])

    assert (report["images"], report["results"], report["AP"]) == (1, 1, pytest.approx(1.0))


def test_arguments_are_left_as_they_were_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output is for the report; and a caller who measures twice would get other figures."""
    truth, results = random_data(0)
    before = copy.deepcopy((truth, results))

    evaluate(truth, results)

    assert (truth, results) == before
    assert capfd.readouterr() == ("", "")


def test_no_predictions_are_zero_not_a_crash() -> None:
    """An untrained model finds nothing, and its evaluation must still say so."""
    truth = federated([image(1)], [annotation(1, CAR, HERE)])

    assert evaluate(truth, [])["AP"] == 0.0
    assert evaluate(truth | {"annotations": []}, [])["AP"] is None


BARE = federated([{"id": 6, "height": SIZE, "width": SIZE, "neg_category_ids": []}], [])


@pytest.mark.parametrize(
    ("truth", "results", "options", "sentence"),
    [
        (BARE, [], {}, "Image 6 of the truth has no not_exhaustive_category_ids; the metric lvis needs"),
        (federated([image(1)], []), [], {"max_detections": 0}, "max_detections is 0; it must be at least 1"),
        (federated([image(1)], []), [result(2, CAR, HERE, 0.5)], {}, "results names image 2, and the truth has no"),
    ],
)
def test_bad_input_is_named(
    truth: dict[str, Any], results: list[dict[str, Any]], options: dict[str, Any], sentence: str
) -> None:
    """COCO's own annotations, measured by this metric, would judge nothing and end in a KeyError."""
    with pytest.raises(DataError, match=sentence):
        evaluate(truth, results, **options)
