"""The clock on the wall: of files, and of machines on which it jumps while a run goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import ledger
from pipeline.errors import ShardError
from pipeline.records import ImageLabels
from pipeline.runs import read_rows
from pipeline.store import Store
from pipeline.worker import Run, label_shard
from tests.refusals import PATIENCE_S, REPOSITORY
from tests.small_runs import config_of, found_run, make_inputs, make_run

DAY_S = 86_400
#: 1970, before it, and 2100, in seconds since 1970.
TIMES = (0, -5 * DAY_S, 4_102_444_800)
COMPILER = shutil.which("cc")


def comparable(uri: str) -> list[tuple[object, ...]]:
    """The rows of a run, without what comes from where its input lies."""
    return [facts(row) for row in read_rows(Store(), uri)]


def facts(row: ImageLabels) -> tuple[object, ...]:
    found = row.instances
    return row.key, row.status, row.error, row.height, row.width, found.counts, tuple(found.scores.tolist())


@pytest.mark.parametrize("time", TIMES)
def test_files_from_the_future_or_from_nowhere(store: Store, tmp_path: Path, time: int) -> None:
    """Inputs that are passed over, or labelled otherwise, for the date that a copy or a broken clock gave them."""
    make_run(store, str(tmp_path / "plain"), tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        os.utime(path, (time, time))
    config = config_of(tmp_path / "in", str(tmp_path / "dated"))
    manifest, labeler = found_run(store, config)
    for shard in manifest.shards:
        label_shard(shard, run=Run(id="r", uri=config.output.uri, config=config), store=store, labeler=labeler)
    assert comparable(config.output.uri) == comparable(str(tmp_path / "plain"))


@pytest.mark.parametrize("days", [-1, 1])
def test_a_file_that_is_replaced_by_an_older_one(store: Store, tmp_path: Path, days: int) -> None:
    """A replacement that goes unnoticed because its date is not later."""
    config = config_of(make_inputs(tmp_path / "in", 1), str(tmp_path / "run"))
    manifest, labeler = found_run(store, config)
    (path,) = (tmp_path / "in").iterdir()
    then = path.stat().st_mtime_ns + days * DAY_S * 10**9
    os.utime(path, ns=(then, then))
    with pytest.raises(ShardError, match="was replaced since it was planned"):
        label_shard(
            manifest.shards[0],
            run=Run(id="r", uri=config.output.uri, config=config),
            store=store,
            labeler=labeler,
        )


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, for a clock that can be moved")
def test_a_clock_that_jumps_by_days(place: str, tmp_path: Path) -> None:
    """Timeouts or retries that go by the time of day: a worker that hangs, gives up, or labels otherwise."""
    make_run(Store(), str(tmp_path / "plain"), tmp_path / "in", shards=3)
    source = Path(__file__).with_name("wall_clock.c")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O1", "-o", tmp_path / "clock.so", source], check=True)
    clock = tmp_path / "clock"
    clock.write_text("0")
    jumps = {"LD_PRELOAD": str(tmp_path / "clock.so"), "CLOCK_OFFSET": str(clock), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.security.jumping", tmp_path / "in", f"{place}/run"],
        cwd=REPOSITORY,
        env={**os.environ, **jumps},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    times = [int(line) for line in (tmp_path / "clock.times").read_text().split()]
    assert max(times) - min(times) > DAY_S
    assert comparable(f"{place}/run") == comparable(str(tmp_path / "plain"))
    assert all(0 <= commit.seconds < DAY_S / 2 for commit in ledger.commits(Store(), f"{place}/run"))
