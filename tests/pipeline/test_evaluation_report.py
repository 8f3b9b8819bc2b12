"""The pages of an evaluation: every figure where it belongs, and pictures that say the same as the figures."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from patchdct.evaluate import image_quality
from pipeline import reports
from pipeline.records import Category
from pipeline.reports import figures, markdown, pictures, sections
from pipeline.store import Store

CATEGORIES = (Category(id=1, name="cat"), Category(id=2, name="dog"))
SIZE = (60, 80)


def section(ap: float | None, per_class: dict[str, float | None]) -> dict[str, Any]:
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR", "ARs", "ARm", "ARl")
    return {**dict.fromkeys(names, ap), "APl": None, "per_class": per_class}


def report(**more: Any) -> dict[str, Any]:
    return {
        "images": 2,
        "annotations": 3,
        "results": 1234,
        "ignored_results": 0,
        "max_detections": 100,
        "provenance": {
            "predictions": {"uri": "runs/a_b", "kind": "labeling run", "sha256": None},
            "truth": {"uri": "truth.json", "sha256": "0" * 64},
            "version": "1.2.3",
            "date": "2026-01-01T00:00:00+00:00",
            "settings": {"metrics": ["coco"]},
        },
        **more,
    }


def written(folder: Path, content: dict[str, Any], examples: list[reports.Example] | None = None) -> tuple[str, str]:
    """The Markdown and the HTML of a report."""
    reports.write(Store(), str(folder), content, examples or [], "about the images")
    assert json.loads((folder / "report.json").read_text()) == content
    return (folder / "report.md").read_text(), (folder / "report.html").read_text()


def rectangle(category_id: int, box: tuple[int, int, int, int], **more: Any) -> dict[str, Any]:
    x, y, w, h = box
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = mask_api.encode(mask)
    return {
        "image_id": 1,
        "category_id": category_id,
        "segmentation": {"size": [*SIZE], "counts": rle["counts"].decode()},
        **more,
    }


def png(folder: Path, height: int = SIZE[0], width: int = SIZE[1]) -> str:
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(folder / "image.png")
    return str(folder / "image.png")


def decoded(jpeg: bytes | None) -> np.ndarray[Any, Any]:
    assert jpeg is not None
    return np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)


def test_all_sections_are_on_both_pages(tmp_path: Path) -> None:
    """A figure that was measured and is missing from the page is a figure that nobody sees."""
    curve = [0.9] * 51 + [0.1] * 50
    best = {"f1": 0.777, "score": 0.42, "precision": 0.8, "recall": 0.75}
    lvis = {"AP": 0.408, "AP50": 0.6, "APr": None, "APf": 0.45, "images": 2, "per_class": {"cat": 0.3, "dog": 0.5}}
    bound = {"mask_iou": 0.98765, "boundary_iou": 0.9, "mask": {"AP": 0.95}, "boundary": {"AP": None}}
    text, html = written(
        tmp_path,
        report(
            mask=section(0.372, {"cat": None, "dog": 0.25, "bird": 0.5}),
            boundary=section(0.231, {"cat": None, "dog": 0.2, "bird": 0.4}),
            box=section(0.401, {"cat": None, "dog": 0.3, "bird": 0.6}),
            pr={
                "recall": [i / 100 for i in range(101)],
                "precision": curve,
                "precision50": curve,
                "precision75": curve,
                "per_class": {"cat": None, "dog": {"best_f1": best}, "bird": {"best_f1": {"f1": 0.0, "score": None}}},
            },
            lvis=lvis,
            cityscapes={"AP": 0.382, "AP50": 0.65, "per_class": {"car": 0.5, "bus": None}},
            upper_bound={"instances": 7, "encodings": {"DCT-300": {**bound, "numbers": 300.0, "bytes": 1200.0}}},
            instances_per_class={"cat": 0, "dog": 5, "bird": 9},
            matches={"score": 0.5, "found": 4, "missed": 3, "spurious": 2, "mean_iou": 0.8123},
            notes=["one thing to know"],
        ),
    )
    assert "| mask | 37.2 | 37.2 | 37.2 | 37.2 | 37.2 | - |" in text
    classes = [line for line in text.splitlines() if re.match(r"\| (cat|dog|bird) \|", line)][:3]
    assert classes == [
        "| bird | 9 | 50.0 | 40.0 | 60.0 | 0.0 | - |",
        "| dog | 5 | 25.0 | 20.0 | 30.0 | 77.7 | 0.42 |",
        "| cat | 0 | - | - | - | - | - |",
    ]
    assert "| DCT-300 | 98.77 | 90.00 | 95.00 | - | 300 | 1200 |" in text
    for figure in ("40.8", "38.2", "81.2", "one thing to know", "0" * 64, "1.2.3", "77.7"):
        assert figure in text
        assert figure in html
    for title in ("Average precision", "By class", "LVIS", "Cityscapes", "Upper bound", "Counts", "Worst images"):
        assert f"<h2>{title}</h2>" in html
    assert [name for name in ("mask AP", "LVIS AP", "Cityscapes AP") if f"<small>{name}</small>" in html] == [
        "mask AP",
        "LVIS AP",
        "Cityscapes AP",
    ]
    for encoded in re.findall(r"data:image/png;base64,([^\"]+)", html):
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).format == "PNG"


def test_a_truth_without_objects_has_a_page(tmp_path: Path) -> None:
    """Nothing to find is a dash, not a traceback after an hour of labeling."""
    nothing = {
        "recall": [0.0, 1.0],
        "precision": None,
        "precision50": None,
        "precision75": None,
        "per_class": {"a": None},
    }
    matches = {"score": 0.5, "found": 0, "missed": 0, "spurious": 9, "mean_iou": None}
    text, html = written(tmp_path, report(mask=section(None, {"a": None}), pr=nothing, matches=matches))
    assert "| mask | - | - | - | - | - | - |" in text
    assert "data:image/png" not in html


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Names come from outside: neither HTML, nor Markdown, nor the plots may take them for their own."""
    evil = "<blink>&\"' | `x` $\\frac$ [a](b) 猫 \ud800 \n_"
    notes = ["<i>note</i>"]
    example = reports.Example(title="<u>.png", caption="<s>", problem="<em>")
    text, html = written(tmp_path, report(mask=section(0.5, {evil: 0.5}), notes=notes), [example])
    for tag in ("<blink>", "<i>", "<u>", "<s>", "<em>"):
        assert tag not in html
        assert tag not in text
    assert "&lt;blink&gt;&amp;&quot;&#x27; | `x` $\\frac$ [a](b) 猫" in html
    (row,) = [line for line in text.splitlines() if "猫" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 4  # the name, instances and one figure


def test_many_classes_make_a_plot_that_can_be_read() -> None:
    """LVIS has a thousand classes, and a plot of all of them could not be drawn."""
    names = [f"class {number}" for number in range(1000)]
    one = figures.bars(names, {"mask": [1 - number / 1000 for number in range(1000)]}, title="AP", x_label="AP")
    width, height = Image.open(io.BytesIO(one)).size
    assert height < 4 * width


def test_pictures_agree_with_the_figures() -> None:
    """A picture whose red boxes are others than those that the caption counts would explain nothing."""
    rng = np.random.default_rng(3)

    def some(count: int, **more: Any) -> list[dict[str, Any]]:
        boxes = rng.integers((0, 0, 12, 12), (50, 35, 30, 24), (count, 4)).tolist()
        return [rectangle(int(rng.integers(1, 3)), (x, y, w, h), **more) for x, y, w, h in boxes]

    seen = set()
    for _ in range(60):
        truth = [*some(8, iscrowd=0), *some(1, iscrowd=1)]
        results = [{**row, "score": float(rng.random())} for row in some(12)]
        document = {
            "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
            "annotations": truth,
            "categories": [{"id": one.id, "name": one.name} for one in CATEGORIES],
        }
        (quality,) = image_quality(document, results, score=0.0)
        found = pictures.instances(results, *SIZE)
        real = pictures.instances([row for row in truth if not row["iscrowd"]], *SIZE)
        crowds = pictures.instances([row for row in truth if row["iscrowd"]], *SIZE)
        partners, excused = pictures.match(found, real, crowds, SIZE)
        right = sum(index is not None for index in partners)
        assert (right, len(real) - right) == (quality.true_positives, quality.missed)
        assert partners.count(None) - len(excused) == quality.spurious
        seen.add((right > 0, bool(excused)))
    assert {(True, True), (True, False)} <= seen, "the trials met both cases"


def test_an_example_marks_what_has_no_partner(tmp_path: Path) -> None:
    """What was missed or is spurious must be seen at once, and a prediction must look like the object that it found."""
    both, missed, spurious = (5, 5, 20, 20), (50, 5, 20, 20), (40, 35, 20, 20)
    example = reports.example(
        "a",
        "b",
        uri=png(tmp_path),
        size=SIZE,
        truth=[rectangle(2, missed), rectangle(1, both), rectangle(1, (5, 35, 20, 20), iscrowd=1)],
        predictions=[
            rectangle(1, spurious, score=0.9),
            rectangle(1, both, score=0.6),
            rectangle(1, (8, 38, 9, 9), score=0.7),
        ],
        categories=CATEGORIES,
        store=Store(),
    )
    scale = decoded(dict(example.pictures)["truth"]).shape[0] // SIZE[0]

    def is_marked(picture: np.ndarray[Any, Any], box: tuple[int, int, int, int]) -> bool:
        """Whether the left edge of a box is red."""
        x, y, _, h = box
        edge = picture[(y + 4) * scale : (y + h - 4) * scale, x * scale - 2 : x * scale]
        return bool(np.abs(edge - pictures.RED).max(axis=-1).mean() < 60)

    truth, predictions = decoded(dict(example.pictures)["truth"]), decoded(dict(example.pictures)["predictions"])
    assert [is_marked(truth, box) for box in (both, missed)] == [False, True]
    assert [is_marked(predictions, box) for box in (both, spurious, (8, 38, 9, 9))] == [False, True, False]
    middle = np.s_[15 * scale : 18 * scale, 13 * scale : 16 * scale]
    assert np.abs(truth[middle] - predictions[middle]).max() < 12
    assert np.abs(truth[middle] - 90).max() > 30


@pytest.mark.parametrize(("height", "width"), [(1024, 2048), (40, 40), (300, 20)])
def test_a_picture_suits_the_page(tmp_path: Path, height: int, width: int) -> None:
    """Large images would make a page that no browser opens, and small ones could not be seen."""
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[: height // 2] = 1
    rle = mask_api.encode(mask)
    row = {"image_id": 1, "category_id": 1, "segmentation": {**rle, "counts": rle["counts"].decode()}, "score": 0.8}
    left, top = width // 2, int(0.7 * height)  # of an object that is missed
    example = reports.example(
        "a",
        "b",
        uri=png(tmp_path, height, width),
        size=(height, width),
        truth=[
            {**row, "segmentation": [[0, 0, width, 0, width, height // 2, 0, height // 2]]},
            {**row, "segmentation": [[left, top, left + width // 4, top, left + width // 4, height, left, height]]},
        ],
        predictions=[row],
        categories=CATEGORIES,
        store=Store(),
    )
    for picture in (decoded(dict(example.pictures)["truth"]), decoded(dict(example.pictures)["predictions"])):
        assert pictures.LONG_SIDE / 2 <= max(picture.shape) <= 1.5 * pictures.LONG_SIDE
        assert picture.shape[0] / picture.shape[1] == pytest.approx(height / width, rel=0.02)
        inside, outside = (picture[int(share * picture.shape[0])].mean(axis=0) for share in (0.25, 0.6))
        assert np.abs(inside - 90).max() > 30 > np.abs(outside - 90).max()
    truth = decoded(dict(example.pictures)["truth"])
    factor = truth.shape[0] / height
    edge = truth[int(0.85 * truth.shape[0]), int(left * factor) - 3 : int(left * factor) + 2]
    assert np.abs(edge - pictures.RED).max(axis=-1).min() < 60


def test_an_image_may_have_hundreds_of_objects(tmp_path: Path) -> None:
    """Images of cells do, and pycocotools' area of more than 255 masks at once fails with NumPy 2."""
    rows = [rectangle(1, (x, y, 3, 3), score=0.9) for x in range(0, 76, 4) for y in range(0, 56, 4)]
    example = reports.example(
        "a", "b", uri=png(tmp_path), size=SIZE, truth=rows, predictions=rows, categories=CATEGORIES, store=Store()
    )
    assert len(rows) > 255
    assert np.abs(decoded(dict(example.pictures)["truth"]) - decoded(dict(example.pictures)["predictions"])).max() < 12


def test_an_image_that_cannot_be_shown_says_why(tmp_path: Path) -> None:
    """One image that is gone or has changed must not cost the whole report."""
    (tmp_path / "text.png").write_bytes(b"this is no image")
    for uri, size, reason in (
        (str(tmp_path / "no.png"), SIZE, "no such file"),
        (str(tmp_path / "text.png"), SIZE, "not_an_image"),
        (png(tmp_path), (60, 79), "the image has 80 x 60 pixels, and its truth is for 79 x 60"),
        (None, SIZE, "the image is not there"),
    ):
        example = reports.example(
            "a", "b", uri=uri, size=size, truth=[], predictions=[], categories=CATEGORIES, store=Store()
        )
        assert example.pictures == ()
        assert reason in (example.problem or "")


def test_a_table_of_markdown_keeps_its_columns() -> None:
    """A name with a bar in it would shift all figures of its row."""
    table = sections.Table(columns=("class", "AP"), rows=(("a|b\nc", sections.Percent(0.5)),))
    assert markdown.table(table).splitlines()[-1] == r"| a\|b c | 50.0 |"
