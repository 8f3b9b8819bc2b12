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
from tests.small_runs import IMAGES, make_run

IMAGE = {"id": 1, "file_name": "0-0.png", "height": 32, "width": 48}
OBJECT = {"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], "bbox": [1, 1, 8, 8]}
TRUTH: dict[str, Any] = {"images": [IMAGE], "annotations": [OBJECT], "categories": [{"id": 1, "name": "bright"}]}
RESULT = {**OBJECT, "score": 0.5}
NO_COUNTS = {**OBJECT, "segmentation": {"size": [32, 48], "counts": "zzzz\u00ff"}}
GIVE = "give a labeling run, a COCO results json or a checkpoint"
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
        ("truth.images=nowhere", "truth.images: none of the 1 images of truth.json is below "),
        ("predictions=no.json", f"predictions: no.json: {NO_SUCH_FILE}; {GIVE}"),
        ("predictions=no.pth", f"predictions: no.pth: {NO_SUCH_FILE}; {GIVE}"),
        (f"predictions={tmp_path}", f"predictions: {tmp_path} is a directory, not a file; {GIVE}"),
        (
            "predictions=hello.txt",
            f"predictions: hello.txt is no JSON (Expecting value: line 1 column 1 (char 0)); {GIVE}",
        ),
        ("predictions=null", "predictions is missing; only metrics [upper_bound] does without"),
        ("output=hello.txt/report", "output cannot be written: hello.txt/report: not a directory"),
    ):
        found = refused(evaluate.main, evaluation, setting)
        assert found == sentence or (sentence.endswith(" ") and found.startswith(sentence))
        assert tree(tmp_path / "report") == set()


def test_metrics_that_do_not_suit(refused: Refused, evaluation: Path, tmp_path: Path) -> None:
    """LVIS' figure on a truth without LVIS' lists of categories would be another figure under that name."""
    every = "'coco', 'boundary', 'lvis', 'cityscapes', 'pr' or 'upper_bound'"
    for setting, sentence in (
        ("metrics=[lvvis]", f"--set: metrics[0] is 'lvvis'; it must be {every}"),
        ("metrics=[]", "--set: metrics is []; it must be a list that is not empty"),
        ("metrics=[lvis]", "metrics has lvis, which needs a truth.name lvis_v0.5; truth.name is coco"),
        (
            "metrics=[coco, cityscapes]",
            "metrics has cityscapes, which needs a truth.name cityscapes; truth.name is coco",
        ),
    ):
        assert refused(evaluate.main, evaluation, setting) == sentence
        assert tree(tmp_path / "report") == set()


def test_checkpoints_that_cannot_label(refused: Refused, evaluation: Path, tmp_path: Path) -> None:
    """What is wrong must be known before Ray is started, by the names of the keys that this command has."""
    (tmp_path / "model.pth").write_bytes(b"hello, world")
    (tmp_path / "named.pth").write_bytes((REPOSITORY / "configs/model/patchdct_demo.pth").read_bytes())
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0-0.png").write_bytes(b"")
    named = "predictions is the checkpoint model.pth"
    good = ("truth.images=images", "predictions=model.pth")
    for settings, sentence in (
        (("predictions=model.pth",), f"truth.images is missing; {named}, and truth.images says which images it labels"),
        ((*good, "output=null"), f"output is missing; {named}, and output says where its run over the images goes"),
        (
            (*good, "labeler.weights=a.pth"),
            "labeler.weights has a value; for the checkpoint to evaluate that is predictions",
        ),
        (
            (*good, "labeler.config=a.yaml"),
            "labeler.config has a value; for the checkpoint to evaluate that is model.config",
        ),
        (
            good,
            "predictions: model.pth is no checkpoint (a file by torch.save, or a pickle of arrays by name): it begins "
            "with b'hello, world'",
        ),
        (
            (*good, "predictions=named.pth"),
            "predictions: named.pth: category 1 is 'pebble', and in the truth 'bright'",
        ),
        ((*good, "predictions=named.pth", "labeler.categories=[bright]", "model.config=no.yaml"), "model.config: "),
    ):
        found = refused(evaluate.main, evaluation, *settings)
        assert found == sentence or (sentence.endswith(": ") and found.startswith(sentence))
        assert tree(tmp_path / "report") <= {"images.json"}


@pytest.mark.parametrize(
    ("categories", "sentence"),
    [
        ({1: "bright", 2: "dark"}, "category 'dark' has the id 7, and in the truth 2"),
        ({1: "shiny", 7: "dark"}, "category 1 is 'bright', and in the truth 'shiny'"),
        ({2: "dog", 3: "cat"}, "has no category of the truth: it has bright, dark, the truth dog, cat"),
    ],
)
def test_categories_that_do_not_fit(
    refused: Refused, evaluation: Path, tmp_path: Path, categories: dict[int, str], sentence: str
) -> None:
    """An id that means another thing in the truth gives figures that look real."""
    make_run(Store(), str(tmp_path / "run"), tmp_path / "in", shards=1)
    names = [*(f"0-{i}.png" for i in range(IMAGES - 1)), "0-text.jpg"]
    truth = {
        "images": [{**IMAGE, "id": number, "file_name": name} for number, name in enumerate(names, start=1)],
        "annotations": [{**OBJECT, "category_id": next(iter(categories))}],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    found = refused(evaluate.main, evaluation, "predictions=run").replace("run: ", "").replace("run has", "has")
    assert found == f"predictions: {sentence}"


def test_a_run_that_the_truth_does_not_know(refused: Refused, evaluation: Path, tmp_path: Path) -> None:
    """An average over the few keys that happen to match would look like a result."""
    make_run(Store(), str(tmp_path / "none"), tmp_path / "in", done=0)
    assert refused(evaluate.main, evaluation, "predictions=none") == "predictions: none has no committed shard yet"
    make_run(Store(), str(tmp_path / "run"), tmp_path / "in", done=1)
    assert refused(evaluate.main, evaluation, "predictions=run") == (
        "5 of 6 image keys match no single image of the truth (first '0-1.png', '0-2.png', '0-3.png'); its file names "
        "are like '0-0.png'"
    )


def test_a_truth_that_cannot_be_trained_on(refused: Refused, tmp_path: Path) -> None:
    """What is wrong must be known before hours of training, and before anything is written."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0-0.png").write_bytes(b"")
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
    for name, sentence in (
        ("no", f"no.json: {NO_SUCH_FILE}; give a COCO json"),
        ("list", "list.json is no COCO json: it must be an object"),
        ("nothing", "nothing.json has no annotated objects; training needs at least one"),
        (
            "bad",
            "bad.json: annotations[0] has a mask that cannot be decoded: its counts hold a character that is none of",
        ),
    ):
        assert sentence in refused(train.main, config, f"data.train.annotations={name}.json")
        assert tree(tmp_path / "trained") == set()
