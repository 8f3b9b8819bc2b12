"""Log lines, for people and for machines."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from pipeline.logs import FORMAT, JsonFormatter

SCRIPT = """
import logging
from pipeline import logs
logs.set_up()
logging.getLogger("pipeline.run").info("3 shards\\nto do", extra={"shards": 3})
logging.getLogger("urllib3").info("of no use")
logging.getLogger("urllib3").warning("of use")
"""


def lines(monkeypatch: pytest.MonkeyPatch, format: str) -> list[str]:
    monkeypatch.setenv(FORMAT, format)
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_each_line_of_json_is_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is no JSON, or two lines of one event, are lost where logs are gathered."""
    ours, theirs = map(json.loads, lines(monkeypatch, "json"))
    assert (ours["message"], ours["shards"], ours["level"], ours["logger"]) == (
        "3 shards\nto do",
        3,
        "info",
        "pipeline.run",
    )
    assert theirs["message"] == "of use"


def test_plain_lines_are_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but json is text."""
    first, *_ = lines(monkeypatch, "")
    assert first.endswith(" 3 shards")
    assert not first.startswith("{")


def test_an_exception_stays_in_its_line() -> None:
    """The traceback of a crash is what one looks for."""
    try:
        raise RuntimeError("no luck")
    except RuntimeError:
        record = logging.LogRecord("pipeline", logging.ERROR, "", 0, "it died", (), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert line["exception"].endswith("RuntimeError: no luck")
    assert line["time"].endswith("+00:00")
