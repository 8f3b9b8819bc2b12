"""What people have corrected comes back, from Label Studio, CVAT and COCO: all of a file or nothing; history stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_api

from pipeline import cli, corrections, datasets, masks, runs
from pipeline.config import DatasetConfig
from pipeline.errors import StoreError
from pipeline.exports import bitmaps, labelstudio
from pipeline.records import ImageLabels
from pipeline.review import applying
from pipeline.store import Store
from pipeline.verify import verify
from pipeline.view import View
from tests.small_runs import make_run

Tasks = list[dict[str, Any]]


@pytest.fixture
def run(store: Store, tmp_path: Path) -> str:
    make_run(store, str(tmp_path / "run"), tmp_path / "inputs")
    return str(tmp_path / "run")


def packaged(run: str, tmp_path: Path, *options: str, polygons: bool = False) -> Tasks:
    """The tasks of a package as Label Studio exports them once each prediction was submitted as it is."""
    out = tmp_path / f"package {len(list(tmp_path.iterdir()))}"
    if polygons:
        assert cli.main(["export", run, "--format", "labelstudio", "--polygons", "--out", str(out)]) == 0
    else:
        assert cli.main(["review", run, "--budget", "50", "--out", str(out), "--no-images", *options]) == 0
    tasks = json.loads((out / "tasks-00000.json").read_text())
    for number, task in enumerate(tasks, start=1):
        result = task["predictions"][0]["result"]
        annotation = {"id": number, "result": result, "was_cancelled": False, "ground_truth": False}
        task |= {"id": number, "annotations": [annotation | {"updated_at": "2026-01-02T00:00:00Z"}]}
    return sorted(tasks, key=lambda task: str(task["data"]["key"]))


def apply(run: str, tmp_path: Path, tasks: Tasks | str, *options: str, name: str = "answers.json") -> int:
    file = tmp_path / name
    file.write_text(tasks if isinstance(tasks, str) else json.dumps(tasks))
    return cli.main(["apply", run, "--corrections", str(file), "--by", "anna", *options])


def standing(store: Store, run: str) -> dict[str, ImageLabels]:
    return {row.key: row for row in runs.opened(store, run).all_rows()}


def counted(store: Store, run: str, number: int = -1) -> dict[str, int]:
    return dict(corrections.read(store, run).versions[number].counts)


def region(result: dict[str, Any], pixels: np.ndarray[Any, Any], label: str, identity: str = "Xq1_") -> dict[str, Any]:
    """A brush stroke of a person, on the image of another region."""
    height, width = pixels.shape
    found = bitmaps.row_runs(bitmaps.Crop(pixels=pixels, left=0, top=0), height, width)
    value = {"format": "rle", "rle": labelstudio.brush(found), "brushlabels": [label]}
    keys = ("from_name", "to_name", "original_width", "original_height", "image_rotation")
    return {"id": identity, "type": "brushlabels", **{key: result[key] for key in keys}, "value": value}


@pytest.mark.parametrize("polygons", [False, True])
def test_what_nobody_touched_keeps_all_that_was_known(store: Store, run: str, tmp_path: Path, polygons: bool) -> None:
    """A look at an image must not cost its scores and quality columns."""
    before = standing(store, run)
    assert apply(run, tmp_path, packaged(run, tmp_path, polygons=polygons), "--min-score", "0") == 0
    after = standing(store, run)
    seen = [key for key, row in before.items() if len(row.instances)]
    for key in seen:
        ours, theirs = before[key].instances, after[key].instances
        assert after[key].corrected == 1
        assert theirs.counts == ours.counts
        np.testing.assert_array_equal(theirs.category_ids, ours.category_ids)
        np.testing.assert_array_equal(theirs.scores, ours.scores)
        np.testing.assert_array_equal(theirs.quality["contrast"], ours.quality["contrast"])
    assert counted(store, run)["kept"] == sum(len(row.instances) for row in before.values())
    assert verify(store, run).faults == ()


def test_changes_of_a_person_reach_every_reader(store: Store, run: str, tmp_path: Path) -> None:
    """What is corrected and does not arrive in export and training was corrected for nothing."""
    tasks = sorted(packaged(run, tmp_path), key=lambda task: -len(task["annotations"][0]["result"]))
    first = tasks[0]["annotations"][0]["result"]
    before = standing(store, run)[tasks[0]["data"]["key"]]
    assert len(before.instances) >= 3
    drawn = np.zeros((before.height, before.width), bool)
    drawn[20:30, 5:15] = True
    mended = masks.decode(before.instances.counts[1], before.height, before.width).copy()
    mended[0, :2] = ~mended[0, :2]
    first[0]["value"]["brushlabels"] = [{"bright": "dark", "dark": "bright"}[first[0]["value"]["brushlabels"][0]]]
    first[1] = region(first[1], mended, first[1]["value"]["brushlabels"][0], first[1]["id"])
    first[2] = region(first[2], drawn, "dark")
    assert apply(run, tmp_path, tasks[:1]) == 0
    after = standing(store, run)[before.key]
    found = dict(zip(after.instances.counts, after.instances.category_ids.tolist(), strict=True))
    encoded = mask_api.encode(np.asfortranarray(mended, np.uint8))["counts"].decode()
    assert found[before.instances.counts[0]] != before.instances.category_ids[0]
    assert encoded in found
    assert before.instances.counts[2] not in found
    assert (after.instances.scores[:3] == 1).all()
    assert np.isnan(after.instances.quality["contrast"][:3]).all()
    kinds = {"relabelled": 1, "changed": 1, "added": 1, "removed": 1, "kept": len(before.instances) - 3}
    assert {kind: counted(store, run)[kind] for kind in kinds} == kinds
    assert verify(store, run).faults == ()
    out = tmp_path / "out.json"
    assert cli.main(["export", run, "--format", "coco", "--out", str(out)]) == 0
    image = next(one for one in json.loads(out.read_text())["images"] if one["file_name"] == before.key)
    exported = [one for one in json.loads(out.read_text())["annotations"] if one["image_id"] == image["id"]]
    assert [one["segmentation"]["counts"] for one in exported] == list(after.instances.counts)
    assert image["corrected"] == 1
    trained = datasets.read(DatasetConfig(run=run), store, key="data.train", cache=None).coco["annotations"]
    assert encoded in {one["segmentation"]["counts"] for one in trained}
    assert cli.main(["gallery", run, "--out", str(tmp_path / "gallery")]) == 0


def test_only_what_was_looked_at_counts(store: Store, run: str, tmp_path: Path) -> None:
    """A task that nobody opened is no image without objects; one that was submitted empty is."""
    tasks = packaged(run, tmp_path)
    tasks[0]["annotations"] = []
    tasks[1]["annotations"][0]["was_cancelled"] = True
    tasks[2]["annotations"][0]["result"] = []
    before = standing(store, run)
    assert apply(run, tmp_path, tasks[:3]) == 0
    after = standing(store, run)
    keys = [task["data"]["key"] for task in tasks[:3]]
    assert [after[key].corrected for key in keys] == [0, 0, 1]
    assert (after[keys[2]].status, len(after[keys[2]].instances)) == ("empty", 0)
    assert counted(store, run)["removed"] == len(before[keys[2]].instances)


def test_the_ground_truth_or_the_last_annotation_counts(store: Store, run: str, tmp_path: Path) -> None:
    """Two people at one task: the older opinion must not win by its place in the list."""
    tasks = packaged(run, tmp_path)
    old = tasks[0]["annotations"][0]
    late = {**old, "result": old["result"][:1], "updated_at": "2026-01-03T00:00:00Z"}
    tasks[0]["annotations"] = [late, old]
    truth = {**old, "result": [], "ground_truth": True, "updated_at": "2025-01-01T00:00:00Z"}
    tasks[1]["annotations"].append(truth)
    assert apply(run, tmp_path, tasks[:2]) == 0
    rows = standing(store, run)
    assert [len(rows[task["data"]["key"]].instances) for task in tasks[:2]] == [1, 0]


def test_masks_that_were_shown_after_all_are_known(store: Store, run: str, tmp_path: Path) -> None:
    """An export shows faint masks, and `apply` by itself does not expect them: they are no new ones for that."""
    before = standing(store, run)
    assert apply(run, tmp_path, packaged(run, tmp_path, polygons=True), "--min-score", "0.95") == 0
    kinds = counted(store, run)
    assert (kinds["kept"], kinds["added"]) == (sum(len(row.instances) for row in before.values()), 0)
    assert (kinds["removed"], kinds["hidden"]) == (0, 0)


def test_masks_that_were_not_shown_do_not_come_back(store: Store, run: str, tmp_path: Path) -> None:
    """Thresholds do not apply to corrected images, so a faint mask that nobody saw would count from then on."""
    rows = standing(store, run)
    every = sorted(score for row in rows.values() for score in row.instances.scores.tolist())
    cut = str(every[len(every) // 2])
    assert apply(run, tmp_path, packaged(run, tmp_path, "--min-score", cut), "--min-score", cut) == 0
    after = standing(store, run)
    assert counted(store, run)["hidden"] > 0
    assert counted(store, run)["removed"] == 0
    assert all(row.instances.above(float(cut)) is row.instances for row in after.values() if row.corrected)


def test_classes_that_were_left_aside_stay_and_renamed_ones_come_back(store: Store, run: str, tmp_path: Path) -> None:
    """With a taxonomy, people see other names: a class that was dropped for them is not one that they removed."""
    (tmp_path / "t.yaml").write_text("bright: lamp\ndark: null\n")
    options = ("--taxonomy", str(tmp_path / "t.yaml"))
    tasks = packaged(run, tmp_path, *options)
    assert {one["value"]["brushlabels"][0] for task in tasks for one in task["annotations"][0]["result"]} == {"lamp"}
    before = standing(store, run)
    assert apply(run, tmp_path, tasks, *options) == 0
    after = standing(store, run)
    for task in tasks:
        key = task["data"]["key"]
        assert after[key].instances.counts == before[key].instances.counts
        np.testing.assert_array_equal(after[key].instances.category_ids, before[key].instances.category_ids)


def test_a_taxonomy_that_merges_is_refused(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new mask of a merged class has no class of the run."""
    (tmp_path / "t.yaml").write_text("bright: thing\ndark: thing\n")
    tasks = packaged(run, tmp_path)
    assert apply(run, tmp_path, tasks, "--taxonomy", str(tmp_path / "t.yaml")) == 2
    assert "one class 'thing' of several" in capsys.readouterr().err


def test_a_file_counts_once_and_again_after_it_was_undone(
    store: Store, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who is not sure whether a file was applied applies it again."""
    tasks = packaged(run, tmp_path)
    tasks[0]["annotations"][0]["result"] = []
    for code in (apply(run, tmp_path, tasks), apply(run, tmp_path, tasks, name="copy.json")):
        assert code == 0
    assert "copy.json is version 1 of the corrections already; nothing was written" in capsys.readouterr().out
    assert len(corrections.read(store, run).versions) == 1
    assert cli.main(["apply", run, "--undo", "1", "--by", "bert"]) == 0
    assert apply(run, tmp_path, tasks) == 0
    assert [one.number for one in corrections.read(store, run).versions] == [1, 2, 3]


def test_undo_brings_back_what_was_before_and_leaves_later_work(store: Store, run: str, tmp_path: Path) -> None:
    """An undo that takes a colleague's later work with it is a new mistake; and the mistake itself stays on record."""
    before = standing(store, run)
    tasks = packaged(run, tmp_path)
    one, two = tasks[0]["data"]["key"], tasks[1]["data"]["key"]
    for task in tasks[:2]:
        task["annotations"][0]["result"] = task["annotations"][0]["result"][:1]
    assert apply(run, tmp_path, tasks[:2]) == 0
    tasks[0]["annotations"][0]["result"] = []
    assert apply(run, tmp_path, tasks[:1], name="later.json") == 0
    assert cli.main(["apply", run, "--undo", "1", "--by", "bert"]) == 0
    after = standing(store, run)
    assert (after[one].corrected, len(after[one].instances)) == (2, 0)
    assert after[two].instances.counts == before[two].instances.counts
    assert after[two].corrected == 0
    assert cli.main(["apply", run, "--undo", "2"]) == 0
    assert standing(store, run)[one].instances.counts == before[one].instances.counts
    assert cli.main(["apply", run, "--undo", "1"]) == 2
    assert cli.main(["apply", run, "--undo", "3"]) == 0  # what took the first back
    assert len(standing(store, run)[one].instances) == 1
    assert [version.by for version in corrections.read(store, run).versions][:3] == ["anna", "anna", "bert"]
    assert verify(store, run).faults == ()


def test_undo_of_what_is_not_there_is_refused(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong number must not be taken for the last one."""
    assert cli.main(["apply", run, "--undo", "4"]) == 2
    assert "has no such corrections; it has none" in capsys.readouterr().err


def test_a_kill_at_the_claim_leaves_the_run_as_it_was(
    store: Store, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a review that counts is worse than none."""
    tasks = packaged(run, tmp_path)
    tasks[0]["annotations"][0]["result"] = []
    before = standing(store, run)

    def die(*_: object) -> bool:
        raise StoreError("the machine is gone.")

    (tmp_path / "answers.json").write_text(json.dumps(tasks))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", die)
        with pytest.raises(StoreError, match="gone"):
            applying.apply(store, run, str(tmp_path / "answers.json"), by="anna", view=View())
    assert {key: row.instances.counts for key, row in standing(store, run).items()} == {
        key: row.instances.counts for key, row in before.items()
    }
    assert verify(store, run).faults == ()
    assert apply(run, tmp_path, tasks) == 0
    assert counted(store, run)["images"] == len(tasks)


def test_a_dry_run_tells_and_writes_nothing(
    store: Store, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked for where one is not sure."""
    tasks = packaged(run, tmp_path)
    tasks[0]["annotations"][0]["result"] = []
    assert apply(run, tmp_path, tasks, "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert told["version"] is None
    assert told["counts"]["removed"] > 0
    assert corrections.read(store, run).versions == ()


def test_work_of_others_in_between_is_told(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two packages with the same image: the second comes on top, and somebody must know."""
    tasks = packaged(run, tmp_path)
    assert apply(run, tmp_path, tasks[:1], name="1.json") == 0
    assert apply(run, tmp_path, tasks, name="2.json") == 0
    assert "warning: 1 image corrected by others since they were shown" in capsys.readouterr().err
