"""Folds: they spare requests, and they never say anything else than the commits themselves."""

import gc
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import ledger, runs
from pipeline.errors import StoreError
from pipeline.exports import export
from pipeline.ledger import documents
from pipeline.records import Commit
from pipeline.store import Store, join
from pipeline.verify import verify
from tests.pipeline.bench_ledger import simulated_commit, simulated_manifest, write_commits
from tests.small_runs import commit_of, make_run, overwrite


class CountingStore(Store):
    """A store that remembers what was opened."""

    def __init__(self):
        super().__init__()
        self.opened = []

    def open(self, uri, *, etag=None):
        self.opened.append(uri)
        return super().open(uri, etag=etag)

    def commits_opened(self):
        return [uri for uri in self.opened if "/commits/" in uri]


def simulated_run(store, uri, shards):
    manifest = simulated_manifest(Path("unused"), shards)
    assert ledger.write_manifest(store, uri, manifest)
    return ledger.read_manifest(store, uri)


def commit_some(store, uri, shards):
    for shard in shards:
        assert ledger.commit(store, uri, simulated_commit(shard))


def place_of(uri, shard):
    return documents.commit_uri(uri, shard.id)


def read(store, uri, manifest):
    return [(shard.id, found) for shard, found in ledger.read(store, uri, manifest)]


def expected(shards):
    return [(shard.id, simulated_commit(shard)) for shard in shards]


def folds_of(store, uri):
    return sorted(info.uri for info in store.list(join(uri, "folds", ""), literal=True))


def test_what_is_folded_is_not_read_again(store, place):
    """A status of a million shards that asks for each commit takes hours, each time."""
    uri = join(place, "run [1]*")
    manifest = simulated_run(store, uri, 12)
    commit_some(store, uri, manifest.shards[3:7])
    assert ledger.fold(store, uri, manifest, least=1) == 4
    commit_some(store, uri, manifest.shards[:2])
    commit_some(store, uri, manifest.shards[8:10])
    assert ledger.fold(store, uri, manifest, least=1) == 4
    commit_some(store, uri, manifest.shards[10:11])
    assert len(folds_of(store, uri)) == 2
    counting = CountingStore()
    done = [manifest.shards[position] for position in (0, 1, 3, 4, 5, 6, 8, 9, 10)]
    assert read(counting, uri, manifest) == expected(done), "all of them, once each, in the order of the manifest"
    assert counting.commits_opened() == [place_of(uri, manifest.shards[10])]
    assert runs.status(store, uri).images == 9 * simulated_commit(done[0]).images


def test_few_commits_are_not_folded(store, tmp_path):
    """A fold for every few commits would make more objects, not fewer."""
    uri = str(tmp_path)
    manifest = simulated_run(store, uri, 5)
    assert ledger.fold(store, uri, manifest, least=1) == 0
    commit_some(store, uri, manifest.shards[:4])
    assert ledger.fold(store, uri, manifest, least=5) == 0
    assert folds_of(store, uri) == []
    assert ledger.fold(store, uri, manifest, least=4) == 4
    assert ledger.fold(store, uri, manifest, least=1) == 0
    assert [ledger.worth_folding(5000, done) for done in (5000, 50_000, 50_010)] == [True, True, False]


def test_a_removed_commit_is_not_done(store, place):
    """Who removes a commit to have its shard labelled again must not get the old rows from a copy."""
    uri = join(place, "run")
    manifest = simulated_run(store, uri, 4)
    commit_some(store, uri, manifest.shards)
    ledger.fold(store, uri, manifest, least=1)
    store.delete(place_of(uri, manifest.shards[2]))
    kept = [manifest.shards[position] for position in (0, 1, 3)]
    assert read(store, uri, manifest) == expected(kept)
    assert (runs.status(store, uri).done, runs.status(store, uri).pending) == (3, 1)
    anew = replace(simulated_commit(manifest.shards[2]), attempt="anew", images=5, labelled=5, empty=0, quarantined=0)
    assert ledger.commit(store, uri, anew)
    assert read(store, uri, manifest)[2] == (manifest.shards[2].id, anew)
    assert ledger.fold(store, uri, manifest, least=1) == 1
    assert read(store, uri, manifest)[2] == (manifest.shards[2].id, anew), "of two folds, the one that is true"


def test_a_commit_that_changes_meanwhile_is_not_folded(store, tmp_path):
    """A fold that has the content of one commit under the etag of another would be believed for ever."""
    uri = str(tmp_path)
    manifest = simulated_run(store, uri, 3)
    commit_some(store, uri, manifest.shards)
    changed = replace(simulated_commit(manifest.shards[1]), attempt="anew-and-longer")

    class Changing(Store):
        """One in which a commit is written anew between its listing and its reading."""

        def open(self, place, *, etag=None):
            if place == place_of(uri, manifest.shards[1]):
                overwrite(store, uri, changed)
            return super().open(place, etag=etag)

    assert ledger.fold(Changing(), uri, manifest, least=1) == 2
    assert read(store, uri, manifest)[1][1] == changed


def spoilt(data, how):
    if how == "cut":
        return data[: len(data) // 2]
    if how == "flipped":
        return data[:200] + bytes([data[200] ^ 1]) + data[201:]
    table = pq.read_table(io.BytesIO(data))
    if how == "other columns":
        table = table.rename_columns(["position", "shard", "etag", "document"])
    if how == "other order":
        table = table.take(pa.array(range(len(table) - 1, -1, -1)))
    if how == "out of range":
        table = table.set_column(0, "position", pa.array(range(1, len(table) + 1), pa.int32()))
    if how == "no table":
        return b"rubbish"
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("how", "renamed"),
    [
        ("cut", False),
        ("flipped", False),
        ("no table", False),
        ("no table", True),
        ("cut", True),
        ("other columns", True),
        ("other order", True),
        ("out of range", True),
    ],
)
def test_a_damaged_fold_loses_nothing(store, tmp_path, how, renamed):
    """A torn upload, or a fold of a later version, must cost requests and not labels."""
    uri = str(tmp_path)
    manifest = simulated_run(store, uri, 5)
    commit_some(store, uri, manifest.shards)
    ledger.fold(store, uri, manifest, least=1)
    (fold,) = folds_of(store, uri)
    data = spoilt(store.get(fold), how)
    if renamed:  # so that its checksum fits
        store.delete(fold)
        fold = join(uri, "folds", f"{hashlib.sha256(data).hexdigest()[:20]}.parquet")
    store.put(fold, data)
    store.put(join(uri, "folds", "notes.txt"), b"not ours")
    counting = CountingStore()
    assert read(counting, uri, manifest) == expected(manifest.shards)
    assert len(counting.commits_opened()) == 5
    assert ledger.fold(store, uri, manifest, least=1) == 5, "they are folded anew"


def test_two_folds_of_the_same_commits_count_once(store, tmp_path):
    """Two drivers that fold at once must not double a label."""
    uri = str(tmp_path)
    manifest = simulated_run(store, uri, 40)
    commit_some(store, uri, manifest.shards)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(ledger.fold, store, uri, manifest, least=1, threads=2) for _ in range(2)]
        assert sum(one.result() for one in both) >= 40
    (fold, *_) = folds_of(store, uri)
    table = pq.read_table(io.BytesIO(store.get(fold)))
    stream = io.BytesIO()
    pq.write_table(table.slice(7, 20), stream)  # and a third, which overlaps
    checksum = hashlib.sha256(stream.getvalue()).hexdigest()
    store.put(join(uri, "folds", f"{checksum[:20]}.parquet"), stream.getvalue())
    assert read(store, uri, manifest) == expected(manifest.shards)


def test_a_fold_that_fails_stops_nobody(store, tmp_path, caplog):
    """A cache that cannot be written must not end a run of days."""
    uri = str(tmp_path)
    manifest = simulated_run(store, uri, 2)
    commit_some(store, uri, manifest.shards)
    (tmp_path / "folds").write_text("in the way")
    with caplog.at_level("WARNING"):
        assert ledger.fold(store, uri, manifest, least=1) == 0
    assert "only makes reading the run slower" in caplog.text


def test_a_fold_that_is_stopped_writes_nothing(store, tmp_path):
    """Ctrl-C has to end a run within seconds, also where a hundred thousand commits are being folded."""
    uri = str(tmp_path)
    manifest = simulated_run(store, uri, 60)
    commit_some(store, uri, manifest.shards)
    counting = CountingStore()

    def stopped():
        return len(counting.commits_opened()) >= 3

    assert ledger.fold(counting, uri, manifest, least=1, threads=1, stopped=stopped) == 0
    assert len(counting.commits_opened()) < 20
    assert folds_of(store, uri) == []


def test_a_damaged_commit_is_named_and_not_folded(store, tmp_path):
    """A copy must not make a damaged commit look sound, nor hide the others."""
    uri = str(tmp_path)
    manifest = simulated_run(store, uri, 3)
    commit_some(store, uri, manifest.shards)
    store.put(place_of(uri, manifest.shards[1]), b'{"shard_id": ')
    assert ledger.fold(store, uri, manifest, least=1) == 2
    (_, first), (_, damaged), (_, last) = read(store, uri, manifest)
    assert isinstance(damaged, StoreError)
    assert "is damaged" in str(damaged)
    assert [first, last] == [simulated_commit(manifest.shards[position]) for position in (0, 2)]


def test_verify_and_export_say_the_same_with_folds(store, tmp_path):
    """What reads labels must not depend on whether somebody has folded meanwhile."""
    uri = str(tmp_path / "run")
    manifest = make_run(store, uri, tmp_path / "inputs", shards=3)
    overwrite(store, uri, replace(commit_of(store, uri, manifest, 1), images=9))
    without = verify(store, uri)
    export(store, uri, format="coco", out=str(tmp_path / "without.json"))
    assert ledger.fold(store, uri, manifest, least=1) == 3
    assert verify(store, uri) == without
    assert len(without.faults) == 1
    export(store, uri, format="coco", out=str(tmp_path / "with.json"))
    assert (tmp_path / "with.json").read_bytes() == (tmp_path / "without.json").read_bytes()


@pytest.mark.parametrize("folded", [False, True])
def test_commits_pass_through_one_by_one(store, tmp_path, folded):
    """Status, verify and export of a million shards that hold every commit at once do not fit into memory."""
    manifest = replace(simulated_manifest(tmp_path, 3000), fingerprint="f")
    uri = str(tmp_path / "run")
    write_commits(tmp_path, manifest)
    if folded:
        assert ledger.fold(store, uri, manifest) == 0, "fewer than are worth it"
        assert ledger.fold(store, uri, manifest, least=3000) == 3000
    most = 0
    for number, _ in enumerate(ledger.read(store, uri, manifest), start=1):
        if number % 500 == 0:
            most = max(most, sum(type(one) is Commit for one in gc.get_objects()))
    assert number == 3000
    assert 0 < most < 200
