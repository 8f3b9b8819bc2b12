"""Masks that a tool itself has coded come back as they are, through `patchlabel apply`."""

import os
import subprocess
from pathlib import Path

import pytest

from pipeline import cli, corrections, runs
from pipeline.store import Store
from tests.tools.awkward import make_run

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("PATCHLABEL_TOOLS", REPOSITORY / "build/tools/bin/python"))
READER = Path(__file__).parent / "readers" / "answers.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"{PYTHON} is not there; make test-tools installs the tools"),
]


@pytest.mark.parametrize("tool", ["labelstudio", "cvat"])
def test_what_a_tool_has_coded_comes_back(tool, tmp_path):
    """Tools write masks in another way than we do: other lengths, other attributes; a mask must not move by a pixel."""
    store, run, out = Store(), str(tmp_path / "run"), tmp_path / "package"
    make_run(store, run, tmp_path / "inputs")
    command = ["review", run, "--budget", "50", "--format", tool, "--min-score", "0", "--out", str(out)]
    assert cli.main(command) == 0
    answers = tmp_path / "answers"
    done = subprocess.run(
        [str(PYTHON), str(READER), str(out), tool, str(answers)],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    before = {row.image_id: row for row in runs.opened(store, run).all_rows()}
    assert cli.main(["apply", run, "--corrections", str(answers), "--min-score", "0"]) == 0
    (version,) = corrections.read(store, run).versions
    masks = sum(len(row.instances) for row in before.values())
    assert (version.counts["kept"], version.counts["changed"], version.counts["added"]) == (masks, 0, 0)
    for row in runs.opened(store, run).all_rows():
        assert row.instances.counts == before[row.image_id].instances.counts
