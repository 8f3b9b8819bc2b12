"""The Dockerfile of configs/cluster, against the tree that it is built from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("jobs", "patchdct", "pipeline")


@pytest.fixture(scope="module")
def instructions() -> list[list[str]]:
    """The instructions, each as its words."""
    text = (REPOSITORY / "configs/cluster/Dockerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [line.split() for line in lines if line.strip()]


def copied(instructions: list[list[str]]) -> list[str]:
    """What is copied from the repository."""
    found = [words[1:-1] for words in instructions if words[0] == "COPY" and not words[1].startswith("--from")]
    return [source for sources in found for source in sources]


def test_what_it_copies_reaches_the_builder(instructions: list[list[str]]) -> None:
    """A build that ends with "not found", as a file is gone or .dockerignore keeps it back."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    sources = copied(instructions)
    assert lines[1] == "*"
    assert set(sources) == kept
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []


def test_it_installs_what_make_installs(instructions: list[list[str]]) -> None:
    """An image of other packages than the tests have seen, or of some that nobody has checked."""
    makefile = (REPOSITORY / "Makefile").read_text()
    run = " ".join(word for words in instructions if words[0] == "RUN" for word in words)
    for flags in (
        "--no-deps --require-hashes -r requirements-bootstrap.lock",
        "--no-deps --python-version 3.10 --require-hashes -r requirements-detectron2.lock",
    ):
        assert flags in run
        assert flags in makefile
    assert "--no-build-isolation --require-hashes -r requirements.lock" in run
    assert run.count("pip install") == run.count("--require-hashes") + 1  # and this package itself


def test_it_runs_as_the_user_of_the_pods(instructions: list[list[str]]) -> None:
    """Pods that are refused because the image runs as root, or a user that cannot write to its own home."""
    (user,) = {words[1] for words in instructions if words[0] == "USER"}
    job: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs/cluster/rayjob-label.yaml").read_text())
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert user == str(pod["securityContext"]["runAsUser"])
    assert any(f"--uid {user} " in " ".join(words) for words in instructions if words[0] == "RUN")


def test_packages_bring_their_other_files() -> None:
    """Pages and styles that an editable install has, but the package in the image has not."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    taken = {
        path
        for package, patterns in project["tool"]["setuptools"].get("package-data", {}).items()
        for pattern in patterns
        for path in REPOSITORY.joinpath(*package.split(".")).glob(pattern)
    }
    files = {path for name in PACKAGES for path in (REPOSITORY / name).rglob("*.*") if "__pycache__" not in path.parts}
    wanted = {path for path in files if path.is_file() and path.suffix not in (".py", ".md")}
    assert {str(path.relative_to(REPOSITORY)) for path in wanted - taken} == set()
