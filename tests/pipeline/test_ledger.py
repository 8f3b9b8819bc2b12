"""The ledger on local disk and on an S3 server."""

import dataclasses
import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from pipeline import ledger
from pipeline.errors import NotFoundError, StoreError, UserError
from pipeline.records import Category, Commit, Failure, Manifest, Output, Shard
from pipeline.shard_list import ShardList
from pipeline.store import join


def make_shard(number):
    uri = f"s3://bucket/data/part-{number:05d}.tar"
    digest = hashlib.sha256(uri.encode()).hexdigest()
    return Shard(id=digest[:20], uri=uri, format="tar", bytes=number, etag=f"e{number}", number=number)


def make_manifest(shards=3):
    return Manifest(
        run_id="run-1",
        schema_version=1,
        version="0.1.0",
        created="2025-01-01T00:00:00Z",
        config={"input": {"uri": ["a", "b"]}, "labeler": {"score_threshold": 0.5, "names": None}},
        fingerprint="f" * 8,
        categories=(Category(id=1, name="person"), Category(id=90, name="zahnbürste")),
        shards=tuple(make_shard(number) for number in range(shards)),
    )


def make_commit(shard_id, attempt="one", **changes):
    output = Output(path=f"labels/{shard_id}-{attempt}.parquet", bytes=10, sha256="ab" * 32)
    commit = Commit(
        shard_id=shard_id,
        attempt=attempt,
        outputs={"parquet": output},
        images=10,
        labelled=6,
        empty=1,
        quarantined=3,
        instances=40,
        reasons={"truncated": 2, "empty": 1},
        fingerprint="f" * 8,
        seconds=1.5,
        version="0.1.0",
    )
    return dataclasses.replace(commit, **changes)


@pytest.fixture
def run(place):
    return join(place, "run [1]*")  # a user may call a run so


def test_manifest_round_trip(store, run):
    """A resumed run does not work on other shards, or with another config, than it was founded with."""
    manifest = make_manifest()
    assert ledger.write_manifest(store, run, manifest)
    assert ledger.read_manifest(store, run) == manifest


def test_manifest_is_written_once(store, run):
    """Of two drivers that begin a run at once, one does not change the plan of the other."""
    mine, other = make_manifest(3), dataclasses.replace(make_manifest(2), run_id="run-2")
    assert ledger.write_manifest(store, run, mine)
    assert not ledger.write_manifest(store, run, other)
    assert ledger.read_manifest(store, run) == mine


def test_manifest_can_be_read_by_people(store, run):
    """What a run is can be read as text, and its list of shards by whatever reads Parquet."""
    ledger.write_manifest(store, run, make_manifest(5))
    text = store.get(join(run, "manifest.json")).decode()
    assert '      "score_threshold": 0.5,' in text.splitlines()
    document = json.loads(text)
    assert document["config"]["labeler"]["score_threshold"] == 0.5
    assert document["shards"]["count"] == 5
    data = store.get(join(run, document["shards"]["path"]))
    assert hashlib.sha256(data).hexdigest() == document["shards"]["sha256"]
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    assert rows[3] == dataclasses.asdict(make_shard(3))


def test_manifest_without_shards(store, run):
    """A manifest is valid JSON even where nothing was planned."""
    assert ledger.write_manifest(store, run, make_manifest(0))
    assert list(ledger.read_manifest(store, run).shards) == []


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text[: len(text) // 2], r"manifest\.json is damaged: Invalid JSON"),
        (lambda text: text.replace('"count": 3', '"count": "3"'), r"damaged: shards\.count: .* valid integer"),
        (lambda text: text.replace('"shards/', '"../shards/'), r"manifest\.json is damaged: shards\.path does not"),
        (lambda text: text.replace('"run_id"', '"id"'), r"manifest\.json is damaged: run_id: Field required"),
        (lambda text: "[]", r"manifest\.json is damaged"),
        (lambda text: "", r"manifest\.json is damaged"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), r"schema version 2, and .* reads 1"),
        (lambda text: '{"schema_version": 7, "shape": "new"}', r"schema version 7, and .* reads 1"),
    ],
)
def test_damaged_manifest(store, tmp_path, damage, sentence):
    """A manifest that is cut off, changed by hand or of a later version is refused, without a traceback."""
    run = str(tmp_path)
    ledger.write_manifest(store, run, make_manifest())
    (tmp_path / "manifest.json").write_text(damage((tmp_path / "manifest.json").read_text()))
    with pytest.raises(UserError, match=sentence) as caught:
        ledger.read_manifest(store, run)
    assert str(caught.value).startswith(run)
    assert "\n" not in str(caught.value)


def test_no_run(store, place):
    """A misspelt run is not reported as an empty one."""
    with pytest.raises(UserError, match=r"nowhere is no labeling run: it holds no manifest\.json"):
        ledger.read_manifest(store, join(place, "nowhere"))


def test_commits(store, run):
    """What was committed is found again, all of it, and nothing else."""
    manifest = make_manifest(30)
    done = [make_commit(shard.id) for shard in manifest.shards[:20]]
    assert ledger.committed_ids(store, run) == set()
    assert list(ledger.commits(store, run)) == []
    assert all(ledger.commit(store, run, commit) for commit in done)
    assert list(ledger.commits(store, run, threads=3)) == sorted(done, key=lambda commit: commit.shard_id)
    assert ledger.read_commit(store, run, done[7].shard_id) == done[7]
    assert ledger.read_commit(store, run, manifest.shards[25].id) is None
    assert ledger.committed_ids(store, run) == {commit.shard_id for commit in done}
    assert list(ledger.pending(manifest, ledger.committed_ids(store, run))) == list(manifest.shards[20:])


def test_listing_of_a_large_run(store, tmp_path, monkeypatch):
    """A run of more commits than one page holds does not lose those after the first page."""
    monkeypatch.setattr("pipeline.ledger.listings._FEW", 10)
    done = {shard.id for shard in make_manifest(40).shards}
    for shard_id in done:
        ledger.commit(store, str(tmp_path), make_commit(shard_id))
    assert ledger.committed_ids(store, str(tmp_path)) == done


def test_listing_of_many_prefixes(store, s3_uri):
    """Of a run that fills several pages and all prefixes, a resume labels shards anew that are done."""
    shards = ShardList.of(make_shard(number) for number in range(1300))
    names = [join(s3_uri, "run/commits", shard.id[:2], f"{shard.id}.json") for shard in shards]
    assert len({name.rpartition("/")[0] for name in names}) > 250
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.put(name, b"{}"), names))
    for stray in ("commits/00/notes.txt", "commits/" + "a" * 20 + ".json", "commits/ff/" + "a" * 20 + ".json"):
        store.put(join(s3_uri, "run", stray), b"{}")
    listed = ledger.listing(store, join(s3_uri, "run"), threads=8)
    assert sorted(listed.ids.to_pylist()) == sorted(shard.id for shard in shards)
    assert set(listed.etags.to_pylist()) == {hashlib.md5(b"{}").hexdigest()}
    manifest = dataclasses.replace(make_manifest(0), shards=shards[500:])
    assert len(ledger.pending(manifest, listed.ids)) == 0
    assert ledger.strangers(manifest, listed) == sorted(shard.id for shard in shards[:500])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), r"the list of shards that manifest\.json names, is missing\."),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"is not the list of shards .*: its sha256 differs\."),
        (lambda path: path.write_bytes(b"x" * (9 << 20)), r"is not the list of shards .*: its sha256 differs\."),
    ],
)
def test_damaged_list_of_shards(store, tmp_path, damage, sentence):
    """A run that goes on with a part of its shards would look complete."""
    run = str(tmp_path)
    ledger.write_manifest(store, run, make_manifest())
    (path,) = (tmp_path / "shards").iterdir()
    damage(path)
    with pytest.raises(UserError, match=sentence) as caught:
        ledger.read_manifest(store, run)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("count", [2, 4])
def test_a_list_of_other_length_is_refused(store, tmp_path, count):
    """A list with the checksum of the manifest and fewer shards, made by who edits both, is not taken as it is."""
    run = str(tmp_path)
    ledger.write_manifest(store, run, make_manifest())
    file = tmp_path / "manifest.json"
    file.write_text(file.read_text().replace('"count": 3', f'"count": {count}'))
    with pytest.raises(UserError, match=f"lists 3 shards, and manifest.json says {count}"):
        ledger.read_manifest(store, run)


def test_racing_commits(store, run):
    """A shard that two workers finish is not counted twice, and the commit that stands is the winner's."""
    shard_id = make_shard(0).id
    with ThreadPoolExecutor(6) as threads:
        attempts = [make_commit(shard_id, f"attempt-{number}") for number in range(6)]
        won = list(threads.map(lambda commit: ledger.commit(store, run, commit), attempts))
    assert won.count(True) == 1
    assert list(ledger.commits(store, run)) == [attempts[won.index(True)]]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text[:40], "is damaged: Invalid JSON"),
        (lambda text: text.replace('"images": 10', '"images": "ten"'), "is damaged: images: .* valid integer"),
        (lambda text: text.replace('"shard_id": "', '"shard_id": "0'), "is damaged: it speaks of another shard"),
    ],
)
def test_damaged_commit(store, tmp_path, damage, sentence):
    """Sums are not made of what a commit does not say; the file at fault is named."""
    shard_id = make_shard(0).id
    ledger.commit(store, str(tmp_path), make_commit(shard_id))
    file = tmp_path / "commits" / shard_id[:2] / f"{shard_id}.json"
    file.write_text(damage(file.read_text()))
    for read in (
        lambda: ledger.read_commit(store, str(tmp_path), shard_id),
        lambda: list(ledger.commits(store, str(tmp_path))),
    ):
        with pytest.raises(StoreError, match=f"{file} {sentence}"):
            read()


def test_commits_of_a_missing_bucket(store, s3_uri):
    """A bucket that is gone is not a run of which nothing is done."""
    with pytest.raises(NotFoundError, match="no such bucket"):
        ledger.committed_ids(store, "s3://gone-with-all/run")


def test_failures(store, run):
    """The last reason why a shard is not done can be looked up, and not an older one."""
    one, two = (make_shard(number) for number in (1, 2))
    assert ledger.failures(store, run) == []
    for error in ("first", "last"):
        failure = Failure(shard_id=one.id, uri=one.uri, attempts=3, error=error)
        ledger.record_failure(store, run, failure)
    other = dataclasses.replace(failure, shard_id=two.id, uri=two.uri)
    ledger.record_failure(store, run, other)
    assert ledger.failures(store, run) == sorted([failure, other], key=lambda each: each.shard_id)


def test_totals():
    """The summary adds up to what the commits say."""
    first, second = (
        make_commit("a" * 20),
        make_commit("b" * 20, images=5, quarantined=2, empty=0, labelled=3, seconds=0.5),
    )
    second = dataclasses.replace(second, reasons={"missing": 2})
    sums = ledger.totals(iter([first, second]))
    assert (sums.shards, sums.images, sums.labelled, sums.empty, sums.quarantined) == (2, 15, 9, 1, 5)
    assert (sums.instances, sums.seconds) == (80, 2.0)
    assert sums.reasons == {"empty": 1, "missing": 2, "truncated": 2}
    assert sums.images == sums.labelled + sums.empty + sums.quarantined
    assert ledger.totals([]).images == 0


def test_differences(store, tmp_path):
    """A run that is resumed unchanged is not refused; one that was changed is told what."""
    config = {"input": {"uri": ("a", "b"), "format": "auto"}, "labeler": {"score": 0.5, "overrides": {}}, "seed": None}
    ledger.write_manifest(store, str(tmp_path), dataclasses.replace(make_manifest(), config=config))
    old = ledger.read_manifest(store, str(tmp_path)).config
    assert ledger.differences(old, config) == []
    changed = {"input": {"uri": ("a",)}, "labeler": {"score": 0.25, "overrides": {"MODEL.X": 1}}, "seed": None}
    assert ledger.differences(old, changed) == [
        'input.format: "auto" -> not set',
        'input.uri: ["a","b"] -> ["a"]',
        "labeler.overrides: {} -> not set",
        "labeler.overrides.MODEL.X: not set -> 1",
        "labeler.score: 0.5 -> 0.25",
    ]
    secret = {"input": {"uri": "https://me:pass@host/a?X-Sig=abc"}}
    assert ledger.differences(secret, {"input": {"uri": "b"}}) == ['input.uri: "https://***@host/a?***" -> "b"']
