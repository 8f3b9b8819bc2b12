"""Photographs, the shipped checkpoint and a real Ray: slow, and closest to what a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import yaml
from pycocotools.coco import COCO

from pipeline import ledger, runs
from pipeline.store import Store
from tests.pack import FORMS, as_tar

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = REPOSITORY / "configs/model/patchdct_demo.pth"
MINUTES = 60

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30 * MINUTES)]


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> list[Path]:
    return sorted((shared_data / "coco-mini/val").glob("*.jpg"))


def command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def write_config(path: Path, uri: Path, out: Path) -> Path:
    raw = {
        "input": {"uri": str(uri), "images_per_shard": 25},
        "output": {"uri": str(out)},
        "labeler": {"weights": str(CHECKPOINT), "score_threshold": 0.1},
        "run": {"workers": 2},
    }
    path.write_text(yaml.safe_dump(raw))
    return path


def rows(out: Path) -> dict[str, tuple[object, ...]]:
    return {
        row.key: (row.status, row.height, row.width, row.instances.counts, tuple(row.instances.scores.tolist()))
        for row in runs.read_rows(Store(), str(out))
    }


def assert_same(found: dict[str, tuple[object, ...]], expected: dict[str, tuple[object, ...]]) -> None:
    """The same masks to the bit; scores to the last bits of float32, as sums depend on what else is in a batch."""
    assert found.keys() == expected.keys()
    for key, (*row, scores) in found.items():
        assert row == list(expected[key][:-1]), key
        assert scores == pytest.approx(expected[key][-1], abs=1e-5), key


@pytest.fixture(scope="module")
def from_tars(photographs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over the photographs in tar shards."""
    folder = tmp_path_factory.mktemp("tars")
    config = write_config(folder / "label.yaml", as_tar(photographs, folder / "in"), folder / "run")
    done = command("jobs.label", "--config", str(config))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_photographs_give_the_same_rows_from_every_form(
    photographs: list[Path], from_tars: Path, tmp_path: Path
) -> None:
    """Labels must not depend on how images were packed, what else is in a batch, or which worker they met."""
    expected = rows(from_tars)
    assert len(expected) == len(photographs)
    assert sum(len(row[3]) for row in expected.values()) > len(photographs)  # type: ignore[arg-type]
    for form in ("parquet", "images", "coco"):
        uri = FORMS[form](photographs, tmp_path / form)
        config = write_config(tmp_path / f"{form}.yaml", uri, tmp_path / f"{form}-run")
        done = command("jobs.label", "--config", str(config))
        assert done.returncode == 0, done.stderr
        assert command("pipeline.cli", "verify", str(tmp_path / f"{form}-run")).returncode == 0
        assert_same(rows(tmp_path / f"{form}-run"), expected)


def test_the_outputs_open_in_pycocotools_and_duckdb(from_tars: Path, photographs: list[Path]) -> None:
    """Shards that only our own reader understands are no hand-over."""
    images = sum(len(COCO(str(path)).getImgIds()) for path in (from_tars / "coco").glob("*.json"))
    assert images == len(photographs)
    (counted,) = duckdb.sql(
        f"select count(*), sum(len(instances)), count(distinct image_id) from '{from_tars}/labels/*.parquet'"
    ).fetchall()
    totals = ledger.totals(ledger.commits(Store(), str(from_tars)))
    assert counted == (len(photographs), totals.instances, len(photographs))


@pytest.fixture
def ray_head(tmp_path: Path) -> Iterator[str]:
    """A cluster as `ray start --head` makes it -> the address for `ray job submit`."""
    ray = str(Path(sys.executable).with_name("ray"))
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    port, dashboard = "6390", "8266"
    words = ["start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=3", "--block"]
    with (tmp_path / "ray.log").open("w") as log:
        head = subprocess.Popen([ray, *words], env=env, stdout=log, stderr=log, start_new_session=True)
        yield f"http://127.0.0.1:{dashboard}"
        head.terminate()
        head.wait(timeout=60)


def test_ray_job_submit_gives_the_same_rows(
    photographs: list[Path], from_tars: Path, ray_head: str, tmp_path: Path
) -> None:
    """The command of the README on a cluster: the code is sent, workers start, the rows are those of a local run."""
    del photographs
    config = write_config(tmp_path / "label.yaml", from_tars.parent / "in", tmp_path / "run")
    submit = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", ray_head, "--working-dir", "."]
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    words = [*submit, "--", "python", "-m", "jobs.label", "--config", str(config)]
    for _ in range(60):  # until the head's job server answers
        done = subprocess.run(words, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
        if "Failed to connect" not in done.stderr + done.stdout:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shards are committed" in done.stdout
    assert_same(rows(tmp_path / "run"), rows(from_tars))
    assert json.loads(command("pipeline.cli", "status", str(tmp_path / "run"), "--json").stdout)["pending"] == 0
