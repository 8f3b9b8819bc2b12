"""Curves of precision over recall, and the scores that they lead to."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from patchdct.evaluate import evaluate
from tests.patchdct.evaluated import accumulated, block, nasty


def one_class(*scores: float, objects: int = 4) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects in a row, found from the first on with these scores; a negative score is that of a miss."""
    places = [block(100, 10, 10 + 20 * i, 10, 10) for i in range(objects)]
    common = {"image_id": 1, "category_id": 2}
    truth = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 2, "name": "thing"}, {"id": 3, "name": "absent"}],
        "annotations": [{**common, "segmentation": place} for place in places],
    }
    left, miss = iter(places), block(100, 80, 80, 10, 10)
    results = [{**common, "segmentation": miss if s < 0 else next(left), "score": abs(s)} for s in scores]
    return truth, results


@pytest.mark.parametrize(("seed", "limit"), [(1, 100), (5, 2)])
@pytest.mark.parametrize("engine", ["fast", "pycocotools"])
def test_curves_are_those_of_pycocotools(engine: str, seed: int, limit: int) -> None:
    """A curve of another IoU, size or category would show an operating point that the model does not have."""
    truth, results = nasty(seed)

    pr = evaluate(truth, results, metrics=["pr"], max_detections=limit, engine=engine)["pr"]

    expected = accumulated(truth, results, "segm", limit)
    precision, scores = (expected.eval[name][:, :, :, 0, 0] for name in ("precision", "scores"))
    names = {row["id"]: row["name"] for row in truth["categories"]}
    measured = [k for k in range(len(names)) if precision[0, 0, k] > -1]
    assert pr["recall"] == pytest.approx(expected.params.recThrs.tolist(), abs=0)
    assert pr["precision50"] == pytest.approx(precision[0][:, measured].mean(axis=1), abs=1e-9)
    assert pr["precision75"] == pytest.approx(precision[5][:, measured].mean(axis=1), abs=1e-9)
    assert pr["precision"] == pytest.approx(precision[..., measured].mean(axis=(0, 2)), abs=1e-9)
    assert 0 < len(measured) < len(names)
    for k, category_id in enumerate(expected.params.catIds):
        section = pr["per_class"][names[category_id]]
        if k not in measured:
            assert section is None
            continue
        assert section["precision50"] == pytest.approx(precision[0, :, k], abs=1e-9)
        assert section["precision75"] == pytest.approx(precision[5, :, k], abs=1e-9)
        assert section["precision"] == pytest.approx(precision[..., k].mean(axis=0), abs=1e-9)
        reached = precision[0, :, k] > 0
        assert [score for score in section["score"] if score is not None] == scores[0, reached, k].tolist()
        assert [score is not None for score in section["score"]] == reached.tolist()


@pytest.mark.parametrize("seed", [1, 5, 6])
def test_no_threshold_gives_a_higher_f1(seed: int) -> None:
    """A score from inside a tie, or from a curve already smoothed, promises an F1 that a user never sees."""
    truth, results = nasty(seed, images=8)
    best = evaluate(truth, results, metrics=["pr"])["pr"]["per_class"]

    tried: dict[str, list[tuple[float, float]]] = {row["name"]: [] for row in truth["categories"]}
    for score in sorted({row["score"] for row in results}, reverse=True):
        kept = accumulated(truth, [row for row in results if row["score"] >= score], "segm")
        for k, category_id in enumerate(kept.params.catIds):
            images = [one for one in kept.evalImgs[k * 4 * len(truth["images"]) :][: len(truth["images"])] if one]
            wanted = sum(int((one["gtIgnore"] == 0).sum()) for one in images)
            right = sum(int(((one["dtMatches"][0] > 0) & ~one["dtIgnore"][0]).sum()) for one in images)
            wrong = sum(int(((one["dtMatches"][0] == 0) & ~one["dtIgnore"][0]).sum()) for one in images)
            if wanted:
                tried[kept.cocoGt.cats[category_id]["name"]].append((2 * right / (right + wrong + wanted), score))

    for name, points in tried.items():
        if not points:
            assert best[name] is None
            continue
        f1 = max(value for value, _ in points)
        found = best[name]["best_f1"]
        assert found["f1"] == pytest.approx(f1, abs=1e-12)
        if f1:
            assert found["score"] == max(score for value, score in points if value == pytest.approx(f1, abs=1e-12))
            two = found["precision"], found["recall"]
            assert 2 * two[0] * two[1] / (two[0] + two[1]) == pytest.approx(f1, abs=1e-12)


def test_best_f1_of_a_small_example() -> None:
    """Precision and recall must be those from the score named, whose own prediction counts."""
    truth, results = one_class(0.9, -0.8, 0.7, 0.6, -0.5)

    section = evaluate(truth, results, metrics=["pr"])["pr"]["per_class"]["thing"]

    assert section["best_f1"] == pytest.approx({"f1": 0.75, "score": 0.6, "precision": 0.75, "recall": 0.75})
    two = evaluate(truth, results, metrics=["pr"], max_detections=2)["pr"]["per_class"]["thing"]["best_f1"]
    assert two == pytest.approx({"f1": 0.4, "score": 0.9, "precision": 1.0, "recall": 0.25})
    assert section["score"][:26] == [0.9] * 26
    assert section["score"][26:51] == [0.7] * 25
    assert section["score"][51:76] == [0.6] * 25
    assert section["score"][76:] == [None] * 25


def test_predictions_of_one_score_are_kept_together() -> None:
    """The better half of a tie cannot be had by any threshold."""
    truth, results = one_class(0.5, 0.5, -0.5, -0.5, objects=2)

    best = evaluate(truth, results, metrics=["pr"])["pr"]["per_class"]["thing"]["best_f1"]

    assert best == pytest.approx({"f1": 2 / 3, "score": 0.5, "precision": 0.5, "recall": 1.0})


@pytest.mark.parametrize("scores", [(), (-0.9, -0.8)])
def test_where_nothing_is_found_there_is_no_score(scores: tuple[float, ...]) -> None:
    """COCOeval's 0 for a recall that is not reached would read as a threshold that keeps everything."""
    truth, results = one_class(*scores)

    section = evaluate(truth, results, metrics=["pr"])["pr"]["per_class"]["thing"]

    assert section["best_f1"] == {"f1": 0.0, "score": None, "precision": 0.0, "recall": 0.0}
    assert section["score"] == [None] * 101
    assert section["precision50"] == [0.0] * 101


def test_what_the_truth_does_not_have_is_none() -> None:
    """A flat curve for a class without objects would read as a failure of the model; and JSON knows no NaN."""
    truth, results = one_class(0.9)

    pr = evaluate(truth, results, metrics=["pr"])["pr"]
    nothing = evaluate({**truth, "annotations": []}, results, metrics=["pr"])["pr"]

    assert pr["per_class"]["absent"] is None
    assert (nothing["precision"], nothing["precision50"], nothing["precision75"]) == (None, None, None)
    assert nothing["per_class"] == {"thing": None, "absent": None}
    assert json.loads(json.dumps(pr, allow_nan=False)) == pr
    assert np.mean(pr["precision50"]) == pytest.approx(26 / 101)
