"""The training job on Ray: real workers, real deaths."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from patchdct.checkpoint import read_checkpoint
from pipeline import checkpoints
from pipeline.store import Store
from tests.jobs import train_deaths

REPOSITORY = Path(__file__).resolve().parents[2]
MINUTES = 60


@pytest.mark.timeout(10 * MINUTES)
def test_two_workers(tmp_path: Path) -> None:
    """Workers on Ray that train something else, or whose lines nobody sees, are found out on an expensive cluster."""
    config = train_deaths.write_config(tmp_path)
    settings = ["run.name=two", "schedule.steps=4", "run.workers=2", "run.checkpoint_every=4"]
    words = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.train", "--config", str(config), *words],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"trained 4 steps: .*two/model\.pth", done.stdout)
    lines = done.stdout + done.stderr
    assert "4 images a step: 2 workers x 2" in lines
    assert [int(step) for step in re.findall(r"step (\d)/4 ", lines)] == [1, 2, 3, 4]
    root = str(tmp_path / "two")
    history = checkpoints.read_history(Store(), root, checkpoints.saved(Store(), root)[-1])
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    provenance = read_checkpoint(tmp_path / "two/model.pth").provenance
    assert provenance is not None
    assert provenance["workers"] == 2


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES)
def test_deaths(tmp_path: Path) -> None:
    """A worker, a driver and a node that die must cost time, and nothing else; each step counts once."""
    undisturbed, worker, driver, node = train_deaths.main(tmp_path)
    for one in (worker, driver):
        assert one["weights_equal"]
        assert one["steps_that_differ"] == 0
    assert undisturbed["steps_taken_again"] == 0
    assert node["workers_at_the_end"] == 1
    assert node["steps_taken_again"] == 0
    assert float(str(node["greatest_difference_of_a_loss"])) < 0.25
