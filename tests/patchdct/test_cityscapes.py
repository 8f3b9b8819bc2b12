"""Cityscapes AP: the figures of cityscapesscripts, and each of its rules on drawn label maps."""

from __future__ import annotations

import copy
import importlib
import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from patchdct.categories import CITYSCAPES
from patchdct.errors import DataError
from patchdct.evaluate.cityscapes import evaluate

SIZE = (120, 160)
ROAD, SKY, VOID, PERSON, RIDER, CAR = 7, 23, 4, 24, 25, 26
Box = tuple[int, int, int, int]  # y0, x0, y1, x1


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def label_map(*regions: tuple[int, Box], rest: int = ROAD) -> bytes:
    """A gtFine label map, on which later regions cover earlier ones."""
    values = np.full(SIZE, rest, np.uint16)
    for value, (y0, x0, y1, x1) in regions:
        values[y0:y1, x0:x1] = value
    return png(values)


def encode(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def predicted(box: Box, score: float = 0.9, *, label: int = CAR, image_id: int = 1) -> dict[str, Any]:
    mask = np.zeros(SIZE, bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    return {"image_id": image_id, "category_id": label, "score": score, "segmentation": encode(mask)}


ONE, TWO, AWAY = (10, 10, 30, 30), (50, 50, 70, 70), (90, 90, 110, 110)
TWO_CARS = {1: label_map((CAR * 1000, ONE), (CAR * 1000 + 1, TWO))}


def random_scene(rng: np.random.Generator, image_id: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A label map with instances, groups, void and specks, and predictions that hit, miss, double and confuse."""
    height, width = 90, 140
    values = np.full((height, width), ROAD, np.uint16)
    values[:15] = VOID

    def draw(value: int, low: int, high: int) -> None:
        h, w = rng.integers(low, high, 2)
        y, x = rng.integers(0, height - h), rng.integers(0, width - w)
        values[y : y + h, x : x + w] = value

    # Pixels of the classes that Cityscapes leaves out too: caravan instances (29), license plates are not in the file.
    for value in (VOID, SKY, 29, 29001, PERSON, CAR):
        draw(value, 10, 50)
    for number in range(8):
        draw(int(rng.choice([PERSON, RIDER, CAR, 33])) * 1000 + number, 12, 40)
    for number in range(8, 11):
        draw(CAR * 1000 + number, 5, 9)

    rows = []
    for value in np.unique(values):
        label = value if value < 1000 else value // 1000
        for _ in range(rng.integers(0, 4)):
            mask = np.roll(values == value, rng.integers(-3, 4, 2), axis=(0, 1))
            told = int(label) if rng.random() < 0.85 else int(rng.choice([PERSON, RIDER, CAR, SKY, 27]))
            score = round(float(rng.random()), 1)  # so that some are equal
            rows.append({"image_id": image_id, "category_id": told, "score": score, "segmentation": encode(mask)})
    rows.append({**rows[0], "category_id": CAR, "segmentation": encode(np.zeros_like(values))})
    return values, rows


def reference(
    folder: Path, truth: dict[int, bytes], results: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The averages of cityscapesscripts, which reads a folder in Cityscapes' layout and a PNG for each prediction."""
    monkeypatch.chdir(folder)  # it writes into the working directory
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # which NumPy 2.4 has no more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = importlib.import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
        monkeypatch.setattr(script, "writeDict2JSON", lambda *_: None)  # trips over NumPy's whole numbers
        truth_files, text_files = [], []
        for image_id, content in truth.items():
            name = f"aachen_000000_{image_id:06d}"
            truth_files.append(folder / f"gtFine/val/aachen/{name}_gtFine_instanceIds.png")
            truth_files[-1].parent.mkdir(parents=True, exist_ok=True)
            truth_files[-1].write_bytes(content)
            lines = []
            for number, row in enumerate(row for row in results if row["image_id"] == image_id):
                (folder / f"{name}_{number}.png").write_bytes(png(255 * mask_api.decode(row["segmentation"])))
                lines.append(f"{name}_{number}.png {row['category_id']} {row['score']}\n")
            text_files.append(folder / f"{name}.txt")
            text_files[-1].write_text("".join(lines))
        args = copy.copy(script.args)
        args.quiet, args.JSONOutput, args.predictionPath = True, False, str(folder)
        args.gtInstancesFile = str(folder / "none.json")
        averages = script.evaluateImgLists([str(f) for f in text_files], [str(f) for f in truth_files], args)[
            "averages"
        ]
    return dict(averages)


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_cityscapesscripts(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that differ from cityscapesscripts' could not be compared with any published ones."""
    pytest.importorskip("cityscapesscripts", reason="cityscapesscripts is not installed")
    rng = np.random.default_rng(seed)
    scenes = {image_id: random_scene(rng, image_id) for image_id in (3, 1, 2, 7)}
    truth = {image_id: png(values) for image_id, (values, _) in scenes.items()}
    results = [row for _, rows in scenes.values() for row in rows]

    report = evaluate(truth, results)
    expected = reference(tmp_path, truth, results, monkeypatch)

    def measured(value: float) -> Any:
        return None if math.isnan(value) else pytest.approx(value, abs=1e-9)

    assert report["AP"] == measured(expected["allAp"])
    assert report["AP50"] == measured(expected["allAp50%"])
    assert report["per_class"] == {name: measured(expected["classes"][name]["ap"]) for _, name in CITYSCAPES}
    assert 0.1 < report["AP"] < report["AP50"] < 0.9


def test_perfect_predictions_reach_one() -> None:
    """A prediction equal to the truth that does not count fully means masks or labels are mixed up."""
    truth = {
        1: label_map((CAR * 1000, ONE), (PERSON * 1000, TWO)),
        2: label_map((CAR * 1000 + 7, AWAY), (CAR, ONE)),
    }
    results = [
        predicted(ONE, 0.3),
        predicted(TWO, 0.9, label=PERSON),
        predicted(AWAY, 0.6, image_id=2),
        predicted(ONE, 0.6, label=SKY),
    ]

    report = evaluate(truth, results)

    assert (report["AP"], report["AP50"]) == (1.0, 1.0)
    assert report["per_class"] == {name: None for _, name in CITYSCAPES} | {"car": 1.0, "person": 1.0}
    counts = {key: report[key] for key in ("images", "annotations", "results", "ignored_results")}
    assert counts == {"images": 2, "annotations": 3, "results": 3, "ignored_results": 1}


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        pytest.param([], 0.0, id="nothing found"),
        pytest.param([predicted(ONE)], 0.5, id="one of two found"),
        pytest.param([predicted(ONE, 0.9), predicted(AWAY, 0.8)], 0.5, id="an error after the hit"),
        # The curve goes from (0, 1) to (0, 0) to (1/2, 1/2).
        pytest.param([predicted(AWAY, 0.9), predicted(ONE, 0.8)], 0.125, id="an error before the hit"),
        # Equal scores are one point: from (0, 1) to (1/2, 1/2), whichever comes first.
        pytest.param([predicted(AWAY, 0.9), predicted(ONE, 0.9)], 0.375, id="an error of equal score"),
        pytest.param([predicted(ONE, 0.9), predicted(AWAY, 0.9)], 0.375, id="a hit of equal score"),
        # (1/2, 1), (1/2, 1/2), (1, 2/3)
        pytest.param(
            [predicted(TWO, 0.7), predicted(ONE, 0.8), predicted(ONE, 0.9)], 0.5 + (1 / 2 + 2 / 3) / 4, id="found twice"
        ),
        pytest.param([predicted(ONE, label=PERSON)], 0.0, id="another class"),
        # IoU 0.8, which exceeds 0.5, 0.55 ... 0.75
        pytest.param([predicted((10, 10, 26, 30)), predicted((50, 50, 66, 70))], 0.6, id="IoU of 0.8"),
        pytest.param([predicted((10, 10, 20, 30)), predicted((50, 50, 60, 70))], 0.0, id="IoU of 0.5, not more"),
    ],
)
def test_average_precision_by_hand(results: list[dict[str, Any]], expected: float) -> None:
    """What is found, missed, found twice or made up, on two cars of 400 pixels."""
    report = evaluate(TWO_CARS, results)

    assert report["per_class"]["car"] == pytest.approx(expected, abs=1e-12)
    assert report["annotations"] == 2


@pytest.mark.parametrize(
    ("regions", "box", "excused"),
    [
        pytest.param([], AWAY, 0, id="nothing there"),
        pytest.param([(VOID, AWAY)], AWAY, 10, id="on void"),
        pytest.param([(VOID, (90, 90, 110, 100))], AWAY, 0, id="half on void"),
        pytest.param([(VOID, (90, 90, 110, 104))], AWAY, 4, id="seven tenths on void"),
        pytest.param([(CAR, (80, 80, 120, 120))], AWAY, 10, id="in a group"),
        pytest.param([(PERSON, (80, 80, 120, 120))], AWAY, 0, id="in a group of another class"),
        pytest.param([(CAR * 1000 + 1, (90, 90, 99, 101))], (90, 90, 99, 101), 10, id="a speck of 99 pixels"),
        pytest.param([(PERSON * 1000, (90, 90, 99, 101))], (90, 90, 99, 101), 0, id="a speck of another class"),
        # Five ninths of the prediction, which cityscapesscripts counts as a group and as a speck.
        pytest.param([(CAR, (90, 90, 95, 100))], (90, 90, 99, 100), 10, id="a group that is a speck"),
    ],
)
def test_what_excuses_a_false_prediction(regions: list[tuple[int, Box]], box: Box, excused: int) -> None:
    """A model would be blamed for what annotators left open, or let off for what they did not.

    The false prediction is scored above the hit on the one car: at a threshold where it counts, the curve goes from
    (0, 0) to (1, 1/2) and AP is 1/4; where it is excused, 1.
    """
    report = evaluate({1: label_map((CAR * 1000, ONE), *regions)}, [predicted(box, 0.9), predicted(ONE, 0.8)])

    assert report["per_class"]["car"] == pytest.approx((excused + (10 - excused) / 4) / 10, abs=1e-12)
    assert report["annotations"] == 1


@pytest.mark.parametrize(("width", "wanted"), [(9, 0), (10, 1)])
def test_specks_need_not_be_found(width: int, wanted: int) -> None:
    """Objects below 100 pixels do not count in cityscapesscripts; with them, AP would be lower than published."""
    report = evaluate({1: label_map((CAR * 1000, (0, 0, 10, width)))}, [])

    assert report["annotations"] == wanted
    assert report["AP"] == (0.0 if wanted else None)


def test_a_class_with_excused_predictions_only_has_zero() -> None:
    """cityscapesscripts ends with an IndexError here: a weak model could not be measured."""
    truth = {1: label_map((CAR * 1000, ONE), (VOID, AWAY))}

    assert evaluate(truth, [predicted(AWAY)])["per_class"]["car"] == 0.0


def test_empty_masks_are_passed_over() -> None:
    """A mask of no pixel has no IoU; counted, it would be an error or a division by zero."""
    empty = predicted((0, 0, 0, 0), 1.0)

    assert evaluate(TWO_CARS, [empty, predicted(ONE), predicted(TWO)])["AP"] == 1.0


def test_masks_need_no_compression() -> None:
    """Results of other tools may hold COCO RLE as a list of counts."""
    height, width = SIZE
    whole = {"size": [height, width], "counts": [0, height * width]}
    result = {"image_id": 1, "category_id": CAR, "score": 0.5, "segmentation": whole}

    assert evaluate({1: label_map(rest=CAR * 1000)}, [result])["AP"] == 1.0


def test_arguments_are_left_as_they_were() -> None:
    """A caller who hands the same results to several metrics would get other figures."""
    results = [predicted(ONE), predicted(TWO)]
    before = copy.deepcopy(results)

    evaluate(TWO_CARS, results)

    assert results == before


SMALL_MASK = predicted(ONE) | {"segmentation": encode(np.ones((4, 4)))}


@pytest.mark.parametrize(
    ("truth", "results", "sentence"),
    [
        ({}, [], "truth has no images"),
        (TWO_CARS, [predicted(ONE, image_id=5)], "results names image 5, and the truth has no such image"),
        (TWO_CARS, [predicted(ONE, label=SKY)], "results names category 23, .* it has 8 with ids from 24 to 33"),
        (TWO_CARS, [SMALL_MASK], r"image 1 has a mask of \[4, 4\] .* the truth has the image as \[120, 160\]"),
        (TWO_CARS, [predicted(ONE) | {"segmentation": None}], "image 1 has no segmentation; COCO RLE"),
        ({1: b"GIF89a"}, [], "label map of image 1 is no PNG"),
        ({1: TWO_CARS[1][:-40]}, [], "label map of image 1 is a damaged PNG"),
        ({1: TWO_CARS[1][:20]}, [], "label map of image 1 is no PNG"),
        ({1: png(np.full(SIZE, CAR, np.uint8))}, [], "image 1 has not one channel of 16 bits; .*_gtFine_instanceIds"),
        ({1: label_map(rest=255)}, [], "image 1 has values that are no label of Cityscapes"),
        ({1: label_map(rest=34000)}, [], "image 1 has values that are no label of Cityscapes"),
    ],
)
def test_bad_input_is_named(truth: dict[int, bytes], results: list[dict[str, Any]], sentence: str) -> None:
    """Another folder of gtFine, or results of another data set, would be measured without a word, or end in a trace."""
    with pytest.raises(DataError, match=sentence):
        evaluate(truth, results)
