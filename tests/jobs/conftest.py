"""A label config for the commands to be run with, and what a refusal must look like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.fakes import draw, write_tar
from tests.pipeline import conftest as storage
from tests.refusals import Refused

s3_endpoint, s3_environment, s3_uri = storage.s3_endpoint, storage.s3_environment, storage.s3_uri


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command writes to a relative path by mistake must not land in the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A label config that is all right; its output is `out`."""
    write_tar(tmp_path / "in/0.tar", {f"{i}.png": draw(i) for i in range(4)})
    raw = {
        "input": {"uri": str(tmp_path / "in")},
        "output": {"uri": str(tmp_path / "out")},
        "labeler": {"name": "tests.fakes:ThresholdLabeler"},
    }
    path = tmp_path / "label.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def refused(at_home: None, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must exit with 2 and say one sentence and nothing else, which comes back."""

    def run(main: Callable[[list[str]], int], config: Path, *settings: str, code: int = 2) -> str:
        found = main(["--config", str(config), *(word for one in settings for word in ("--set", one))])
        out, err = capsys.readouterr()
        assert (found, out) == (code, "")
        (sentence,) = err.splitlines()
        assert sentence.startswith("error: ")
        return sentence.removeprefix("error: ")

    return run
