"""The training job in one process: what it leaves, how it goes on, what it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jobs import fitting, label, train
from patchdct import scenes
from patchdct.checkpoint import read_checkpoint, save_checkpoint
from patchdct.config import load_config
from pipeline import checkpoints, ledger, runs, trackers
from pipeline.config import TrainConfig, load
from pipeline.store import Store, join
from tests.refusals import Refused

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS, EVERY = 6, 2
SMALL: dict[str, Any] = {
    **{"MODEL.FPN.OUT_CHANNELS": 8, "MODEL.ROI_BOX_HEAD.FC_DIM": 16, "MODEL.ROI_MASK_HEAD.CONV_DIM": 8},
    **{"MODEL.ROI_MASK_HEAD.HIDDEN_FEATURES": 16, "MODEL.RPN.POST_NMS_TOPK_TEST": 20, "TEST.DETECTIONS_PER_IMAGE": 5},
    **{"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16, "INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": 64},
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight drawn scenes, 64 pixels wide: annotations.json, images/."""
    folder = tmp_path_factory.mktemp("drawn")
    scenes.write_scenes(folder, images=8, seed=31, size=64)
    return folder


@pytest.fixture
def config(drawn: Path, tmp_path: Path) -> Path:
    """A training of six steps of a tiny model, below `tmp_path`/out/t."""
    raw = {
        "data": {"train": {"annotations": str(drawn / "annotations.json"), "images": str(drawn / "images")}},
        "model": {
            "config": str(REPOSITORY / "configs/model/patchdct_demo.yaml"),
            "overrides": [str(word) for pair in SMALL.items() for word in pair],
        },
        "schedule": {
            **{"steps": STEPS, "batch_size": 2, "optimizer": "adamw", "lr": 1e-3, "warmup": 2, "decay": "cosine"},
            "ema": 0.5,
        },
        "run": {
            **{"name": "t", "storage": str(tmp_path / "out"), "threads": 1, "seed": 3},
            **{"checkpoint_every": EVERY, "log_every": 1, "keep": 2},
        },
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def fit(config: Path, *settings: str) -> int:
    return train.main(["--config", str(config), *(word for one in settings for word in ("--set", one))])


def history(root: str | Path) -> list[dict[str, float]]:
    return checkpoints.read_history(Store(), str(root), checkpoints.saved(Store(), str(root))[-1])


def weights(root: str | Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(Path(root) / "model.pth").state)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_what_a_training_leaves(
    config: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Who comes back in the morning finds no weights, no curve, or weights that the labeling job does not take."""
    val = f"data.val={{annotations: {drawn / 'annotations.json'}, images: {drawn / 'images'}}}"
    assert fit(config, val) == 0
    root = tmp_path / "out/t"
    assert f"trained {STEPS} steps: {root}/model.pth" in capsys.readouterr().out
    lines = [line for line in caplog.messages if line.startswith("step ")]
    assert len(lines) == STEPS
    for part in ("loss", "cls", "mask", "lr", "images/s", "data"):
        assert part in lines[-1]

    rows = history(root)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert [("val mask AP" in row) for row in rows] == [False, True] * 3
    steps = [saved.step for saved in checkpoints.saved(Store(), str(root))]
    assert steps[-2:] == [4, 6]
    assert (root / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((root / "tensorboard").iterdir())) == 1
    assert (root / "best.pth").is_file()

    found = read_checkpoint(root / "model.pth")
    truth = json.loads((drawn / "annotations.json").read_text())
    assert found.categories == tuple((c["id"], c["name"]) for c in truth["categories"])
    assert found.provenance is not None
    assert found.provenance["steps"] == STEPS
    assert found.provenance["skipped"] == 0

    labelling = tmp_path / "label.yaml"
    labelling.write_text(
        yaml.safe_dump(
            {
                "input": {"uri": str(drawn / "images")},
                "output": {"uri": str(tmp_path / "run")},
                "labeler": {"weights": str(root / "model.pth")},
                "run": {"workers": 1},
            }
        )
    )
    assert label.main(["--config", str(labelling)]) == 0
    assert ledger.totals(ledger.commits(Store(), str(tmp_path / "run"))).images == 8


def test_run_again(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training that is done must not be done again, nor lose its weights."""
    assert fit(config) == 0
    root = tmp_path / "out/t"
    before, rows = weights(root), history(root)
    (root / "model.pth").unlink()
    assert fit(config) == 0
    assert "trained 6 steps" in capsys.readouterr().out
    assert history(root) == rows
    assert same(weights(root), before)


def test_final_weights_that_are_stale(config: Path, drawn: Path, tmp_path: Path) -> None:
    """A death after the last checkpoint leaves the weights of an earlier end in place; run again must replace them."""
    val = f"data.val={{annotations: {drawn / 'annotations.json'}, images: {drawn / 'images'}}}"
    settings = [val, "schedule.steps=2", "run.checkpoint_every=1"]
    assert fit(config, *settings) == 0
    names = ("model.pth", "best.pth")
    before = {name: (tmp_path / "out/t" / name).read_bytes() for name in names}
    for name in names:
        (tmp_path / "out/t" / name).write_bytes(b"of an earlier end")
    assert fit(config, *settings) == 0
    assert before == {name: (tmp_path / "out/t" / name).read_bytes() for name in names}


def test_what_trackers_are_told(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that was stopped, to go on tonight, must not stand among the finished ones."""
    ends: list[str] = []

    class Tracker:
        def log(self, row: Mapping[str, float]) -> None:
            pass

        def close(self, status: trackers.Status) -> None:
            ends.append(status)

    monkeypatch.setattr(trackers, "open_trackers", lambda *args, **kwargs: trackers.Trackers([Tracker()]))
    read = load(TrainConfig, str(config), ["schedule.steps=2"])
    model = load_config(read.model.config, read.model.overrides).dump()
    assert fitting.work(read, model, interrupted=lambda: True).ended == "interrupted"
    assert fitting.work(read, model).ended == "done"
    wild = ["run.name=wild", "schedule.lr=1.0e+30", "schedule.warmup=0", "schedule.clip=0"]
    assert fitting.work(load(TrainConfig, str(config), wild), model).ended == "diverged"
    assert ends == ["killed", "finished", "failed"]


def test_stopped_and_gone_on_with(config: Path, tmp_path: Path) -> None:
    """Ctrl-C must lose nothing: run again, the training ends with the weights of an undisturbed one, each step once."""
    words = [sys.executable, "-m", "jobs.train", "--config", str(config), "--set", "run.name=stopped"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(words, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "step 3/" in line:
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 1
    assert re.fullmatch(r"error: stopped at step [345]; run again to go on from there\n", said[-1])
    assert fit(config, "run.name=stopped") == 0
    assert fit(config) == 0
    undisturbed, stopped = (history(tmp_path / "out" / name) for name in ("t", "stopped"))
    assert [row["step"] for row in stopped] == [row["step"] for row in undisturbed]
    assert [row["loss"] for row in stopped] == [row["loss"] for row in undisturbed]
    assert same(weights(tmp_path / "out/t"), weights(tmp_path / "out/stopped"))


def test_a_damaged_checkpoint_is_passed_over(config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint that storage damaged must cost the steps since the one before, and no more."""
    assert fit(config, "run.name=whole") == 0
    assert fit(config) == 0
    for name in ("state.pth", "model.pth"):
        last = checkpoints.saved(Store(), str(tmp_path / "out/t"))[-1]
        (damaged,) = (tmp_path / "out/t/checkpoints").glob(f"{last.step:08d}-{last.attempt}/{name}")
        damaged.write_bytes(damaged.read_bytes()[:-100])
        caplog.clear()
        assert fit(config) == 0
        assert any("going on from step 4" in line for line in caplog.messages)
        assert same(weights(tmp_path / "out/t"), weights(tmp_path / "out/whole"))


def test_object_storage(config: Path, s3_environment: None, s3_uri: str) -> None:
    """Checkpoints that work on a disk only would be lost with the node."""
    for steps in (EVERY, STEPS):
        settings = (
            f"run.storage={s3_uri}",
            "schedule.decay=step",
            f"schedule.steps={steps}",
            "run.accept_changes=true",
        )
        assert fit(config, *settings) == 0
    root = join(s3_uri, "t")
    assert [row["step"] for row in history(root)] == [1, 2, 3, 4, 5, 6]
    assert Store().stat(join(root, "model.pth")).bytes > 0


def test_from_weights_of_other_classes(config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows of the class layers that mean other things must not be taken; the log names what starts anew."""
    assert fit(config, "schedule.steps=1") == 0
    given = read_checkpoint(tmp_path / "out/t/model.pth")
    assert given.categories is not None
    other = [(number, f"other {name}") for number, name in given.categories]
    save_checkpoint(tmp_path / "o.pth", given.state, categories=other, config_text=given.config, provenance=None)
    for file, anew in ((tmp_path / "out/t/model.pth", False), (tmp_path / "o.pth", True)):
        caplog.clear()
        assert fit(config, f"run.name={file.stem}", f"model.weights={file}", "schedule.steps=1") == 0
        (line,) = (line for line in caplog.messages if "tensors are from" in line)
        for name in ("box_predictor.cls_score.weight", "mask_head.predictor1.weight", "mask_head.predictor_bfg.bias"):
            assert (name in line) == anew
        assert "mask_head.fusion.0.weight" not in line


def test_unreadable_images_are_skipped_and_named(
    config: Path, drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One damaged file among millions must not end a training; nor may it go unnoticed."""
    coco = json.loads((drawn / "annotations.json").read_text())
    images = tmp_path / "images"
    images.mkdir()
    for image in coco["images"]:
        (images / image["file_name"]).write_bytes((drawn / "images" / image["file_name"]).read_bytes())
    damaged, missing = (images / image["file_name"] for image in coco["images"][:2])
    damaged.write_bytes(damaged.read_bytes()[:200])
    missing.unlink()
    assert fit(config, f"data.train.images={images}") == 0
    said = "\n".join(caplog.messages)
    assert re.search(rf"skipped {damaged}: ", said)
    assert missing.name in said
    provenance = read_checkpoint(tmp_path / "out/t/model.pth").provenance
    assert provenance is not None
    assert provenance["skipped"] == 2


def test_trained_on_a_run(config: Path, drawn: Path, tmp_path: Path) -> None:
    """Labels that this pipeline made are training data without any conversion."""
    labelling = tmp_path / "label.yaml"
    raw = {
        "input": {"uri": str(drawn / "images")},
        "output": {"uri": str(tmp_path / "run")},
        "labeler": {"weights": str(REPOSITORY / "configs/model/patchdct_demo.pth")},
        "run": {"workers": 1},
    }
    labelling.write_text(yaml.safe_dump(raw))
    assert label.main(["--config", str(labelling)]) == 0
    assert any(len(row.instances) for row in runs.read_rows(Store(), str(tmp_path / "run")))
    setting = f"data.train={{run: {tmp_path / 'run'}, score_threshold: 0.3}}"
    assert fit(config, setting, "schedule.steps=1") == 0
    found = read_checkpoint(tmp_path / "out/t/model.pth")
    assert found.categories == read_checkpoint(REPOSITORY / "configs/model/patchdct_demo.pth").categories


def test_a_loss_that_is_not_finite(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training that diverged must stop, say where, and keep the last good checkpoint."""
    assert fit(config, "schedule.lr=1.0e+30", "schedule.warmup=0", "schedule.clip=0", "run.checkpoint_every=1") == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: the (loss|gradient) is not finite at step 2 .*\.(png|jpg)", err)
    assert err.endswith("the last checkpoint is that of step 1")
    assert [saved.step for saved in checkpoints.saved(Store(), str(tmp_path / "out/t"))] == [1]
    assert not (tmp_path / "out/t/model.pth").exists()


Case = tuple[Callable[[Path, Path], list[str]], str]
REFUSED: dict[str, Case] = {
    "unknown data set": (
        lambda drawn, tmp: ["data.train.name=openimages"],
        r"data\.train\.name is 'openimages'; it must be 'coco', 'lvis_v0.5' or 'cityscapes'",
    ),
    "no annotations": (
        lambda drawn, tmp: [f"data.train.annotations={tmp}/none.json"],
        r"data\.train\.annotations: .*none\.json",
    ),
    "annotations without images": (
        lambda drawn, tmp: [f"data.train.images={tmp}"],
        r"data\.train\.images: none of the 8 images of .* is below ",
    ),
    "another model config": (
        lambda drawn, tmp: [f"model.config={tmp}/none.yaml"],
        r"model config .*none\.yaml cannot be read",
    ),
    "weights that are none": (
        lambda drawn, tmp: [f"model.weights={drawn}/annotations.json"],
        r"model\.weights: .*annotations\.json is no checkpoint",
    ),
    "storage below a file": (
        lambda drawn, tmp: [f"run.storage={drawn}/annotations.json"],
        r"run\.storage cannot be written: ",
    ),
    "a batch of none": (lambda drawn, tmp: ["schedule.batch_size=0"], r"schedule\.batch_size is 0"),
    "a tracker that is not installed": (lambda drawn, tmp: ["run.trackers=[wandb]"], r"wandb, which is not installed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, config: Path, drawn: Path, tmp_path: Path, refused: Refused) -> None:
    """What cannot be trained with is refused in one sentence, before anything is written."""
    settings, sentence = REFUSED[case]
    assert re.search(sentence, refused(train.main, config, *settings(drawn, tmp_path)))
    assert not list((tmp_path / "out").glob("t/*"))


def test_a_relative_storage_in_a_ray_job(config: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints would be lost with the job's working directory."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    said = refused(train.main, config, "run.storage=out")
    assert said.startswith(
        "run.storage is 'out', which in a Ray job would lie in a folder that is removed with the job"
    )


def test_other_categories_in_val(config: Path, drawn: Path, tmp_path: Path, refused: Refused) -> None:
    """Figures of classes that mean something else would pick the wrong checkpoint as the best."""
    coco = json.loads((drawn / "annotations.json").read_text())
    coco["categories"][0]["name"] = "zebra"
    (tmp_path / "val.json").write_text(json.dumps(coco))
    said = refused(train.main, config, f"data.val={{annotations: {tmp_path / 'val.json'}, images: {drawn / 'images'}}}")
    assert re.match(r"data\.val has the categories \(1, 'zebra'\), .* they must be the same$", said)


def test_another_schedule_is_refused(
    config: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    """Going on with other settings would give weights that nobody can account for."""
    assert fit(config, "schedule.steps=2") == 0
    capsys.readouterr()
    said = refused(train.main, config, "schedule.lr=5.0e-4")
    assert re.search(r"out/t holds a training that was begun differently \(schedule\.lr: 0\.001 -> 0\.0005", said)
    assert "run.accept_changes=true" in said
