"""Corrections: rows of people over those of the model, for every reader, without a change to what is committed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import cli, corrections, datasets, ledger, runs
from pipeline.config import DatasetConfig
from pipeline.errors import StoreError
from pipeline.records import ImageLabels
from pipeline.store import Store, join
from pipeline.verify import verify
from pipeline.view import View
from tests.small_runs import commit_of, make_run


@pytest.fixture
def run(store: Store, tmp_path: Path, place: str) -> str:
    """A run of two shards."""
    uri = join(place, "run")
    make_run(store, uri, tmp_path / "inputs")
    return uri


def without_first(row: ImageLabels) -> ImageLabels:
    """What a person leaves who removes the first mask."""
    kept = np.arange(len(row.instances)) > 0
    return replace(row, instances=row.instances.where(kept), status="labelled" if kept.any() else "empty")


def faint(row: ImageLabels) -> ImageLabels:
    return replace(row, instances=replace(row.instances, scores=row.instances.scores * np.float32(0.01)))


def correct(
    store: Store, run: str, number: int = 0, *, change: Callable[[ImageLabels], ImageLabels] = without_first
) -> tuple[ImageLabels, ImageLabels]:
    """Correct the image of a shard that has most masks -> its row before and after."""
    manifest = ledger.read_manifest(store, run)
    commit = commit_of(store, run, manifest, number)
    before = max(runs.rows(store, run, commit), key=lambda row: len(row.instances))
    standing = next(row for row in runs.opened(store, run).rows(commit) if row.key == before.key)
    after = change(standing)
    corrections.write(
        store,
        run,
        manifest,
        {commit.shard_id: [after]},
        by="anna",
        source="review.json",
        source_sha256="0" * 64,
        counts={"images": 1, "removed": 1},
    )
    return standing, after


def counts(rows: Iterable[ImageLabels]) -> dict[str, tuple[str, ...]]:
    return {row.key: row.instances.counts for row in rows}


def test_every_reader_sees_the_correction_and_the_commit_stays(store: Store, run: str) -> None:
    """A mask that a person removed must not come back in an export or a training set, nor be lost from the record."""
    model = counts(runs.read_rows(store, run))
    before, after = correct(store, run)
    assert counts(runs.read_rows(store, run)) == model
    seen = {row.key: row for row in runs.opened(store, run).all_rows()}
    assert seen[before.key].instances.counts == before.instances.counts[1:]
    assert {row.corrected for row in seen.values() if row.key != before.key} == {0}
    assert seen[before.key].corrected == 1
    trained = datasets.read(DatasetConfig(run=run, score_threshold=0.0), store, key="data.train", cache=None)
    ids = {image["id"]: image["file_name"] for image in trained.coco["images"]}
    masks = [one["segmentation"]["counts"] for one in trained.coco["annotations"] if ids[one["image_id"]] == before.key]
    assert masks == list(after.instances.counts)
    assert verify(store, run).faults == ()


def test_the_last_version_counts_and_the_others_stay(store: Store, run: str) -> None:
    """History is what an auditor asks for."""
    first, _ = correct(store, run)
    correct(store, run)
    assert [(one.number, one.by) for one in corrections.read(store, run).versions] == [(1, "anna"), (2, "anna")]
    (row,) = (row for row in runs.opened(store, run).all_rows() if row.key == first.key)
    assert (row.corrected, row.instances.counts) == (2, first.instances.counts[2:])


def test_two_people_at_once_both_count(store: Store, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes second must not take the number, and the work, of the first."""
    with monkeypatch.context() as patch:
        patch.setattr(corrections, "read", lambda _, uri: corrections.Corrections(run_uri=uri))
        correct(store, run, 0)
        correct(store, run, 1)
    assert sorted(row.corrected for row in runs.opened(store, run).all_rows() if row.corrected) == [1, 2]


def test_a_score_threshold_does_not_drop_what_a_person_left(store: Store, run: str) -> None:
    """A faint object that was confirmed by a person is an object."""
    before, after = correct(store, run, change=faint)
    seen = {row.key: row for row in runs.opened(store, run, View(min_score=0.99)).all_rows()}
    assert seen[before.key].instances.counts == after.instances.counts
    assert any(row.status == "empty" for row in seen.values())


def test_verify_names_a_correction_that_is_spoilt(store: Store, run: str) -> None:
    """Corrections are labels like any: their bytes and their masks are checked."""
    correct(store, run)
    ((_, output),) = corrections.read(store, run).of(commit_of(store, run, ledger.read_manifest(store, run)).shard_id)
    place = join(run, output.path)
    store.put(place, store.get(place)[:-1] + b"x")
    (fault,) = verify(store, run).faults
    assert "sha256" in str(fault)
    with pytest.raises(StoreError, match="sha256"):
        list(runs.opened(store, run).all_rows())


def test_verify_names_a_correction_of_an_image_that_is_not_there(store: Store, run: str) -> None:
    """It would lie over nothing, and its masks would be lost in silence."""
    correct(store, run, change=lambda row: replace(row, key="stranger.png"))
    assert [fault.key for fault in verify(store, run).faults] == ["stranger.png"]


def test_gc_keeps_corrections_and_removes_what_no_version_names(store: Store, run: str) -> None:
    """An `apply` that was killed leaves files that nobody names; those that count must never be taken for such."""
    correct(store, run)
    stray = join(run, "corrections", f"{'a' * 20}-{'b' * 12}.parquet")
    store.put(stray, b"half")
    assert cli.main(["gc", run, "--older-than", "0s"]) == 0
    assert not store.exists(stray)
    assert any(row.corrected for row in runs.opened(store, run).all_rows())
    assert verify(store, run).faults == ()


def test_status_tells_of_corrections(store: Store, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Who asks how far a run is learns that people were at it."""
    correct(store, run)
    assert cli.main(["status", run]) == 0
    assert "corrected    1 image in 1 version" in capsys.readouterr().out


def test_a_damaged_version_is_one_sentence(store: Store, run: str) -> None:
    """A version that cannot be read must stop the reader: without it other masks would count."""
    store.put(join(run, "corrections", "000001.json"), b"{}")
    with pytest.raises(StoreError, match=r"000001\.json is damaged"):
        runs.opened(store, run)
