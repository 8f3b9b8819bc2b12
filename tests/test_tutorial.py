"""The tutorial of the README, typed as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

COMMANDS = 10


def commands() -> list[str]:
    """The commands of the tutorial, in their order; a line that ends in a backslash goes on."""
    chapter = re.search(r"^## Tutorial$(.*?)^## ", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert chapter, "the README has no tutorial"
    lines = re.findall(r"^    (.*)$", chapter[1].replace("\\\n", " "), re.MULTILINE)
    return [line.partition("  #")[0].strip() for line in lines if not line.startswith("export PATH")]


def test_it_has_ten_commands() -> None:
    """More would be no tutorial."""
    assert len(commands()) == COMMANDS
    assert all(re.match(r"(python -m (jobs|patchdct)\.|patchlabel )", command) for command in commands())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_command_does_what_it_says(tmp_path: Path) -> None:
    """A tutorial that breaks at its seventh command costs a new user."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in commands():
        start = time.monotonic()
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        print(f"{time.monotonic() - start:6.1f} s  {command}\n{done.stdout}")
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    here = tmp_path / "build/tutorial"
    assert json.loads((here / "canary/canary.json").read_text())["images"] > 0
    status = subprocess.run(
        ["patchlabel", "status", "build/tutorial/run2", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(status.stdout)
    assert found["done"] == found["shards"]
    assert found["corrections"] == 1
