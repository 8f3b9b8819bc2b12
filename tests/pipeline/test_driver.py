"""Whole runs on a real Ray, with labelers that need no torch: what is committed, set aside, and told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from pipeline import driver, ledger, runs
from pipeline.config import InputConfig, LabelConfig, LabelerConfig, OutputConfig, RunConfig
from pipeline.driver import Outcome, Snapshot
from pipeline.errors import UserError
from pipeline.records import ImageLabels
from pipeline.store import Store
from tests.fakes import draw, write_tar

SHARDS, IMAGES = 4, 6
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head for the module, to which each run connects as a driver of its own."""
    one = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 3,
            "include_dashboard": False,
            "_system_config": {
                "health_check_initial_delay_ms": 2000,
                "health_check_period_ms": 1000,
                "health_check_timeout_ms": 1000,
                "health_check_failure_threshold": 3,
            },
        },
    )
    yield one
    one.shutdown()


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Tar shards of drawn images; `poisoned` puts a red pixel into one image."""
    for shard in range(SHARDS):
        files = {f"{shard}-{i}.png": draw(10 * shard + i) for i in range(IMAGES)}
        write_tar(tmp_path / "in" / f"{shard}.tar", files)
    return tmp_path / "in"


@pytest.fixture(autouse=True)
def at_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import `tests.fakes` from the folder that the driver works in."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def poison(tars: Path, shard: int = 1) -> None:
    files = {f"{shard}-{i}.png": draw(10 * shard + i, poison=i == 2) for i in range(IMAGES)}
    write_tar(tars / f"{shard}.tar", files)


def config(tars: Path, out: Path, cluster: Cluster, labeler: str = "ThresholdLabeler", **run: Any) -> LabelConfig:
    return LabelConfig(
        input=InputConfig(uri=str(tars)),
        output=OutputConfig(uri=str(out)),
        labeler=LabelerConfig(name=f"tests.fakes:{labeler}", batch_size=4),
        run=RunConfig(address=cluster.address, **{"workers": 2, "cpus_per_worker": 1, **run}),
    )


def label(one: LabelConfig) -> tuple[Outcome, list[Snapshot]]:
    seen: list[Snapshot] = []
    return driver.run(one, seen.append), seen


def read(out: Path) -> dict[str, tuple[object, ...]]:
    """The rows of a run by key, without what differs from attempt to attempt."""

    def plain(row: ImageLabels) -> tuple[object, ...]:
        x = row.instances
        return row.image_id, row.status, row.error, row.height, row.width, x.counts, tuple(x.scores), tuple(x.areas)

    rows = [*runs.read_rows(Store(), str(out))]
    assert len({row.key for row in rows}) == len(rows)
    return {row.key: plain(row) for row in rows}


def attempts(out: Path) -> dict[str, str]:
    return {one.shard_id: one.attempt for one in ledger.commits(Store(), str(out))}


def test_every_image_is_labelled_once(cluster: Cluster, tars: Path, tmp_path: Path) -> None:
    """The whole point: every image of every shard has one row, and the commits account for it."""
    outcome, seen = label(config(tars, tmp_path / "out", cluster))
    assert outcome.complete
    assert outcome.failures == ()
    rows = read(tmp_path / "out")
    assert sorted(rows) == sorted(f"{s}-{i}.png" for s in range(SHARDS) for i in range(IMAGES))
    totals = ledger.totals(ledger.commits(Store(), str(tmp_path / "out")))
    assert totals.images == totals.labelled + totals.empty + totals.quarantined == SHARDS * IMAGES
    assert totals.empty > 0
    assert totals.instances > 0
    assert seen[-1].done == SHARDS
    assert seen[-1].images == SHARDS * IMAGES


def test_a_run_goes_on_with_what_is_not_committed(cluster: Cluster, tars: Path, tmp_path: Path) -> None:
    """Labeling committed shards again after a crash would cost GPU hours and double rows."""
    one = config(tars, tmp_path / "out", cluster)
    label(one)
    before, rows = attempts(tmp_path / "out"), read(tmp_path / "out")
    lost = sorted(before)[:2]
    for shard_id in lost:
        (tmp_path / "out/commits" / shard_id[:2] / f"{shard_id}.json").unlink()
    outcome, _ = label(one)
    after = attempts(tmp_path / "out")
    assert outcome.complete
    assert {s for s in before if before[s] != after[s]} == set(lost)
    assert read(tmp_path / "out") == rows
    again, seen = label(one)  # nothing left: no worker is started
    assert again.complete
    assert seen == []


@pytest.mark.parametrize(
    ("labeler", "reason"),
    [
        ("CrashingLabeler", "the worker process died"),
        ("RaisingLabeler", "RuntimeError: this labeler cannot bear red"),
        ("SleepingLabeler", "no result within run.shard_timeout_s = 15"),
    ],
)
def test_a_shard_that_costs_its_workers_is_set_aside_and_the_rest_goes_on(
    cluster: Cluster, tars: Path, tmp_path: Path, labeler: str, reason: str
) -> None:
    """One poisonous image must not end, loop or stall a run of millions."""
    poison(tars)
    outcome, _ = label(config(tars, tmp_path / "out", cluster, labeler, max_attempts=2, shard_timeout_s=15))
    assert not outcome.complete
    assert outcome.snapshot.done == SHARDS - 1
    (failure,) = outcome.failures
    assert failure.uri.endswith("1.tar")
    assert failure.attempts == 2
    assert reason in failure.error
    assert ledger.failures(Store(), str(tmp_path / "out")) == [failure]


def test_a_corrupt_shard_is_named_and_costs_one_attempt(cluster: Cluster, tars: Path, tmp_path: Path) -> None:
    """A cut tar would otherwise be tried again and again, or its first half pass for the whole."""
    whole = (tars / "2.tar").read_bytes()
    (tars / "2.tar").write_bytes(whole[: len(whole) // 2])
    outcome, _ = label(config(tars, tmp_path / "out", cluster))
    (failure,) = outcome.failures
    assert failure.uri.endswith("2.tar")
    assert failure.attempts == 1
    assert outcome.snapshot.done == SHARDS - 1
    (tars / "2.tar").write_bytes(whole)
    assert not any(key.startswith("2-") for key in read(tmp_path / "out"))


def test_another_config_or_labeler_is_refused_unless_accepted(cluster: Cluster, tars: Path, tmp_path: Path) -> None:
    """Half a run by one model and half by another, unnoticed, is a data set that nobody can answer for."""
    one = config(tars, tmp_path / "out", cluster)
    label(one)
    (tmp_path / "out/commits").rename(tmp_path / "gone")
    other = dataclasses.replace(one, labeler=dataclasses.replace(one.labeler, score_threshold=0.5))
    with pytest.raises(UserError, match=r"made differently \(labeler.score_threshold: 0.05 -> 0.5\)"):
        label(other)
    smaller = dataclasses.replace(one, labeler=dataclasses.replace(one.labeler, batch_size=1))
    assert label(smaller)[0].complete  # what a user lowers when memory runs out changes no mask
    (tmp_path / "out/commits").rename(tmp_path / "gone too")
    accepting = dataclasses.replace(other, run=dataclasses.replace(other.run, accept_changes=True))
    assert label(accepting)[0].complete


def test_a_labeler_that_cannot_start_stops_the_run_before_any_shard(
    cluster: Cluster, tars: Path, tmp_path: Path
) -> None:
    """Weights that do not load would otherwise burn every shard's attempts, and leave a run that blames the data."""
    with pytest.raises(UserError, match=r"labeler.name is 'tests.fakes:Nobody', which cannot be imported"):
        label(config(tars, tmp_path / "out", cluster, "Nobody"))
    assert not (tmp_path / "out/manifest.json").exists()
    assert not (tmp_path / "out/failures").exists()


def test_the_shard_of_a_lost_node_is_labelled_again_without_a_strike(
    cluster: Cluster, tars: Path, tmp_path: Path
) -> None:
    """Spot nodes vanish; with max_attempts=1 a single strike would set the shard aside."""
    poison(tars)
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1)]
    one = config(
        tars,
        tmp_path / "out",
        cluster,
        "SleepingLabeler",
        workers=1,
        gpus_per_worker=1,
        max_attempts=1,
        shard_timeout_s=20,
    )

    def lose_the_node_of_the_second_shard(now: Snapshot) -> None:
        if now.done == 1 and len(nodes) == 1:
            nodes.append(cluster.add_node(num_cpus=1, num_gpus=1))
            cluster.remove_node(nodes[0], allow_graceful=False)

    outcome = driver.run(one, lose_the_node_of_the_second_shard)
    assert outcome.snapshot.done == SHARDS - 1
    (failure,) = outcome.failures
    assert failure.error == "no result within run.shard_timeout_s = 20"  # and not the death of the node
