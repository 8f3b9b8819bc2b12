"""The report of a run: what it did, what it took, what it cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import cli, history, runs
from pipeline.accounting import account
from pipeline.history import History, Point
from pipeline.store import Store, join
from tests.small_runs import IMAGES, commit_of, make_run, overwrite, rewrite

DRIVER = History(
    driver="0123456789ab",
    started="2026-01-01T00:00:00+00:00",
    host="node-1",
    version="0.1.0",
    device="a GPU of <b>ours</b>",
    gpus=0.5,
    seconds=3600.0,
    worker_seconds=7200.0,
    strikes=1,
    given_back=2,
    copies=3,
    end="all shards tried",
    points=(Point(seconds=0.0, workers=2, shards=0, images=0, instances=0),),
)


@pytest.fixture
def run(store: Store, tmp_path: Path) -> str:
    """A run of three shards, of which two are done: 10 images a minute apart, 18 s of the model in 36 s each."""
    uri = str(tmp_path / "run")
    manifest = make_run(store, uri, tmp_path / "inputs", shards=3, done=2)
    for number, minute in enumerate(("00", "07")):
        commit = commit_of(store, uri, manifest, number)
        told = {"seconds": 36.0, "stages": {"read": 2.0, "model": 18.0}, "worker": f"node-1:{number}"}
        overwrite(store, uri, replace(commit, finished=f"2026-01-01T00:{minute}:30+00:00", **told))
    history.write(store, uri, DRIVER)
    return uri


def test_what_a_run_cost(store: Store, run: str) -> None:
    """A lead multiplies these by a thousand."""
    cost = account(store, run, price=3.0).cost
    assert (cost.worker_hours, cost.gpu_hours, cost.cost) == (2.0, 1.0, 3.0)
    assert cost.per_1000 == pytest.approx(3.0 / (2 * IMAGES) * 1000)
    assert cost.busy == pytest.approx(72 / 7200)
    assert cost.ceiling == pytest.approx(36 / 7200)
    assert cost.starved == pytest.approx(0.5)
    assert (cost.strikes, cost.given_back, cost.copies) == (1, 2, 3)


def test_figures_are_those_of_the_labels(store: Store, run: str) -> None:
    """Classes, scores and throughput come from what is committed."""
    found = account(store, run)
    rows = list(runs.read_rows(store, run))
    names = {1: "bright", 7: "dark"}
    assert found.classes == {
        name: sum(int((row.instances.category_ids == id_).sum()) for row in rows) for id_, name in names.items()
    }
    assert found.scores is not None
    assert sum(found.scores.counts) == found.status.instances == sum(len(row.instances) for row in rows)
    assert set(found.qualities) == {"contrast"}
    assert found.throughput == ((0, IMAGES), *((minute, 0) for minute in range(1, 7)), (7, IMAGES))
    assert found.stages["model"] == 36.0
    assert (found.sampled, found.workers_seen, len(found.slowest)) == ((2, 2), 2, 2)


def test_the_checksum_changes_with_any_label(store: Store, run: str) -> None:
    """It is what a certificate answers for."""
    before = account(store, run).commits_sha256
    assert account(store, run).commits_sha256 == before
    rewrite(store, run, runs.opened(store, run).manifest, lambda row: replace(row, uri="elsewhere"), number=1)
    assert account(store, run).commits_sha256 != before


def test_the_pages(store: Store, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For people and for programs, also while the run goes on; what comes from outside is text, not HTML."""
    assert cli.main(["report", run, "--price", "3", "--out", str(tmp_path / "out")]) == 0
    assert "cost         3.00, 250.0000 for 1,000 images" in capsys.readouterr().out
    page = (tmp_path / "out/report.html").read_text()
    assert "<b>ours</b>" not in page
    assert "1 of 3 shards are not done" in page
    document = json.loads((tmp_path / "out/report.json").read_text())
    assert document["cost"]["cost"] == 3.0
    assert document["drivers"][0]["end"] == "all shards tried"
    assert (tmp_path / "out/throughput.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["report", run]) == 0
    assert store.exists(join(run, "report/report.html"))


def test_the_page_says_how_the_labels_were_looked_at(run: str, tmp_path: Path) -> None:
    """The tile counts all masks and the table those of the view: one of them would be taken for a mistake."""
    (tmp_path / "classes.yaml").write_text("dark: null")
    for options, said in (([], "that are done."), (["--min-score", "0.7"], "that are done; score 0.7 and up.")):
        assert cli.main(["report", run, *options, "--out", str(tmp_path / "out")]) == 0
        assert said in (tmp_path / "out/report.html").read_text()
    words = ["--min-score", "0.7", "--taxonomy", str(tmp_path / "classes.yaml"), "--out", str(tmp_path / "out")]
    assert cli.main(["report", run, *words]) == 0
    assert "score 0.7 and up, classes by a taxonomy" in (tmp_path / "out/report.html").read_text()
    assert json.loads((tmp_path / "out/report.json").read_text())["view"] == "score 0.7 and up, classes by a taxonomy"


def test_a_run_without_a_history_has_no_cost(store: Store, tmp_path: Path) -> None:
    """One that an older version made: nothing is invented."""
    make_run(store, str(tmp_path / "run"), tmp_path / "inputs", shards=1)
    cost = account(store, str(tmp_path / "run"), price=3.0).cost
    assert (cost.cost, cost.busy, cost.ceiling, cost.per_1000) == (None, None, None, None)


def test_an_empty_run(store: Store, tmp_path: Path) -> None:
    """A report that is asked for a second after the start."""
    make_run(store, str(tmp_path / "run"), tmp_path / "inputs", shards=1, done=0)
    assert cli.main(["report", str(tmp_path / "run")]) == 0


def test_a_damaged_history_is_one_sentence(store: Store, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the file."""
    store.put(join(run, "history/0123456789ab.json"), b"{}")
    assert cli.main(["report", run]) == 1
    assert "0123456789ab.json is damaged" in capsys.readouterr().err
