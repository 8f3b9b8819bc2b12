"""`python -m jobs.label` as a user runs it: killed, stopped, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline import ledger, runs
from pipeline.store import Store
from tests.fakes import draw, write_tar

REPOSITORY = Path(__file__).resolve().parents[2]
SHARDS, IMAGES = 10, 40
PATIENCE_S = 120


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for shard in range(SHARDS):
        files = {f"{shard}-{i}.png": draw(100 * shard + i, width=240, height=160) for i in range(IMAGES)}
        write_tar(folder / f"{shard}.tar", files)
    return folder


def write_config(folder: Path, tars: Path | str, **changes: object) -> Path:
    raw: dict[str, object] = {
        "input": {"uri": str(tars)},
        "output": {"uri": str(folder / "out")},
        "labeler": {"name": "tests.fakes:ThresholdLabeler"},
        **changes,
    }
    path = folder / "label.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def start(config: Path, *settings: str) -> subprocess.Popen[str]:
    """The command, in a session of its own, so that a kill can reach all that it started."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.label", "--config", str(config), *(x for s in settings for x in ("--set", s))],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)  # between two looks


def commits(out: Path) -> dict[str, str]:
    return {one.shard_id: one.attempt for one in ledger.commits(Store(), str(out))}


def rows(out: Path) -> list[tuple[object, ...]]:
    return sorted(
        (row.key, row.image_id, row.status, row.height, row.width, row.instances.counts, tuple(row.instances.scores))
        for row in runs.read_rows(Store(), str(out))
    )


def test_a_run_killed_at_three_moments_ends_with_the_rows_of_an_undisturbed_one(tars: Path, tmp_path: Path) -> None:
    """A killed run that loses, doubles or repeats work is the failure that this pipeline exists to prevent."""
    (tmp_path / "calm").mkdir()
    assert finish(start(write_config(tmp_path / "calm", tars)))[0] == 0

    config, out = write_config(tmp_path, tars), tmp_path / "out"
    done: dict[str, str] = {}
    for moment in (0, 2, 6):
        process = start(config)
        wait_until(lambda enough=moment: out.exists() and len(commits(out)) >= enough, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        now = commits(out)
        assert done.items() <= now.items()  # what was committed is not done again
        done = now
    code, stdout, _ = finish(start(config))
    assert code == 0
    assert f"{SHARDS} of {SHARDS} shards are committed" in stdout
    assert done.items() <= commits(out).items()
    assert rows(out) == rows(tmp_path / "calm/out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on(tars: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C must leave a sentence and a run that goes on, not a traceback and half a shard."""
    process = start(write_config(tmp_path, tars))
    wait_until(lambda: (tmp_path / "out").exists() and len(commits(tmp_path / "out")) >= 1, process)
    process.send_signal(number)
    code, stdout, _ = finish(process)
    assert code == 1
    assert f"stopped by {number.name}; run the same command again to go on" in stdout
    assert not list((tmp_path / "out/failures").glob("*"))
