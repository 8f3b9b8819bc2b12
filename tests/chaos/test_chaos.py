"""Real deaths, a few of them; `make chaos` has many."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import __main__ as chaos
from tests.chaos import zombie
from tests.chaos.nodes import Nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_round_of_deaths_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The promise of the project, with a driver, workers and nodes that are killed while they work."""
    words = ["--rounds", "1", "--seed", "5", "--seconds", "20", "--storage", "disk", "--out", str(tmp_path / "chaos")]
    assert chaos.main(words) == 0
    report = json.loads((tmp_path / "chaos/report.json").read_bytes())
    assert (report["lost"], report["doubled"], report["faulty_rounds"]) == (0, 0, [])
    assert report["kills"] >= 3


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="cutting a node off takes root and ip")
@pytest.mark.parametrize("story", zombie.STORIES)
def test_the_late_write_of_a_worker_that_was_cut_off_changes_nothing(
    tmp_path: Path, story: Callable[[Nodes, Path], list[str]]
) -> None:
    """A partitioned worker that comes back would otherwise replace or double the labels of the one that took over."""
    with Nodes({}, can_isolate=True) as nodes:
        assert story(nodes, tmp_path) == []
