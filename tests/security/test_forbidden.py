"""What code of the packages may not do: ruff's configuration in pyproject.toml is the one place that says so."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.refusals import REPOSITORY

PACKAGES = ("jobs", "patchdct", "pipeline")

FORBIDDEN = """\
import pickle
import cloudpickle
import marshal
import shelve
import dill
import joblib
import xml.etree.ElementTree
from numpy import load
numpy.load("a")
pandas.read_pickle("a")
torch.load("a")
torch.jit.load("a")
yaml.load("a", yaml.Loader)
yaml.unsafe_load("a")
yaml.full_load("a")
eval("a")
exec("a")
os.system("a b")
os.popen("a b")
subprocess.run("a b", shell=True)
subprocess.getoutput("a b")
tempfile.mktemp()
requests.get("https://host")
requests.get("https://host", timeout=9, verify=False)
urllib.request.urlopen(url)
tarfile.open("a").extractall("b")
zipfile.ZipFile("a").extractall("b")
hashlib.md5(b"a")
time.time()
time.time_ns()
datetime.datetime.now(datetime.UTC)
datetime.datetime.utcnow()
datetime.date.today()
"""
MODULES = "datetime hashlib numpy os pandas requests subprocess tarfile tempfile time torch urllib.request yaml zipfile"

#: The files that may do some of it: the readers of checkpoints, and what tells people the time of day.
EXEMPT = {
    "patchdct/checkpoint.py",
    "patchdct/safe_pickle.py",
    "jobs/fitting.py",
    "pipeline/dates.py",
}


def ruff(*words: str, code: str | None = None) -> list[dict[str, Any]]:
    """What ruff finds by the rules that guard against danger, as the project has them switched on."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json", *words]
    done = subprocess.run(command, cwd=REPOSITORY, input=code, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return [fault for fault in json.loads(done.stdout) if re.match(r"S\d|TID", fault["code"])]


@pytest.mark.parametrize("package", PACKAGES)
def test_ruff_refuses_what_is_dangerous(package: str) -> None:
    """A rule that is switched off, or a name that is spelt wrongly in the list of what is banned."""
    code = f"import {', '.join(MODULES.split())}\n{FORBIDDEN}"
    found = ruff("--stdin-filename", f"{package}/new.py", "-", code=code)
    refused = {fault["location"]["row"] for fault in found}
    lines = code.splitlines()
    assert [line for row, line in enumerate(lines, start=1) if row > 1 and row not in refused] == []


def test_who_is_exempt() -> None:
    """An exemption that grows, by a comment that silences ruff."""
    found = ruff("--ignore-noqa", *PACKAGES)
    by_comment = {str(Path(fault["filename"]).relative_to(REPOSITORY)) for fault in found}
    assert by_comment <= EXEMPT
    assert [fault["code"] for fault in found if "clock" not in fault["message"]] == []


@pytest.mark.parametrize(
    ("option", "allowed"), [("allow_pickle", False), ("weights_only", True), ("allow_unsafe", False), ("shell", False)]
)
def test_options_of_functions_that_may_run_code(option: str, allowed: bool) -> None:
    """`numpy.lib.format.read_array(..., allow_pickle=True)` and its like, which ruff does not know."""
    for path, call in calls():
        for keyword in call.keywords:
            if keyword.arg == option:
                assert isinstance(keyword.value, ast.Constant), (path, call.lineno)
                assert keyword.value.value is allowed, (path, call.lineno)


def calls() -> Iterator[tuple[Path, ast.Call]]:
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield path, node
