"""Reading a run: how far it is, and its rows."""

import io
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import ledger, runs, shards, sinks
from pipeline.config import LabelerConfig
from pipeline.errors import NotFoundError, StoreError, UserError
from pipeline.parallel import ahead
from pipeline.records import Failure, ImageLabels
from pipeline.store import join
from tests.fakes import ThresholdLabeler, draw
from tests.small_runs import IMAGES, commit_of, make_run, overwrite, put_output


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "run")


def test_status_tells_what_is_done_pending_and_failed(store, uri, tmp_path):
    """A person decides by this whether to wait, to start the run again, or to look into a shard."""
    manifest = make_run(store, uri, tmp_path / "inputs", shards=4, done=2)
    done, broken = manifest.shards[0], manifest.shards[3]
    for shard, error in ((done, "a node died."), (broken, "it is no tar archive.")):
        ledger.record_failure(store, uri, Failure(shard_id=shard.id, uri=shard.uri, attempts=3, error=error))
    found = runs.status(store, uri)
    assert (found.shards, found.done, found.failed, found.pending) == (4, 2, 1, 1)
    assert [failure.uri for failure in found.failures] == [broken.uri], "a committed shard has failed no more"
    assert (found.images, found.labelled, found.empty, found.quarantined) == (2 * IMAGES, 8, 2, 2)
    assert found.reasons == {"not_an_image": 2}
    assert found.images_per_second == pytest.approx(found.images / found.seconds, rel=1e-2)


def test_status_of_a_run_that_has_not_begun(store, uri, tmp_path):
    """No commits and no seconds must not divide by zero."""
    make_run(store, uri, tmp_path / "inputs", done=0)
    found = runs.status(store, uri)
    assert (found.done, found.pending, found.images, found.images_per_second) == (0, 2, 0, None)


def test_status_counts_no_commit_of_a_stranger(store, uri, tmp_path):
    """More shards done than there are would hide one that is not."""
    manifest = make_run(store, uri, tmp_path / "inputs", done=1)
    overwrite(store, uri, replace(commit_of(store, uri, manifest), shard_id="f" * 20))
    found = runs.status(store, uri)
    assert (found.done, found.pending, found.images) == (1, 1, IMAGES)


def test_status_of_a_damaged_commit_is_an_error(store, uri, tmp_path):
    """Sums without the shard that cannot be read would pass for the whole."""
    manifest = make_run(store, uri, tmp_path / "inputs")
    place = join(uri, "commits", manifest.shards[1].id[:2], f"{manifest.shards[1].id}.json")
    store.put(place, store.get(place)[:-9])
    with pytest.raises(StoreError, match=f"{place} is damaged"):
        runs.status(store, uri)


def test_a_commit_that_is_removed_meanwhile_is_passed_over(store, uri, tmp_path):
    """Somebody who has shards labelled anew must not bring down the status that another one asks for."""
    manifest = make_run(store, uri, tmp_path / "inputs")
    listed = ledger.listing(store, uri)
    store.delete(join(uri, "commits", manifest.shards[0].id[:2], f"{manifest.shards[0].id}.json"))
    left = runs.read_commits(store, uri, manifest, listed=listed)
    assert [commit.shard_id for commit in left] == [manifest.shards[1].id]


def test_status_of_no_run_is_refused(store, tmp_path):
    """A mistyped URI must not look like a run of no shards."""
    with pytest.raises(UserError, match="no labeling run"):
        runs.status(store, str(tmp_path))


@pytest.mark.parametrize("formats", [["parquet"], ["coco"]])
def test_rows_are_what_the_labeler_found(store, place, tmp_path, formats):
    """Whatever is read back must be what was labelled, whichever format it went through, in the order of the input."""
    uri = join(place, "run")
    manifest = make_run(store, uri, tmp_path / "inputs", formats=formats)
    rows = list(runs.read_rows(store, uri))
    keys = [f"{shard}-{i}.png" for shard in (0, 1) for i in range(IMAGES - 1)]
    assert [row.key for row in rows if row.status != "quarantined"] == keys
    labeler = ThresholdLabeler(_labeler_config(manifest), store)
    for row in rows:
        if row.status == "quarantined":
            assert (row.height, row.width, len(row.instances)) == (0, 0, 0)
            assert row.error.startswith("not_an_image:")
            continue
        shard, number = row.key.removesuffix(".png").split("-")
        expected = labeler.label([_pixels(10 * int(shard) + int(number))])[0]
        assert (row.height, row.width) == (32, 48)
        assert row.status == ("labelled" if len(expected) else "empty")
        assert row.instances.counts == expected.counts
        for name in ("category_ids", "areas", "boxes"):
            np.testing.assert_array_equal(getattr(row.instances, name), getattr(expected, name))
        np.testing.assert_allclose(row.instances.scores, expected.scores, atol=1e-6)
        if len(expected):
            np.testing.assert_allclose(row.instances.quality["contrast"], expected.quality["contrast"], atol=1e-6)
    assert sum(row.status == "quarantined" for row in rows) == (2 if formats == ["parquet"] else 0)


def test_rows_of_a_large_row_group_keep_their_own_masks(store, tmp_path):
    """Parquet comes in slices of a few rows, and a slice whose offsets are misread has the masks of another."""
    labeler = ThresholdLabeler(LabelerConfig(), store)
    header = sinks.Header(
        run_id="r", shard_id="s", fingerprint="f", version="1", categories=labeler.categories, quality=labeler.quality
    )
    found = labeler.label([_pixels(seed) for seed in range(20)])
    rows = [
        ImageLabels(key=str(n), image_id=n, uri="", height=32, width=48, instances=found[n % 20], status="labelled")
        for n in range(300)
    ]
    with sinks.parquet(tmp_path / "x.parquet", header) as write:
        write(rows)
    read = list(shards.read_parquet(tmp_path / "x.parquet", "s").rows)
    assert [row.key for row in read] == [row.key for row in rows]
    assert [row.instances.counts for row in read] == [row.instances.counts for row in rows]
    assert [row.instances.scores.tolist() for row in read] == [row.instances.scores.tolist() for row in rows]


def _labeler_config(manifest):
    return LabelerConfig(**{**manifest.config["labeler"], "overrides": ()})


def _pixels(seed):
    return np.array(Image.open(io.BytesIO(draw(seed))).convert("RGB"))


def test_rows_of_other_bytes_are_refused(store, uri, tmp_path):
    """Labels that were changed behind the commit must not reach a training set."""
    manifest = make_run(store, uri, tmp_path / "inputs", shards=1)
    commit = commit_of(store, uri, manifest)
    path = join(uri, commit.outputs["parquet"].path)
    data = store.get(path)
    store.put(path, data[:-1] + b"x")
    with pytest.raises(StoreError, match="sha256 differs"):
        list(runs.rows(store, uri, commit))
    store.delete(path)
    with pytest.raises(NotFoundError, match="missing, though it was committed"):
        list(runs.rows(store, uri, commit))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"size": [32, 48]', b'"size": [48, 32]', "a mask is not of the image's size"),
        (b'"id": 1, ', b'"id": 2, ', "should have the id 1"),
        (b'"image_id": ', b'"image_id": 1', "of no image"),
        (b'"bbox": [', b'"bbox": [1, ', "cannot be read"),
        (b'"score": ', b'"scores": ', "cannot be read"),
        (b'"annotations": [', b'"annotation": [', "it has no annotations"),
    ],
)
def test_a_coco_shard_that_is_laid_out_otherwise_is_refused(store, uri, tmp_path, old, new, words):
    """Rows made up from half-understood lines would be wrong labels."""
    manifest = make_run(store, uri, tmp_path / "inputs", shards=1, formats=["coco"])
    commit = commit_of(store, uri, manifest)
    data = store.get(join(uri, commit.outputs["coco"].path))
    at = data.index(old, data.index(b'\n"annotations') if b"annotations" not in old else 0)
    commit = put_output(store, uri, commit, "coco", data[:at] + new + data[at + len(old) :])
    with pytest.raises(StoreError, match=words):
        list(runs.rows(store, uri, commit))


def test_parquet_of_another_schema_is_refused(store, uri, tmp_path):
    """A table that merely is Parquet has columns that mean something else."""
    manifest = make_run(store, uri, tmp_path / "inputs", shards=1)
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    commit = put_output(
        store, uri, commit_of(store, uri, manifest), "parquet", (tmp_path / "other.parquet").read_bytes()
    )
    with pytest.raises(StoreError, match="another schema"):
        list(runs.rows(store, uri, commit))


def test_ahead_keeps_the_order_and_does_not_run_away():
    """All shards of a large run queued at once would not fit into memory."""
    taken, lock = 0, threading.Lock()

    def items():
        nonlocal taken
        for number in range(1000):
            with lock:
                taken += 1
            yield number

    results = ahead(lambda number: number * 2, items(), threads=2)
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    assert taken < 100
    assert list(results) == list(range(6, 2000, 2))


def test_rows_come_in_the_order_of_the_manifest(store, uri, tmp_path):
    """In the order of the commits, an export would differ each time, and from machine to machine."""
    uris = [shard.uri for shard in make_run(store, uri, tmp_path / "inputs", shards=3).shards]
    assert [row.key[0] for row in runs.read_rows(store, uri)] == [u[-5] for u in uris for _ in range(IMAGES)]
