"""What every test gets: fixed seeds, one thread per process, Ray without access tokens; and the shared data, if any."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

# Read once by the libraries at import, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import pytest
from hypothesis import settings

SEED = 20230501
REPOSITORY = Path(__file__).resolve().parents[1]

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `--s3 seaweedfs` choose the server; without it, moto's serves the tests that need one."""
    choices = ("moto", "seaweedfs")
    parser.addoption("--s3", default="moto", choices=choices, help="run the tests that use S3 against this server")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what uses S3 where a server for it was chosen.

    Skip what is marked gpu on a machine without one; torch is loaded only where such a test was asked for.
    """
    if config.getoption("--s3") != "moto":
        config.hook.pytest_deselected(items=[item for item in items if not _uses_s3(item)])
        items[:] = [item for item in items if _uses_s3(item)]
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none"))


def _uses_s3(item: pytest.Item) -> bool:
    """Whether a test asks for the server, or for a place of the kind "s3", which asks for it."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    places = [one for one in parameters if isinstance(one, str)]
    return "s3_endpoint" in getattr(item, "fixturenames", ()) or "s3" in places


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Give each test the same random numbers, alone or in company; torch too where a test's module has loaded it."""
    random.seed(SEED)
    np.random.seed(SEED)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(SEED)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the repository; tests that need it are skipped where it is missing."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the image sets of ../shared/data, which are not beside this repository")
    return path
