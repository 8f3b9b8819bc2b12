"""Answers of Label Studio, CVAT and COCO, found again on any storage, and refused in a sentence where they are odd."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_api

from pipeline import cli, corrections, runs
from pipeline.store import Store
from pipeline.verify import verify
from tests.pipeline.test_apply import apply, counted, packaged, standing
from tests.small_runs import make_run
from tests.tools import awkward

Tasks = list[dict[str, Any]]

ANSWERS = Path(__file__).parents[1] / "data" / "label_studio"


@pytest.fixture
def run(store: Store, tmp_path: Path) -> str:
    make_run(store, str(tmp_path / "run"), tmp_path / "inputs")
    return str(tmp_path / "run")


def test_a_file_that_label_studio_wrote(store: Store, run: str) -> None:
    """An export of Label Studio 1.23.2 itself, of a package of this very run whose images know their shards no more.

    Of eight tasks one was submitted as it was, one with a mask relabelled and one removed, one with a mask redrawn by
    its SDK and a new one, one without any; one was skipped, and three were never opened.
    """
    assert cli.main(["apply", run, "--corrections", str(ANSWERS / "export_1.23.2.json"), "--dry-run"]) == 0
    assert cli.main(["apply", run, "--corrections", str(ANSWERS / "export_1.23.2.json")]) == 0
    kinds = {"images": 4, "kept": 8, "changed": 1, "relabelled": 1, "added": 1, "removed": 5, "hidden": 0}
    assert counted(store, run) == kinds
    drawn = np.zeros((32, 48), bool)
    drawn[20:28, 5:15] = True
    encoded = mask_api.encode(np.asfortranarray(drawn, np.uint8))["counts"].decode()
    assert sum(encoded in row.instances.counts for row in standing(store, run).values()) == 1
    assert verify(store, run).faults == ()


def test_the_way_there_and_back_on_any_storage(place: str, store: Store, tmp_path: Path) -> None:
    """Runs of that size are in a bucket, and so are their packages and answers."""
    run, out = f"{place}/run", f"{place}/package"
    make_run(store, run, tmp_path / "inputs")
    assert cli.main(["review", run, "--budget", "3", "--out", out]) == 0
    tasks = json.loads(store.get(f"{out}/tasks-00000.json"))
    for task in tasks:
        task["annotations"] = [{"result": task["predictions"][0]["result"][1:]}]
    store.put(f"{place}/answers.json", json.dumps(tasks).encode())
    assert cli.main(["apply", run, "--corrections", f"{place}/answers.json"]) == 0
    assert counted(store, run)["removed"] == 3
    assert verify(store, run).faults == ()
    assert cli.main(["audit", run, "--per-class", "2", "--out", f"{place}/audit"]) == 0
    answers = store.get(f"{place}/audit/answers.csv").replace(b",,", b",correct,", 1)
    store.put(f"{place}/filled.csv", answers)
    assert cli.main(["audit", run, "--answers", f"{place}/filled.csv", "--out", f"{place}/audit"]) == 0
    assert json.loads(store.get(f"{place}/audit/certificate.json"))["overall"]["precision"]["answered"] == 1


def _in_cvat(run: str, tmp_path: Path) -> str:
    assert cli.main(["review", run, "--budget", "50", "--format", "cvat", "--out", str(tmp_path / "cvat")]) == 0
    return (tmp_path / "cvat" / "annotations-00000.xml").read_text()


@pytest.mark.parametrize("zipped", [False, True])
def test_cvat_comes_back(store: Store, run: str, tmp_path: Path, zipped: bool) -> None:
    """CVAT knows images by their files' names alone, and hands its XML out in a ZIP."""
    before = standing(store, run)
    xml = _in_cvat(run, tmp_path)
    first = xml.index("<mask")
    end = xml.index("</mask>", first) + len("</mask>")
    xml = xml[:first] + '<polygon label="dark" points="3,4;9,4;9,12.4;3,12.4" group_id="0"></polygon>' + xml[end:]
    file = tmp_path / ("task.zip" if zipped else "annotations.xml")
    if zipped:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("annotations.xml", xml)
    else:
        file.write_text(xml)
    assert cli.main(["apply", run, "--corrections", str(file)]) == 0
    number = sum(len(row.instances) for row in before.values())
    kinds = counted(store, run)
    assert (kinds["kept"] + kinds["hidden"], kinds["added"], kinds["removed"]) == (number - 1, 1, 1)
    drawn = np.zeros((32, 48), bool)
    drawn[4:12, 3:9] = True
    encoded = mask_api.encode(np.asfortranarray(drawn, np.uint8))["counts"].decode()
    assert sum(encoded in row.instances.counts for row in standing(store, run).values()) == 1
    assert verify(store, run).faults == ()


def test_coco_comes_back_by_file_names(store: Store, run: str, tmp_path: Path) -> None:
    """Images are found by their names, and image ids decide only between equals: other tools count for themselves."""
    out = tmp_path / "coco.json"
    assert cli.main(["export", run, "--format", "coco", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    lost = document["annotations"].pop(0)
    for number, image in enumerate(document["images"], start=1):
        for one in document["annotations"]:
            one["image_id"] = number if one["image_id"] == image["id"] else one["image_id"]
        image["id"] = number
    square = {"image_id": 1, "category_id": 7, "segmentation": [[2, 2, 8, 2, 8, 8, 2, 8]]}
    document["annotations"].append(square)
    assert apply(run, tmp_path, json.dumps(document), "--min-score", "0") == 0
    kinds = counted(store, run)
    assert (kinds["added"], kinds["removed"], kinds["changed"]) == (1, 1, 0)
    assert all(lost["segmentation"]["counts"] not in row.instances.counts for row in standing(store, run).values())


def _broken(change: Callable[[dict[str, Any]], object]) -> Callable[[Tasks], object]:
    return lambda tasks: change(tasks[0]["annotations"][0]["result"][0])


def _drawn(shape: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda one: one.update(shape)


FAULTS: dict[str, tuple[Callable[[Tasks], object], str]] = {
    "stranger": (lambda tasks: tasks[0]["data"].update(key="x.png"), "'x.png' is no image of the run"),
    "shard": (lambda tasks: tasks[0]["data"].update(shard_id="f" * 20), "does not have"),
    "no key": (lambda tasks: tasks[0].update(data={"image": "x"}), "does not say in its data"),
    "twice": (lambda tasks: tasks.append(tasks[0]), "are of the same image"),
    "class": (_broken(lambda one: one["value"].update(brushlabels=["cat"])), "is a 'cat'; the classes of the run are"),
    "no class": (_broken(lambda one: one["value"].update(brushlabels=[])), "has no class"),
    "size": (_broken(lambda one: one.update(original_width=49)), "was drawn on 49 x 32 pixels"),
    "cut off": (_broken(lambda one: one["value"].update(rle=one["value"]["rle"][:-4])), "cannot be decoded"),
    "no bytes": (_broken(lambda one: one["value"].update(rle=["x"])), "no list of bytes"),
    "rectangle": (_broken(_drawn({"type": "rectanglelabels"})), "is of the type rectanglelabels; accepted are brush"),
    "turned": (_broken(_drawn({"image_rotation": 90})), "rotated image"),
    "point": (
        _broken(_drawn({"value": {"points": [[1, "x"]], "polygonlabels": ["dark"]}})),
        "brush strokes nor points",
    ),
    "ids alone": (lambda tasks: tasks[0].update(annotations=[7]), "annotations by their ids alone"),
    "json-min": (lambda tasks: tasks.__setitem__(slice(None), [{"image": "x"}]), "not as JSON-MIN"),
    "quarantined": (lambda tasks: tasks[0]["data"].update(key="0-text.jpg"), "was set aside"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_taken_is_one_sentence_and_nothing_is_written(
    store: Store, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """A mask that comes back shifted, or on another image, is worse than a refusal; and the task must be named."""
    spoil, words = FAULTS[fault]
    tasks = packaged(run, tmp_path)
    assert tasks[0]["data"]["key"].startswith("0-")
    spoil(tasks)
    assert apply(run, tmp_path, tasks) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert "answers.json" in said
    assert corrections.read(store, run).versions == ()


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]><annotations>&c;</annotations>'
XML = '<annotations><image id="0" name="0-0.png" width="48" height="32">{}</image></annotations>'
FILES = {
    "entities": (BOMB, "has a document type"),
    "other xml": ("<html></html>", "is no CVAT for images 1.1"),
    "broken xml": ("<annotations><image>", "is no XML that can be read"),
    "box": (XML.format('<box label="dark" xtl="1" ytl="1" xbr="2" ybr="2"></box>'), "has a box; accepted are masks"),
    "video": ('<annotations><track id="0"></track></annotations>', "is CVAT for video"),
    "mask outside": (
        XML.format('<mask label="dark" rle="0, 4" left="47" top="1" width="2" height="2"></mask>'),
        "does not lie within the image",
    ),
    "long runs": (
        XML.format('<mask label="dark" rle="0, 999999999999" left="1" top="1" width="2" height="2"></mask>'),
        "its runs are not those of",
    ),
    "points": (XML.format('<polygon label="dark" points="1,2;nan,3;1"></polygon>'), "points cannot be read"),
    "other size": (XML.replace("48", "50").format(""), "has 50 x 32 pixels, and 0-0.png in the run 48 x 32"),
    "coco": ('{"images": [], "annotations": [{"image_id": 1}], "categories": []}', "is no COCO JSON of masks"),
    "coco image": (
        '{"images": [], "categories": [{"id": 1, "name": "dark"}], "annotations": '
        '[{"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]]}]}',
        "of an image that the file does not have",
    ),
    "text": ("hello", "is of no known format; accepted are"),
    "deep": ("[" * 100_000, "is no JSON that can be read"),
    "empty": ("", "is of no known format"),
}


@pytest.mark.parametrize("file", FILES)
def test_files_from_anywhere_are_refused_in_a_sentence(
    store: Store, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    """A file of answers comes from outside: entities that grow, masks that claim memory, other formats."""
    content, words = FILES[file]
    assert apply(run, tmp_path, content) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert corrections.read(store, run).versions == ()


def test_a_file_that_is_not_there_is_refused(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A typo is no failure of the storage."""
    assert cli.main(["apply", run, "--corrections", "nowhere.json"]) == 2
    assert "--corrections: " in capsys.readouterr().err


def test_keys_that_are_unique_are_found_without_a_shard(store: Store, run: str, tmp_path: Path) -> None:
    """Tasks that were made by hand name their images, and no shards."""
    tasks = packaged(run, tmp_path)
    for task in tasks:
        del task["data"]["shard_id"]
    assert apply(run, tmp_path, tasks) == 0
    seen = {row.key for row in runs.opened(store, run).all_rows() if row.corrected}
    assert seen == {task["data"]["key"] for task in tasks}


def test_a_key_of_several_images_is_not_guessed(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Archives often number their images alike: a correction on the other 000001.jpg spoils two images."""
    run = str(tmp_path / "run")
    awkward.make_run(store, run, tmp_path / "inputs")
    out = tmp_path / "coco.json"
    assert cli.main(["export", run, "--format", "coco", "--out", str(out)]) == 0
    assert cli.main(["apply", run, "--corrections", str(out), "--min-score", "0"]) == 0
    kinds = counted(store, run)
    assert kinds["kept"] == sum(len(row.instances) for row in runs.opened(store, run).all_rows()) > 0
    document = json.loads(out.read_text())
    for number, image in enumerate(document["images"], start=1):
        image["id"] = number
    assert apply(run, tmp_path, json.dumps({**document, "annotations": []})) == 2
    assert "one of several of that name" in capsys.readouterr().err


def test_cvat_finds_images_in_folders_of_shards(store: Store, tmp_path: Path) -> None:
    """An export has a folder a shard, and names that are no paths are changed: they must still be found."""
    run = str(tmp_path / "run")
    awkward.make_run(store, run, tmp_path / "inputs")
    for number, command in enumerate((["export"], ["review", "--budget", "50", "--again"]), start=1):
        out = str(tmp_path / command[0])
        options = ["--format", "cvat", "--images", "--min-score", "0", "--out", out]
        assert cli.main([command[0], run, *command[1:], *options]) == 0
        file = str(Path(out) / "annotations-00000.xml")
        assert cli.main(["apply", run, "--corrections", file, "--min-score", "0"]) == 0
        kinds = counted(store, run)
        assert kinds["kept"] == sum(len(row.instances) for row in runs.opened(store, run).all_rows()) > 0
        assert len(corrections.read(store, run).versions) == number
