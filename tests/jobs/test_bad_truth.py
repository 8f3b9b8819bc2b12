"""Annotations and predictions that cannot be measured or trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import evaluate, train
from pipeline.store import Store
from tests.refusals import NO_SUCH_FILE, REPOSITORY, Refused, tree
from tests.small_runs import make_run

IMAGE = {"id": 1, "file_name": "0-0.png", "height": 32, "width": 48}
OBJECT = {"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], "bbox": [1, 1, 8, 8]}
TRUTH: dict[str, Any] = {"images": [IMAGE], "annotations": [OBJECT], "categories": [{"id": 1, "name": "bright"}]}
RESULT = {**OBJECT, "score": 0.5}
NO_COUNTS = {**OBJECT, "segmentation": {"size": [32, 48], "counts": "zzzz\u00ff"}}
NO_SUM = {**OBJECT, "segmentation": {"size": [32, 48], "counts": [3, 4]}}


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """A config of `jobs.evaluate` that is all right."""
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    (tmp_path / "results.json").write_text(json.dumps([RESULT]))
    raw = {
        "predictions": "results.json",
        "truth": {"annotations": "truth.json"},
        "metrics": ["coco"],
        "output": "report",
    }
    path = tmp_path / "evaluate.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize(
    ("truth", "sentence"),
    [
        ([1, 2], "is no COCO json: it must be an object"),
        ({**TRUTH, "categories": None}, "is no COCO json: categories must be a list"),
        ({"images": [], "annotations": []}, "is no COCO json: categories is missing"),
        ({**TRUTH, "images": [{"id": 1}]}, "is no COCO json: images[0].file_name is missing"),
        ({**TRUTH, "annotations": []}, "has no annotations, so there is nothing to measure against"),
        (
            {**TRUTH, "annotations": [{**OBJECT, "image_id": 7}]},
            "annotations[0] has the image_id 7, which is unknown",
        ),
        (
            {**TRUTH, "annotations": [OBJECT, {**OBJECT, "segmentation": []}]},
            "is no COCO json: annotations[1].segmentation must be a list of 1 or more",
        ),
        (
            {**TRUTH, "annotations": [OBJECT, NO_COUNTS]},
            "annotations[1] has a mask that cannot be decoded: its counts hold a character that is none of COCO's",
        ),
        (
            {**TRUTH, "annotations": [NO_SUM]},
            "annotations[0] has a mask that cannot be decoded: its counts add up to 7 pixels, and the image has 1536",
        ),
    ],
)
def test_a_truth_that_is_none(refused: Refused, evaluation: Path, tmp_path: Path, truth: object, sentence: str) -> None:
    """pycocotools reads past the end of a bad mask; and figures against a truth that was half understood are lies."""
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    found = refused(evaluate.main, evaluation).removeprefix("truth.annotations: truth.json").lstrip(": ")
    assert found == sentence
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("predictions", "sentence"),
    [
        (TRUTH, "predictions: results.json is no COCO results json: it must be a list"),
        ([1], "predictions: results.json is no COCO results json: [0] must be an object"),
        ([OBJECT], "predictions: results.json is no COCO results json: [0].score is missing"),
        ([{**RESULT, "score": "0.5"}], "predictions: results.json is no COCO results json: [0].score must be a number"),
        (
            [RESULT, {**NO_COUNTS, "score": 1}],
            "predictions: results.json[1] has a mask that cannot be decoded: its counts hold a character that is none "
            "of COCO's",
        ),
        (
            [{**RESULT, "image_id": 7}],
            "results names image 7, and the truth has no such image; it has 1 with ids from 1 to 1",
        ),
    ],
)
def test_predictions_that_are_none(
    refused: Refused, evaluation: Path, tmp_path: Path, predictions: object, sentence: str
) -> None:
    """The same for results, which come from other tools."""
    (tmp_path / "results.json").write_text(json.dumps(predictions))
    assert refused(evaluate.main, evaluation) == sentence
    assert tree(tmp_path / "report") == set()


def test_files_of_an_evaluation_that_are_not_there(refused: Refused, evaluation: Path, tmp_path: Path) -> None:
    """A typing error in a path must not be measured as no predictions, nor found when the figures are to be written."""
    (tmp_path / "hello.txt").write_text("hello")
    for setting, sentence in (
        ("truth.annotations=no.json", f"truth.annotations: no.json: {NO_SUCH_FILE}; give a COCO json"),
        (
            "truth.annotations=hello.txt",
            "truth.annotations: hello.txt is no JSON (Expecting value: line 1 column 1 (char 0)); give a COCO json",
        ),
        ("predictions=no.json", f"predictions: no.json: {NO_SUCH_FILE}; give a labeling run or a COCO results json"),
        (
            f"predictions={tmp_path}",
            f"predictions: {tmp_path} is a directory, not a file; give a labeling run or a COCO results json",
        ),
        ("metrics=[lvis]", "--set: metrics[0] is 'lvis'; it must be 'coco' or 'boundary'"),
        ("output=hello.txt/report", "output cannot be written: hello.txt/report: not a directory"),
    ):
        assert refused(evaluate.main, evaluation, setting) == sentence


def test_a_run_that_the_truth_does_not_know(refused: Refused, evaluation: Path, tmp_path: Path) -> None:
    """An average over the few keys that happen to match would look like a result."""
    make_run(Store(), str(tmp_path / "none"), tmp_path / "in", done=0)
    assert refused(evaluate.main, evaluation, "predictions=none") == "predictions: none has no committed shard yet"
    make_run(Store(), str(tmp_path / "run"), tmp_path / "in", done=1)
    assert refused(evaluate.main, evaluation, "predictions=run") == (
        "5 of 6 image keys match no single image of the truth (first '0-1.png', '0-2.png', '0-3.png'); its file names "
        "are like '0-0.png'"
    )


def test_training_that_cannot_begin(refused: Refused, tmp_path: Path) -> None:
    """What is wrong must be known before hours of training, and no empty folder may look like a trained model's."""
    (tmp_path / "images").mkdir()
    for name, document in (
        ("truth", TRUTH),
        ("list", [1, 2]),
        ("nothing", {**TRUTH, "annotations": []}),
        ("bad", {**TRUTH, "annotations": [NO_COUNTS]}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    raw = {
        "data": {"train": {"annotations": "truth.json", "images": "images"}},
        "model": {"config": str(REPOSITORY / "configs/model/patchdct_demo.yaml")},
        "schedule": {"steps": 1, "batch_size": 1, "lr": 1e-4},
        "run": {"name": "demo", "storage": "trained"},
    }
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump(raw))
    for setting, sentence in (
        (
            "data.train.annotations=no.json",
            "no.json cannot be read (No such file or directory); give the path of a COCO json",
        ),
        ("data.train.annotations=list.json", "list.json is no COCO json with images, annotations and categories ("),
        ("data.train.annotations=nothing.json", "nothing.json has no annotated objects; training needs at least one"),
        (
            "data.train.annotations=bad.json",
            "bad.json: annotations of images/0-0.png[0] has a mask that cannot be decoded: its counts hold a character",
        ),
        ("data.train.images=nowhere", "data.train.images is nowhere, which is no folder"),
        ("model.config=no.yaml", "model config no.yaml cannot be read: No such file or directory"),
        ("model.weights=no.pth", "checkpoint no.pth cannot be read: No such file or directory"),
        ("model.overrides=[MODEL.FOO, 3]", "the model overrides: unknown key MODEL.FOO; the closest known key is "),
        ("run.workers=2", "--set: run.workers is 2; it must be 0"),
        ("run.storage=s3://bucket/models", "run.storage is s3://bucket/models; accepted is a local folder"),
        ("run.storage=truth.json", "run.storage: truth.json/demo cannot be made: Not a directory"),
    ):
        assert refused(train.main, config, setting).startswith(sentence)
        assert not (tmp_path / "trained").exists()
