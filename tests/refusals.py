"""Commands as a user runs them, and what the tests of wrong input share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

REPOSITORY = Path(__file__).resolve().parents[1]
NO_SUCH_FILE = "no such file or directory"
PATIENCE_S = 240

#: The fixture `refused`: a command's `main`, its config, settings -> the one sentence that it said.
Refused: TypeAlias = Callable[..., str]


def tree(folder: Path) -> set[str]:
    """The files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def start(config: Path, *settings: str, command: str = "jobs.label") -> tuple[int, str, list[str]]:
    """`python -m COMMAND` as a user runs it -> exit status, standard output, and the lines of standard error."""
    words = [word for one in settings for word in ("--set", one)]
    done = subprocess.run(
        [sys.executable, "-m", command, "--config", str(config), *words],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


def told_by_ray(found: tuple[int, str, list[str]]) -> str:
    """The sentence of a run that was refused after Ray had started; before it there are only lines of progress."""
    code, out, err = found
    assert (code, out) == (2, "")
    assert all(line[:8].count(":") == 2 and "shards" in line for line in err[:-1]), err
    return err[-1].removeprefix("error: ")
