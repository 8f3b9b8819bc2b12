"""`patchlabel canary`, with real runs on a local Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import canary, cli, runs
from pipeline.errors import RunError, UserError
from pipeline.records import Category
from pipeline.store import Store
from tests.small_runs import make_run


@pytest.fixture
def old(tmp_path: Path) -> str:
    """A run of two tars."""
    make_run(Store(), str(tmp_path / "old"), tmp_path / "inputs")
    return str(tmp_path / "old")


def test_the_same_model_changes_nothing_and_another_one_does(
    old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A canary that sings at the same model, or is silent at another one, is worth nothing."""
    words = ["canary", old, "--sample", "7", "--min-score", "0", "--set", "run.address=local", "--json"]
    assert cli.main([*words, "--out", str(tmp_path / "same")]) == 0
    same = json.loads(capsys.readouterr().out)
    assert (same["images"], same["changed"], same["total"]["churn"]) == (7, 0, 0.0)
    assert same["total"]["old"] == same["total"]["kept"] > 7

    other = ["--set", "labeler.max_instances=1", "--out", str(tmp_path / "other")]
    assert cli.main([*words, *other]) == 0
    found = json.loads(capsys.readouterr().out)
    one_each = sum(min(1, len(row.instances)) for row in runs.read_rows(Store(), str(tmp_path / "other/run")))
    assert found["total"]["old"] == same["total"]["old"]
    assert found["total"]["new"] == found["total"]["kept"] == one_each
    assert found["total"]["lost"] == found["total"]["old"] - one_each > 0
    assert set(found["classes"]) == {"bright", "dark"}
    page = (tmp_path / "other/canary.html").read_text()
    assert page.count("<figure>") == 2 * min(7, len(list((tmp_path / "other/images").iterdir())))
    assert json.loads((tmp_path / "other/canary.json").read_text())["changed"] == found["changed"]

    assert cli.main([*words, *other, "--set", "labeler.max_instances=2"]) == 2
    words_of = capsys.readouterr().err
    assert "--out" in words_of
    assert "labelled otherwise (labeler.max_instances: 1 -> 2); name a new folder" in words_of


def test_the_same_sample_each_time(old: str, tmp_path: Path) -> None:
    """Two canaries are compared with each other: they must have looked at the same images."""
    labels = runs.opened(Store(), old)
    first, second = (canary.sample(labels, 4, str(tmp_path / name)) for name in ("a", "b"))
    assert first.keys() == second.keys()
    assert len(first) == 4
    assert sorted(first) == sorted(path.name for path in (tmp_path / "a/images").iterdir())


def test_a_sample_that_nothing_could_be_made_of(old: str, tmp_path: Path) -> None:
    """No image of none changes, which is no reason to trust the new model."""
    labels = runs.opened(Store(), old)
    sampled = canary.sample(labels, 4, str(tmp_path / "a"))
    nothing = labels.only({})
    with pytest.raises(RunError, match="none of the 4 images of the sample could be labelled"):
        canary.compare(sampled, labels, nothing, str(tmp_path / "a"))
    assert not (tmp_path / "a/canary.json").exists()


def test_a_model_of_other_classes_is_not_compared(old: str, tmp_path: Path) -> None:
    """By their ids all masks would be of the same class, and no mask would change."""
    labels = runs.opened(Store(), old)
    sampled = canary.sample(labels, 4, str(tmp_path / "a"))
    swapped = (Category(id=1, name="dark"), Category(id=7, name="bright"))
    with pytest.raises(UserError, match=r"category 1 is 'dark' for the new model, and 'bright' in .*old"):
        canary.compare(sampled, labels, replace(labels, categories=swapped), str(tmp_path / "a"))


def test_another_sample_in_the_same_place_is_refused(old: str, tmp_path: Path) -> None:
    """Its run would hold images that the sample does not have, or twice those that both have."""
    store, out = Store(), str(tmp_path / "a")
    labels = runs.opened(store, old)
    before = canary.sample(labels, 4, out).keys()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a/images").iterdir()}
    assert canary.sample(labels, 4, out).keys() == before
    # The run of the sample names its images by their times: one written again is another one, and unreadable.
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a/images").iterdir()} == times
    with pytest.raises(UserError, match="holds other images than this sample; name a new folder"):
        canary.sample(labels, 2, out)
    assert canary.sample(labels, 6, out).keys() > before  # as after a copying that was killed
    store.delete(f"{out}/images/{min(before)}")
    store.put(f"{out}/run/manifest.json", b"begun")
    with pytest.raises(UserError, match="holds other images than this sample; name a new folder"):
        canary.sample(labels, 6, out)


def test_wrong_input_is_one_sentence(old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is labelled, and nothing written, for a name that was mistyped."""
    out = ["--out", str(tmp_path / "out")]
    assert cli.main(["canary", str(tmp_path / "none"), *out]) == 2
    assert "is no labeling run" in capsys.readouterr().err
    assert cli.main(["canary", old, "--set", "labeler.wieghts=a.pth", *out]) == 2
    assert "labeler.weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
