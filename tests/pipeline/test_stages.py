"""The seconds of a shard by step, from which a report says where the money goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.stages import STEPS, Stages
from pipeline.store import Store
from tests.small_runs import commit_of, make_run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second whenever it is looked at."""
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))


@pytest.mark.usefixtures("clock")
def test_a_step_that_is_taken_often_adds_up() -> None:
    """A shard has a thousand images; the time of the last alone would be its time."""
    stages = Stages()
    for step in ("encode", "model", "model"):
        with stages(step):  # type: ignore[arg-type]
            pass
    assert list(stages.drawing("read", "abc")) == ["a", "b", "c"]
    assert list(stages.seconds().items()) == [("read", 4.0), ("model", 2.0), ("encode", 1.0)]


@pytest.mark.usefixtures("clock")
def test_a_step_that_fails_counts_and_a_source_is_closed() -> None:
    """Time that went into a failure was paid for, too; a source that stays open holds a connection."""
    closed = []

    def source() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    stages = Stages()
    with pytest.raises(ValueError, match="no"), stages("decode"):
        raise ValueError("no")
    drawn = stages.drawing("read", source())
    next(drawn)
    drawn.close()  # type: ignore[attr-defined]
    assert closed == [True]
    assert stages.seconds()["decode"] == 1.0


def test_a_commit_says_where_its_time_went(store: Store, tmp_path: Path) -> None:
    """All steps of the way of an image, of which a labeler without steps has the model alone."""
    commit = commit_of(store, str(tmp_path / "run"), make_run(store, str(tmp_path / "run"), tmp_path / "in", shards=1))
    assert set(commit.stages) <= set(STEPS)
    assert {"decode", "model", "write"} <= set(commit.stages)
    assert commit.worker
    assert commit.finished.endswith("+00:00")
