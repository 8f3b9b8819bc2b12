"""`patchlabel plan --sample`: what a run would take, from a few of its images."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import cli
from tests.fakes import draw, write_tar
from tests.small_runs import make_inputs

SHARDS = 3


def images(folder: Path) -> None:
    folder.mkdir()
    for number in range(18):
        (folder / f"{number}.png").write_bytes(draw(number))


def parquet(folder: Path) -> None:
    folder.mkdir()
    for number in range(SHARDS):
        rows = {"key": [f"{number}-{i}" for i in range(6)], "image": [draw(10 * number + i) for i in range(6)]}
        pq.write_table(pa.table(rows), folder / f"{number}.parquet")


def tars(folder: Path) -> None:
    make_inputs(folder, SHARDS)


def config(folder: Path, tmp_path: Path) -> str:
    given = {
        "input": {"uri": str(folder)},
        "output": {"uri": str(tmp_path / "out")},
        "labeler": {"name": "tests.fakes:ThresholdLabeler"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(given))
    return str(tmp_path / "config.yaml")


@pytest.mark.parametrize("make", [images, parquet, tars])
def test_time_and_cost_of_the_whole_input(make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever pays for every GPU hour asks before, not after; an estimate must not write where the run will go."""
    make(tmp_path / "in")
    words = ["plan", "--config", config(tmp_path / "in", tmp_path), "--sample", "5", "--price", "3", "--workers", "2"]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["estimate"]
    assert found["sampled"] == 5
    assert found["images"] == pytest.approx(18, abs=0 if make is images else 1)
    assert found["counted"] == (make is images)
    assert found["worker_hours"] == pytest.approx(found["images"] / found["images_per_second"] / 3600)
    assert found["hours"] == pytest.approx(found["worker_hours"] / (1 if make is images else 2))
    assert found["cost"] == pytest.approx(3 * found["worker_hours"])
    assert found["cost_per_1000_images"] == pytest.approx(1000 * found["cost"] / found["images"])
    assert not (tmp_path / "out").exists()
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "images a second by one worker (5 images of" in out
    assert "at 3 an hour" in out


def test_a_price_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a sample there is nothing to multiply it with."""
    tars(tmp_path / "in")
    assert cli.main(["plan", "--config", config(tmp_path / "in", tmp_path), "--price", "3"]) == 2
    assert "--sample N" in capsys.readouterr().err


def test_an_input_without_a_readable_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No rate can be made of nothing."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"")
    assert cli.main(["plan", "--config", config(tmp_path / "in", tmp_path), "--sample", "3"]) == 2
    assert "none of the images" in capsys.readouterr().err


def test_an_input_that_is_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts are refused a hundred times as fast as images are labelled, which made a rate and a price of nothing."""
    write_tar(tmp_path / "in/a.tar", {f"{number}.jpg": b"no image" for number in range(4)})
    assert cli.main(["plan", "--config", config(tmp_path / "in", tmp_path), "--sample", "3"]) == 2
    said = capsys.readouterr().err
    assert "none of the images that were tried can be read, so nothing was timed (3 not_an_image)" in said
