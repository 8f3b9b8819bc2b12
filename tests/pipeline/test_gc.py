"""Removing orphans: all of them, and nothing else, on disk and on S3."""

import json
import os
import time
from dataclasses import replace

import pytest

from pipeline import cli, ledger, runs
from pipeline.errors import StoreError, UserError
from pipeline.orphans import collect
from pipeline.records import Failure
from pipeline.store import Store, join
from pipeline.trails import Trail, note
from pipeline.worker import Run, label_shard
from tests import seaweed
from tests.small_runs import commit_of, config_of, found_run, make_inputs, make_run, overwrite

ORPHAN = "0123456789abcdef0123-0123456789ab"
BIG = 20 << 20  # bytes of a file that goes up in parts


@pytest.fixture
def run(store, place, tmp_path):
    """A run of two shards, both done, and its manifest."""
    uri = join(place, "run")
    return uri, make_run(store, uri, tmp_path / "in", shards=2)


def listed(store, uri):
    return sorted(info.uri.removeprefix(uri).lstrip("/") for info in store.list(uri))


def test_removes_what_no_commit_names_and_nothing_else(store, run):
    """A run that was killed often does not fill the storage; one that is sound does not lose a byte."""
    uri, manifest = run
    before, rows = listed(store, uri), list(map(repr, runs.read_rows(store, uri)))
    assert collect(store, uri, older_than_s=0).names == ()
    orphans = [f"labels/{ORPHAN}.parquet", f"coco/{ORPHAN}.json"]
    loser = commit_of(store, uri, manifest).outputs["parquet"].path
    orphans.append(f"{loser[:-20]}{'0' * 12}.parquet")  # of the same shard, by an attempt that came too late
    for path in orphans:
        store.put(join(uri, path), b"12345")
    kept = [
        "labels/notes.txt",
        "inputs/0.json",
        "shards/x.parquet",
        "folds/y.parquet",
        "other/file",
        f"labels/deep/{ORPHAN}.parquet",
    ]
    for path in kept:
        store.put(join(uri, path), b"x")
    found = collect(store, uri, older_than_s=0, dry_run=True)
    assert (found.data, found.bytes, set(found.names)) == (3, 15, set(orphans))
    assert set(orphans) <= set(listed(store, uri))
    assert collect(store, uri, older_than_s=0) == found
    assert listed(store, uri) == sorted(before + kept)
    assert list(map(repr, runs.read_rows(store, uri))) == rows


def test_spares_what_is_young(store, run):
    """An attempt that uploads while gc runs does not lose the file that it is about to commit."""
    uri, _ = run
    store.put(join(uri, f"labels/{ORPHAN}.parquet"), b"x")
    assert collect(store, uri, older_than_s=60).names == ()
    assert collect(store, uri).names == ()
    assert collect(store, uri, older_than_s=0).data == 1


def test_age_is_told_by_the_storage(store, tmp_path, monkeypatch):
    """A machine whose clock is a day ahead does not remove what others upload at this moment."""
    make_run(store, str(tmp_path / "run"), tmp_path / "in", shards=1)
    path = tmp_path / f"run/labels/{ORPHAN}.parquet"
    path.write_bytes(b"x")
    now = time.time()  # noqa: TID251 what a file is dated by
    monkeypatch.setattr(time, "time", lambda: now + 1e6)
    assert collect(store, str(tmp_path / "run")).names == ()
    os.utime(path, (now - 90_000, now - 90_000))
    monkeypatch.setattr(time, "time", lambda: now - 1e6)
    assert collect(store, str(tmp_path / "run")).data == 1


def test_commit_made_meanwhile(store, place, tmp_path):
    """A commit that is made while gc looks around keeps its files."""
    uri = join(place, "run")
    config = config_of(make_inputs(tmp_path / "in", 2), uri)
    manifest, labeler = found_run(store, config)

    run, kinds = Run(id=manifest.run_id, uri=uri, config=config), set()

    class Racing(Store):
        """Labels all shards between the two listings, of data and of commits, whichever comes first."""

        def list(self, uri, *, literal=False):
            kinds.add("commits" if "/commits/" in uri else "data")
            if len(kinds) == 2 and not ledger.committed_ids(store, run.uri):
                for shard in manifest.shards:
                    label_shard(shard, run=run, store=store, labeler=labeler)
            return super().list(uri, literal=literal)

    assert collect(Racing(), uri, older_than_s=0).data == 0
    assert len(kinds) == 2
    for commit in runs.read_commits(store, uri, manifest):
        assert all(store.exists(join(uri, output.path)) for output in commit.outputs.values())
    assert len(list(runs.read_rows(store, uri))) == 12


def test_commit_that_cannot_be_read(store, run):
    """Nothing is removed on the word of a ledger that is damaged."""
    uri, manifest = run
    commit = commit_of(store, uri, manifest)
    store.put(join(uri, "commits", commit.shard_id[:2], f"{commit.shard_id}.json"), b"{")
    store.put(join(uri, f"labels/{ORPHAN}.parquet"), b"x")
    with pytest.raises(StoreError, match=rf"{commit.shard_id}\.json is damaged"):
        collect(store, uri, older_than_s=0)
    assert store.exists(join(uri, f"labels/{ORPHAN}.parquet"))
    assert store.exists(join(uri, commit.outputs["parquet"].path))


def test_commit_of_no_shard_of_the_run(store, run):
    """A commit that the manifest does not know of keeps its files: whoever wrote it can still say why."""
    uri, manifest = run
    commit = replace(commit_of(store, uri, manifest), shard_id=ORPHAN[:20], outputs={})
    output = replace(commit_of(store, uri, manifest).outputs["parquet"], path=f"labels/{ORPHAN}.parquet")
    overwrite(store, uri, replace(commit, outputs={"parquet": output}))
    store.put(join(uri, output.path), b"x")
    assert collect(store, uri, older_than_s=0).names == ()


def test_records_of_shards_that_are_done(store, place, tmp_path):
    """Failures and trails that a later attempt overtook go; those of shards that are not done stay."""
    uri = join(place, "run")
    done, pending = (shard.id for shard in make_run(store, uri, tmp_path / "in", shards=2, done=1).shards)
    for shard_id in (done, pending):
        ledger.record_failure(store, uri, Failure(shard_id=shard_id, uri="x", attempts=1, error="broken"))
        note(store, uri, shard_id, Trail(strikes=1, step="reading", first=0, count=1))
    found = collect(store, uri, older_than_s=0)
    assert (found.records, found.names) == (2, (f"failures/{done}.json", f"trails/{done}.json"))
    assert [failure.shard_id for failure in ledger.failures(store, uri)] == [pending]


def test_half_written_files(store, tmp_path):
    """What a worker killed in the middle of a write left hidden does not lie there for good."""
    make_run(store, str(tmp_path / "run"), tmp_path / "in", shards=1)
    for path in ("labels/.patchlabel-1", "commits/ab/.patchlabel-2", ".patchlabel-probe-3"):
        (tmp_path / "run" / path).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / path).write_bytes(b"half")
    found = collect(store, f"file://{tmp_path}/run", older_than_s=0)
    assert (found.unfinished, found.bytes) == (3, 12)
    assert set(found.names) == {"labels/.patchlabel-1", "commits/ab/.patchlabel-2", ".patchlabel-probe-3"}
    assert not list((tmp_path / "run").rglob(".patchlabel-*"))


def test_abandoned_uploads(store, s3_uri, s3_endpoint, tmp_path):
    """Parts of an upload that a kill cut short, which no listing shows and everybody pays for, do not stay."""
    uri, s3, bucket = join(s3_uri, "run"), seaweed.client(s3_endpoint), s3_uri.removeprefix("s3://")
    make_run(store, uri, tmp_path / "in", shards=1)
    for key in (f"run/labels/{ORPHAN}.parquet", "elsewhere"):
        upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(5 << 20))
    store.put(join(uri, ".patchlabel-probe-1"), b"x")
    found = collect(store, uri, older_than_s=0)
    assert (found.unfinished, found.names) == (
        2,
        (".patchlabel-probe-1", f"labels/{ORPHAN}.parquet (an upload in parts)"),
    )
    left = s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    assert [upload["Key"] for upload in left] == ["elsewhere"]
    assert not store.exists(join(uri, ".patchlabel-probe-1"))


class TestCommand:
    def test_says_what_it_does(self, store, tmp_path, capsys):
        """Whoever runs it sees what goes, how much that is, and that a dry run leaves it."""
        uri = str(tmp_path / "run")
        make_run(store, uri, tmp_path / "in", shards=1)
        for number in range(25):
            store.put(join(uri, f"labels/{ORPHAN[:-2]}{number:02d}.parquet"), bytes(100))
        assert cli.main(["gc", uri]) == 0
        assert capsys.readouterr().out.startswith("removed 0 data objects")
        for option, verb in (("--dry-run", "would remove"), ("--older-than=0s", "removed")):
            assert cli.main(["gc", uri, "--older-than", "0s", option]) == 0
            *names, more, last = capsys.readouterr().out.splitlines()
            assert len(names) == 20
            assert names[0] == f"labels/{ORPHAN[:-2]}00.parquet"
            assert more == "and 5 more; --json names all"
            assert last == (
                f"{verb} 25 data objects of no commit, 0 writes that did not come to an end, "
                "0 records of shards that are done by now: 2.5 kB"
            )
        assert cli.main(["gc", uri, "--older-than", "0s", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "data": 0, "unfinished": 0, "records": 0, "bytes": 0, "names": [], "dry_run": False,
        }  # fmt: skip

    @pytest.mark.parametrize("age", ["1", "d", "-1d", "nan", "1 week", "infd", ""])
    def test_refuses_what_is_no_age(self, tmp_path, capsys, age):
        """A slip in the limit does not remove what it was meant to spare."""
        assert cli.main(["gc", str(tmp_path), "--older-than", age]) == 2
        assert "an age is a number and s, m, h or d" in capsys.readouterr().err

    def test_refuses_what_is_no_run(self, tmp_path, capsys):
        """A folder that is no run keeps all that is in it."""
        (tmp_path / "labels").mkdir()
        (tmp_path / f"labels/{ORPHAN}.parquet").write_bytes(b"x")
        assert cli.main(["gc", str(tmp_path), "--older-than", "0s"]) == 2
        assert "is no labeling run" in capsys.readouterr().err
        assert (tmp_path / f"labels/{ORPHAN}.parquet").exists()


def test_storage_without_times(store, monkeypatch, tmp_path):
    """Where ages cannot be told, nothing is taken for old."""
    make_run(store, str(tmp_path / "run"), tmp_path / "in", shards=1)
    monkeypatch.setattr(Store, "clock", lambda self, uri: None)
    with pytest.raises(UserError, match="does not tell the age"):
        collect(store, str(tmp_path / "run"), older_than_s=0)
