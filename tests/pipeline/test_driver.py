"""Whole runs on a real Ray, with labelers that need no torch: what is committed, set aside, and told."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from pipeline import driver, ledger, runs
from pipeline.config import InputConfig, LabelConfig, LabelerConfig, OutputConfig, RunConfig
from pipeline.driver import Outcome, Snapshot
from pipeline.driver.actors import Actor
from pipeline.driver.outages import Series
from pipeline.errors import RunError, UserError
from pipeline.labelers import USUAL_BATCH_SIZE
from pipeline.records import Failure, ImageLabels
from pipeline.store import Store
from tests.fakes import draw, write_tar
from tests.faults import Fault, Proxy

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


def read(out: Path | str) -> dict[str, tuple[object, ...]]:
    """The rows of a run by key, without what differs from attempt to attempt."""

    def plain(row: ImageLabels) -> tuple[object, ...]:
        x = row.instances
        return row.image_id, row.status, row.error, row.height, row.width, x.counts, tuple(x.scores), tuple(x.areas)

    rows = [*runs.read_rows(Store(), str(out))]
    assert len({row.key for row in rows}) == len(rows)
    return {row.key: plain(row) for row in rows}


def attempts(out: Path | str) -> dict[str, str]:
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
        ("SegfaultLabeler", "the worker process died"),
        ("KilledLabeler", "the worker process died"),
        ("RaisingLabeler", "RuntimeError: this labeler cannot bear red"),
    ],
)
def test_a_shard_that_costs_its_workers_is_set_aside_with_its_image_and_the_rest_goes_on(
    cluster: Cluster, tars: Path, tmp_path: Path, labeler: str, reason: str
) -> None:
    """One poisonous image must not end, loop or stall a run of millions, and a user must be able to find it."""
    poison(tars)
    outcome, _ = label(config(tars, tmp_path / "out", cluster, labeler, max_attempts=3))
    assert not outcome.complete
    assert outcome.snapshot.done == SHARDS - 1
    (failure,) = outcome.failures
    assert failure.uri.endswith("1.tar")
    assert failure.attempts == 3
    assert failure.error.startswith(reason)
    assert failure.error.endswith(", while labeling the image '1-2.png'")
    assert failure.images == ("1-2.png",)
    assert ledger.failures(Store(), str(tmp_path / "out")) == [failure]


def test_a_shard_that_dies_beside_another_is_told_from_it(cluster: Cluster, tars: Path, tmp_path: Path) -> None:
    """A worker that holds two shards dies of one of them: the other must neither be lost nor set aside for it."""
    poison(tars)
    outcome, _ = label(config(tars, tmp_path / "out", cluster, "CrashingLabeler", workers=1, max_attempts=2))
    (failure,) = outcome.failures
    assert failure.uri.endswith("1.tar")
    assert failure.attempts == 2
    assert outcome.snapshot.done == SHARDS - 1
    assert len(read(tmp_path / "out")) == (SHARDS - 1) * IMAGES


def test_what_every_shard_might_meet_stops_the_run_when_it_recurs_and_nothing_went_well() -> None:
    """Wrong credentials would otherwise cost every shard its attempts; three mishaps in a million would end the run."""
    series = Series()
    for _ in range(5):
        series.goes_on("shards failed for storage", "refused")
        series.goes_on("workers died while they started", "no memory")
        series.goes_on("shards failed for storage", "refused")
        series.ends()
    series.goes_on("shards failed for storage", "refused")
    series.goes_on("shards failed for storage", "refused")
    with pytest.raises(RunError, match=r"^3 shards failed for storage, one after another: refused$"):
        series.goes_on("shards failed for storage", "refused")


def test_a_worker_begins_with_the_shard_that_it_was_given_first() -> None:
    """Ray may swap two calls: the deadline of the first would run out while the second is labelled."""
    places: dict[str, int] = {}

    class Recorder:
        joined = 0

        def join(self) -> int:
            self.joined += 1
            return self.joined

        def label(self, shard: str, run: object, strikes: int, turn: int) -> None:
            places[shard] = turn

    actor: Any = Actor()
    actor._worker = Recorder()
    with ThreadPoolExecutor(2) as threads:
        second = threads.submit(actor.label, "second", None, 0, 1)
        threads.submit(actor.label, "first", None, 0, 0).result(timeout=60)
        second.result(timeout=60)
    assert places == {"first": 1, "second": 2}


def test_a_shard_that_hangs_is_set_aside_with_its_batch(cluster: Cluster, tars: Path, tmp_path: Path) -> None:
    """A worker that never comes back would hold up the end of the run for ever. Two attempts find the batch."""
    poison(tars)
    one = config(tars, tmp_path / "out", cluster, "SleepingLabeler", max_attempts=2, shard_timeout_s=8)
    outcome, _ = label(one)
    assert outcome.snapshot.done == SHARDS - 1
    (failure,) = outcome.failures
    assert failure.error == (
        "no result within run.shard_timeout_s = 8, while labeling the images '1-0.png', '1-1.png', '1-2.png', '1-3.png'"
    )
    assert failure.images == ("1-0.png", "1-1.png", "1-2.png", "1-3.png")


def test_after_a_fix_just_the_shards_that_were_set_aside_are_taken_again(
    cluster: Cluster, tars: Path, tmp_path: Path
) -> None:
    """Who has mended an image wants to see it done, not to wait for the rest; and the run must end as if never ill."""
    label(config(tars, tmp_path / "well", cluster))
    one = config(tars, tmp_path / "out", cluster, max_attempts=1)
    mending = dataclasses.replace(one, run=dataclasses.replace(one.run, only="quarantined"))
    with pytest.raises(UserError, match=r"run\.only is 'quarantined', but there is no run at"):
        label(mending)
    label(one)
    failed, pending = sorted(attempts(tmp_path / "out"))[:2]
    for shard_id in (failed, pending):
        (tmp_path / "out/commits" / shard_id[:2] / f"{shard_id}.json").unlink()
    failure = Failure(shard_id=failed, uri="a.tar", attempts=3, error="it crashed")
    ledger.record_failure(Store(), str(tmp_path / "out"), failure)
    outcome, _ = label(mending)
    assert not outcome.complete
    assert failed in attempts(tmp_path / "out")
    assert pending not in attempts(tmp_path / "out")
    assert label(one)[0].complete
    assert read(tmp_path / "out") == read(tmp_path / "well")


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


def test_the_batch_size_that_was_found_is_told(
    cluster: Cluster, tars: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers find it out where nobody looks; a user who wants to fix it, or doubts it, must see it."""
    one = config(tars, tmp_path / "out", cluster)
    with caplog.at_level("INFO"):
        label(dataclasses.replace(one, labeler=dataclasses.replace(one.labeler, batch_size="auto")))
    assert f"labeler.batch_size: auto is {USUAL_BATCH_SIZE} on the first worker" in caplog.text


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


class Outage:
    """While it lasts, storage resets every connection."""

    lasts = False

    def choose(self, method: str, target: str) -> Fault | None:
        del method, target
        return Fault(kind="reset") if self.lasts else None


@pytest.fixture
def outage(s3_uri: str, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Outage]:
    """All of S3 goes through it."""
    outage = Outage()
    with Proxy(s3_environment["AWS_ENDPOINT_URL"], outage) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield outage


def on_s3(tars: Path, s3_uri: str, **run: Any) -> LabelConfig:
    """A run on a local Ray, whose workers inherit the settings of this process."""
    return LabelConfig(
        input=InputConfig(uri=str(tars)),
        output=OutputConfig(uri=f"{s3_uri}/out"),
        labeler=LabelerConfig(name="tests.fakes:ThresholdLabeler", batch_size=4),
        run=RunConfig(workers=1, **run),
    )


def test_a_storage_that_does_not_answer_for_a_while_stops_nothing(
    tars: Path, tmp_path: Path, s3_uri: str, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    """A thousand GPUs must not be sent home, nor a shard be blamed, because a bucket was away for a few seconds."""

    def disturb(now: Snapshot) -> None:
        if not outage.lasts and now.done == 1 and not caplog.messages:
            outage.lasts = True
        elif any("is labelled again" in message for message in caplog.messages):
            outage.lasts = False

    caplog.set_level("WARNING", "pipeline.run")
    outcome = driver.run(on_s3(tars, s3_uri), disturb)
    assert outcome.complete
    assert outcome.failures == ()
    assert any("does not answer" in message and "is labelled again" in message for message in caplog.messages)
    assert len(read(f"{s3_uri}/out")) == SHARDS * IMAGES


@pytest.mark.slow
def test_a_storage_that_stays_away_stops_the_run_with_a_sentence(tars: Path, s3_uri: str, outage: Outage) -> None:
    """GPUs must not wait for it for ever, and the shards are not to blame."""

    def disturb(now: Snapshot) -> None:
        outage.lasts = outage.lasts or now.done == 1

    with pytest.raises(RunError, match=r"storage has not answered for run\.storage_patience_s = 1: .*does not answer"):
        driver.run(on_s3(tars, s3_uri, storage_patience_s=1), disturb)
    outage.lasts = False
    assert ledger.failures(Store(), f"{s3_uri}/out") == []
    assert driver.run(on_s3(tars, s3_uri), lambda now: None).complete
