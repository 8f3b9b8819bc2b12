"""The queue of doubtful images: the worst of a run, of many kinds, in a folder that annotation tools open."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline import cli, corrections, ledger, runs
from pipeline.records import ImageLabels, Instances
from pipeline.review import packages
from pipeline.review.choosing import Candidate, Chooser, Reason, doubt, in_turn
from pipeline.store import Store
from tests.small_runs import make_run


def instances(scores: list[float], **quality: list[float]) -> Instances:
    return Instances(
        category_ids=np.ones(len(scores), np.int32),
        scores=np.array(scores, np.float32),
        boxes=np.zeros((len(scores), 4), np.float32),
        areas=np.ones(len(scores), np.int64),
        counts=tuple("01" for _ in scores),
        quality={name: np.array(values, np.float32) for name, values in quality.items()},
    )


def row(key: str, scores: list[float], *, category: int = 1, corrected: int = 0, **quality: list[float]) -> ImageLabels:
    found = replace(instances(scores, **quality), category_ids=np.full(len(scores), category, np.int32))
    return ImageLabels(
        key=key, image_id=1, uri="", height=1, width=1, instances=found, status="labelled", corrected=corrected
    )


def candidate(badness: float, key: str, *, category: int = 1, shard: str = "a") -> Candidate:
    reason = Reason(index=0, category_id=category, doubt=badness, words="")
    return Candidate(
        badness=badness, lot=0, shard_id=shard, key=key, image_id=1, masks=1, errors=None, reasons=(reason,)
    )


def values(found: npt.NDArray[Any]) -> list[float]:
    return [round(float(one), 4) for one in found]


def test_what_is_known_best_decides() -> None:
    """A mask of a good score that the model of quality knows to be bad must come up, and not its neighbour."""
    nan = float("nan")
    doubts, words = doubt(instances([0.9, 0.9, 0.9], predicted_iou=[0.2, nan, 0.8], probability=[nan, nan, 0.95]))
    assert values(doubts) == [0.8, 0.1, 0.05]
    assert words == ["predicted iou 0.20", "score 0.90", "probability 0.95"]


def test_flags_count_unless_a_calibration_knows_them() -> None:
    """A duplicate scores as well as its original; a calibrated probability has its doubt already."""
    flags = {"duplicate_iou": [0.9, 0.9], "fragments": [1.0, 3.0], "box_iou": [0.9, 0.2]}
    doubts, words = doubt(instances([0.8, 0.8], **flags))
    assert values(doubts) == [0.6, 0.9]
    assert words[1] == "score 0.80, duplicate, in pieces, box and mask disagree"
    assert values(doubt(instances([0.8, 0.8], probability=[0.9, 0.9], **flags))[0]) == [0.1, 0.1]


def test_several_doubtful_masks_count_more_than_one_but_a_crowd_does_not_win() -> None:
    """By sums, images with a hundred fair masks would be all that people ever see."""
    chooser = Chooser(3)
    for one in (row("two", [0.4, 0.4]), row("one", [0.4]), row("crowd", [0.9] * 100)):
        chooser.add("a", one)
    assert [one.key for one in chooser.chosen()] == ["two", "one", "crowd"]


def test_no_class_and_no_shard_takes_the_whole_queue() -> None:
    """A broken camera, or one hard class, fills the queue with the same fault over and over."""
    bad = [candidate(0.9 - i / 1000, f"bad {i}") for i in range(20)]
    others = [candidate(0.6 - i / 1000, f"class {i}", category=2, shard="b") for i in range(20)]
    fine = [candidate(0.01, f"fine {i}", category=3, shard="c") for i in range(20)]
    queue = in_turn([*others, *bad, *fine], 8)
    assert queue[0].key == "bad 0"
    assert Counter(one.key.split()[0] for one in queue) == {"bad": 4, "class": 4}


def test_memory_is_bounded_and_the_queue_is_the_same_each_time() -> None:
    """A run of 100 million images must not be held to choose 5 of them."""
    random = np.random.default_rng(1)
    rows = [row(f"{i}.png", [float(random.random())], category=int(random.integers(1, 4))) for i in range(2000)]

    def chosen(order: list[ImageLabels]) -> tuple[list[str], int]:
        chooser = Chooser(5)
        for number, one in enumerate(order):
            chooser.add(f"shard {number // 100}", one)
        held = len(chooser._all) + sum(map(len, chooser._classes.values())) + len(chooser._shard)
        return [one.key for one in chooser.chosen()], held

    keys, held = chosen(rows)
    assert held <= 5 * 5 + 3 * 2
    assert keys == chosen(rows)[0]
    worst = min(rows, key=lambda one: float(one.instances.scores[0]))
    assert keys[0] == worst.key


def test_corrected_images_are_left_out_unless_asked_for() -> None:
    """Who has looked at an image once must not get it again tomorrow."""
    for again, expected in ((False, ["new"]), (True, ["old", "new"])):
        chooser = Chooser(5, again=again)
        chooser.add("a", row("old", [0.1], corrected=2))
        chooser.add("a", row("new", [0.2]))
        assert [one.key for one in chooser.chosen()] == expected
        assert chooser.passed == (not again)


def test_the_share_of_expected_errors_is_that_of_the_queue() -> None:
    """It is the reason to spend a budget: a share that counts wrong masks is a promise that is not kept."""
    queue = packages.Queue(
        chosen=(replace(candidate(0.9, "a"), errors=1.5), replace(candidate(0.9, "b"), errors=0.5)),
        images=10,
        masks=50,
        passed=0,
        errors=8.0,
    )
    assert queue.share == 0.25
    assert replace(queue, errors=None).share is None


@pytest.fixture
def run(store: Store, tmp_path: Path) -> str:
    make_run(store, str(tmp_path / "run"), tmp_path / "inputs")
    return str(tmp_path / "run")


def test_label_studio_opens_the_worst_first(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tasks in the order of shards hide the worst; and without the next command one is left with a folder."""
    out = tmp_path / "a b"
    assert cli.main(["review", run, "--budget", "3", "--out", str(out), "--min-score", "0.2"]) == 0
    tasks = json.loads((out / "tasks-00000.json").read_text())
    queue = json.loads((out / "queue.json").read_text())
    assert [task["data"]["rank"] for task in tasks] == [1, 2, 3]
    assert [task["data"]["key"] for task in tasks] == [one["key"] for one in queue["images"]]
    assert [task["data"]["why"] for task in tasks] == [one["why"] for one in queue["images"]]
    badness = [one["badness"] for one in queue["images"]]
    assert badness[0] == max(badness)
    for task in tasks:
        assert (out / task["data"]["image"].removeprefix("/data/local-files/?d=")).read_bytes()[:4] == b"\x89PNG"
        assert task["predictions"][0]["result"]
    assert 'value="$why"' in (out / "label_config.xml").read_text()
    said = capsys.readouterr().out
    assert f"patchlabel apply {run} --corrections FILE --min-score 0.2" in said
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT='{out}' label-studio start" in said


def test_cvat_sorts_by_names_that_begin_with_the_rank(run: str, tmp_path: Path) -> None:
    """CVAT shows images by name: with keys as names, the worst come anywhere."""
    out = tmp_path / "out"
    assert cli.main(["review", run, "--budget", "3", "--format", "cvat", "--out", str(out)]) == 0
    names = sorted(path.name for path in (out / "images").iterdir())
    assert [name.split("-")[0] for name in names] == ["00001", "00002", "00003"]
    ids = {str(one["image_id"]): one["rank"] for one in json.loads((out / "queue.json").read_text())["images"]}
    assert [ids[Path(name).stem.split("-")[2]] for name in names] == [1, 2, 3]
    xml = (out / "annotations-00000.xml").read_text()
    assert all(f'name="{name}"' in xml for name in names)


def test_nothing_is_written_where_there_is_nothing_to_look_at(
    run: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty package makes an empty project, and somebody wonders why."""
    labels = runs.opened(store, run)
    manifest = ledger.read_manifest(store, run)
    rows = {commit.shard_id: list(runs.rows(store, run, commit)) for commit in labels.commits()}
    sound = {shard: [one for one in found if one.status != "quarantined"] for shard, found in rows.items()}
    corrections.write(store, run, manifest, sound, by="anna", source="x", source_sha256="0", counts={})
    assert cli.main(["review", run, "--budget", "3", "--out", str(tmp_path / "out")]) == 0
    assert "nothing to look at: 8 images with masks (8 images corrected already" in capsys.readouterr().out
    assert not list(tmp_path.glob("out/*"))


def test_a_folder_with_something_in_it_is_refused(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tasks of last week beside those of today would be labelled twice."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("x")
    assert cli.main(["review", run, "--budget", "3", "--out", str(tmp_path / "out")]) == 2
    assert "something is already" in capsys.readouterr().err
