"""The training job on Ray: real workers, real deaths."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from patchdct.checkpoint import read_checkpoint
from pipeline import checkpoints
from pipeline.store import Store
from tests.jobs import train_deaths
from tests.refusals import start, tree

MINUTES = 60


@pytest.mark.timeout(10 * MINUTES)
def test_two_workers(tmp_path: Path) -> None:
    """Workers on Ray that train something else, or whose lines nobody sees, are found out on an expensive cluster."""
    config = train_deaths.write_config(tmp_path)
    settings = ["run.name=two", "schedule.steps=4", "run.workers=2", "run.checkpoint_every=4"]
    code, out, err = start(config, *settings, command="jobs.train")
    assert code == 0, "\n".join(err)
    assert re.search(r"trained 4 steps: .*two/model\.pth", out)
    lines = "\n".join([out, *err])
    assert "4 images a step: 2 workers x 2" in lines
    assert [int(step) for step in re.findall(r"step (\d)/4 ", lines)] == [1, 2, 3, 4]
    root = str(tmp_path / "two")
    history = checkpoints.read_history(Store(), root, checkpoints.saved(Store(), root)[-1])
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    provenance = read_checkpoint(tmp_path / "two/model.pth").provenance
    assert provenance is not None
    assert provenance["workers"] == 2


def test_workers_without_a_place(tmp_path: Path) -> None:
    """Ray would wait for ever, in silence, for a machine to get more cores."""
    raw = {
        "data": {"train": {"annotations": "none.json", "images": "none"}},  # they come later
        "model": {"config": "configs/model/patchdct_demo.yaml"},
        "run": {"name": "t", "storage": str(tmp_path / "out"), "workers": 1000, "cpus_per_worker": 0.5},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(raw))
    code, out, err = start(tmp_path / "train.yaml", command="jobs.train")
    assert (code, out) == (2, ""), "\n".join(err)
    sentence = r"error: run\.workers is 1000, each with 0\.5 CPUs, but this machine has \d+; it takes \d+ at most"
    assert re.fullmatch(sentence, "\n".join(err))
    assert tree(tmp_path / "out") == set()


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
