"""`verify` on sound runs, and on runs that were tampered with in each of the ways that it is there to find."""

import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as mask_api

from pipeline import ledger
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.records import Category, Shard
from pipeline.store import join
from pipeline.verify import Fault, _shared_ids, verify, verify_ledger
from pipeline.worker import Run, label_shard
from tests.fakes import draw
from tests.small_runs import IMAGES, commit_of, config_of, found_run, make_run, overwrite, put_output, rewrite


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "run")


@pytest.fixture(scope="module")
def original(store, tmp_path_factory):
    """A sound run, and its folder."""
    folder = tmp_path_factory.mktemp("original")
    return make_run(store, str(folder / "run"), folder / "inputs"), folder / "run"


@pytest.fixture
def manifest(original, uri):
    """The manifest of a copy of that run at `uri`, to tamper with."""
    shutil.copytree(original[1], uri)
    return original[0]


def faults_of(store, uri):
    return [str(fault) for fault in verify(store, uri).faults]


def only_fault(store, uri):
    faults = faults_of(store, uri)
    assert len(faults) == 1, faults
    return faults[0]


@pytest.mark.parametrize("formats", [["parquet", "coco"], ["parquet"], ["coco"]])
def test_a_sound_run_has_no_faults(store, place, tmp_path, formats):
    """A false alarm would teach people to ignore the true ones."""
    uri = join(place, "run")
    make_run(store, uri, tmp_path / "inputs", formats=formats)
    seen = []
    report = verify(store, uri, progress=lambda done, shards: seen.append((done, shards)))
    assert report.faults == ()
    assert (report.shards, report.committed, report.images) == (2, 2, 2 * IMAGES)
    assert report.instances > 10
    assert seen == [(1, 2), (2, 2)]


def test_no_run_is_refused(store, tmp_path):
    """An empty place would otherwise verify as a run without faults."""
    with pytest.raises(UserError, match="no labeling run"):
        verify(store, str(tmp_path))


def test_shards_that_are_not_done_are_counted(store, uri, tmp_path):
    """A run that stopped half way must not pass as complete."""
    make_run(store, uri, tmp_path / "inputs", shards=3, done=1)
    assert only_fault(store, uri) == "2 of 3 shards are not done"


def test_a_commit_of_no_shard_is_named(store, uri, manifest):
    """A commit of another run would be counted twice, or exported by who goes by the folder."""
    stranger = replace(commit_of(store, uri, manifest), shard_id="f" * 20)
    overwrite(store, uri, stranger)
    assert only_fault(store, uri) == f"commit {'f' * 20} is of no shard of the run"


def test_a_damaged_commit_is_a_fault_and_not_the_end(store, uri, manifest):
    """One unreadable commit must not hide what is wrong with the other shards."""
    first, second = (commit_of(store, uri, manifest, number) for number in (0, 1))
    store.put(join(uri, "commits", first.shard_id[:2], f"{first.shard_id}.json"), b'{"shard_id": ')
    store.delete(join(uri, second.outputs["coco"].path))
    faults = faults_of(store, uri)
    assert len(faults) == 2
    assert manifest.shards[0].uri in faults[0]
    assert "is damaged" in faults[0]
    assert manifest.shards[1].uri in faults[1]
    assert "is missing, though it was committed" in faults[1]


@pytest.mark.parametrize("folded", [False, True])
def test_the_ledger_alone_is_checked_without_the_data(store, uri, manifest, folded):
    """Whether a large run adds up must be known in minutes, without fetching terabytes; and not pass falsely."""
    first, second = manifest.shards
    shutil.rmtree(join(uri, "labels"))
    shutil.rmtree(join(uri, "coco"))
    assert verify_ledger(store, uri).faults == ()
    overwrite(store, uri, replace(commit_of(store, uri, manifest), labelled=IMAGES + 1, reasons={}))
    overwrite(store, uri, replace(commit_of(store, uri, manifest, 1), shard_id="f" * 20))
    store.delete(join(uri, "commits", second.id[:2], f"{second.id}.json"))
    store.delete(join(uri, "manifest.json"))
    ledger.write_manifest(store, uri, replace(manifest, shards=[first, replace(second, number=first.number)]))
    if folded:
        assert ledger.fold(store, uri, manifest, least=1) == 1
    report = verify_ledger(store, uri)
    assert (report.shards, report.committed, report.images) == (2, 1, IMAGES)
    assert [str(fault) for fault in report.faults] == [
        f"the list of shards has 2 shards of the number {first.number}",
        f"commit {'f' * 20} is of no shard of the run",
        "1 of 2 shards are not done",
        f"{first.uri}: its commit does not add up: {IMAGES} images are not {IMAGES + 1} labelled + 1 empty + "
        "1 quarantined",
        f"{first.uri}: its commit gives reasons for 0 of 1 quarantined images",
    ]


@pytest.mark.parametrize("format", ["parquet", "coco"])
def test_a_missing_output_is_named(store, uri, manifest, format):
    """A deleted data object would otherwise be noticed by whoever trains on it."""
    path = commit_of(store, uri, manifest).outputs[format].path
    store.delete(join(uri, path))
    fault = only_fault(store, uri)
    assert path in fault
    assert "missing" in fault


@pytest.mark.parametrize("format", ["parquet", "coco"])
def test_a_flipped_byte_is_found(store, uri, manifest, format):
    """Bit rot in a mask still decodes, as another mask; only the checksum knows."""
    place = join(uri, commit_of(store, uri, manifest).outputs[format].path)
    data = bytearray(store.get(place))
    data[len(data) // 2] ^= 1
    store.put(place, bytes(data))
    assert "its sha256 differs" in only_fault(store, uri)


@pytest.mark.parametrize(
    ("change", "has"), [(lambda data: data[:-1], r"bytes instead of"), (lambda data: data + b" ", "more bytes")]
)
def test_another_size_is_found(store, uri, manifest, change, has):
    """A cut or grown object must be named by its size, and not be read on without end."""
    place = join(uri, commit_of(store, uri, manifest).outputs["parquet"].path)
    store.put(place, change(store.get(place)))
    assert has in only_fault(store, uri)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": IMAGES + 1}, f"does not add up: {IMAGES + 1} images"),
        ({"instances": 3}, "its commit says 3"),
        ({"reasons": {"truncated": 1}}, "other reasons"),
        ({"reasons": {}}, "gives reasons for 0 of 1"),
        ({"outputs": {}}, "names no output"),
        ({"attempt": "another"}, "no parquet output of this shard and attempt"),
        ({"fingerprint": "another"}, "another fingerprint than the commit"),
    ],
)
def test_a_commit_that_does_not_fit_its_data_is_found(store, uri, manifest, change, words):
    """Counts go into reports and invoices, so they must be those of the rows."""
    overwrite(store, uri, replace(commit_of(store, uri, manifest), **change))
    assert any(words in fault for fault in faults_of(store, uri))


def test_images_moved_between_statuses_are_found(store, uri, manifest):
    """A commit can add up, and still call an empty image a labelled one."""
    commit = commit_of(store, uri, manifest)
    overwrite(store, uri, replace(commit, labelled=commit.labelled + 1, empty=commit.empty - 1))
    assert [fault.partition(".parquet ")[2] for fault in faults_of(store, uri)] == [
        f"has {commit.labelled} labelled, its commit says {commit.labelled + 1}",
        f"has {commit.empty} empty, its commit says {commit.empty - 1}",
    ]


def first(**change):
    """A change of the first image's row; callables get the old value."""

    def apply(row):
        if not row.key.endswith("-0.png"):
            return row
        x = row.instances
        inner = {name: value(getattr(x, name)) for name, value in change.items() if hasattr(x, name)}
        outer = {name: value for name, value in change.items() if not hasattr(x, name)}
        return replace(row, instances=replace(x, **inner), **outer)

    return apply


def with_first(value):
    return lambda values: np.concatenate([np.array([value], values.dtype), values[1:]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (first(areas=with_first(5)), "mask 0: its area is"),
        (first(boxes=lambda boxes: boxes + np.float32(0.01)), "mask 0: its box is"),
        (first(scores=with_first(1.5)), "mask 0: its score is 1.5; accepted are 0 to 1"),
        (first(scores=with_first(1.5)), "mask 0: its score is 1.5"),
        (first(scores=with_first(0)), "mask 1: its score is better than that of the one before"),
        (first(category_ids=with_first(3)), "mask 0: its category id is 3, which the run does not know"),
        (first(counts=lambda counts: ("", *counts[1:])), "mask 0: it has no counts"),
        (first(counts=lambda counts: (counts[0] + "1", *counts[1:])), "mask 0: its counts"),
        (first(counts=lambda counts: (counts[0] + "\x7f", *counts[1:])), "mask 0: its counts hold a character"),
        (first(height=31), "mask 0: its counts"),
        (first(status="empty"), "the image is empty, and has"),
        (first(status="done"), "the status is 'done'"),
        (first(error="truncated: why"), "the image is labelled, and has an error"),
        (first(status="quarantined", error="dislike: no"), "without a known reason"),
        (first(image_id=-1), "the image id is -1"),
    ],
)
def test_rows_that_are_wrong_are_named_by_shard_and_key(store, uri, manifest, change, words):
    """What a labeler with a bug writes has a right checksum; only looking at the rows finds it."""
    rewrite(store, uri, manifest, change)
    faults = faults_of(store, uri)
    assert any(words in fault for fault in faults), faults
    assert any(fault.startswith(f"{manifest.shards[0].uri}: 0-0.png: ") for fault in faults)


def test_an_empty_mask_is_found(store, uri, manifest):
    """A mask without pixels agrees with its area and box of zero."""

    nothing = mask_api.encode(np.zeros((32, 48), np.uint8, order="F"))["counts"].decode()

    def change(row):
        x, n = row.instances, len(row.instances)
        zeros = replace(x, counts=(nothing,) * n, areas=np.zeros_like(x.areas), boxes=np.zeros_like(x.boxes))
        return replace(row, instances=zeros)

    rewrite(store, uri, manifest, change)
    faults = faults_of(store, uri)
    assert len(faults) == commit_of(store, uri, manifest).instances
    assert all(fault.endswith("it is empty") for fault in faults)


def test_a_quarantined_image_with_instances_is_found(store, uri, manifest):
    """Labels of an image that could not be read are of another image."""
    rows = []

    def change(row):
        rows.append(row)
        return replace(row, instances=rows[0].instances) if row.status == "quarantined" else row

    rewrite(store, uri, manifest, change, formats=["parquet"])
    assert any("0-text.jpg: the image is quarantined, and has" in fault for fault in faults_of(store, uri))


def test_keys_and_ids_that_come_twice_are_found(store, uri, manifest):
    """Two rows of one key or id overwrite each other in whatever reads them."""
    rewrite(store, uri, manifest, lambda row: replace(row, key="same", image_id=9))
    faults = faults_of(store, uri)
    assert sum("same: a second row has this key" in fault for fault in faults) == IMAGES - 1
    assert any("1 image ids are those of more than one row, 9 for instance" in fault for fault in faults)


def test_ids_of_two_shards_must_differ(store, uri, manifest):
    """Ids that are unique in each shard can still collide once the run is exported as one file."""
    for number in (0, 1):
        ids = itertools.count()
        rewrite(store, uri, manifest, lambda row, ids=ids: replace(row, image_id=next(ids)), number=number)
    first_shard, second_shard = (shard.uri for shard in manifest.shards)
    assert only_fault(store, uri) == f"{second_shard}: its image id 0 is also one of {first_shard}"


def test_every_overlap_of_ranges_is_found():
    """A range inside a longer one that began earlier is easily missed."""
    shards = [Shard(id=str(i), uri=f"s{i}", format="tar", bytes=1, etag="", number=i) for i in range(4)]
    ranges = np.array([[0, 9, 0], [2, 3, 1], [5, 5, 2], [20, 21, 2], [21, 30, 3]])
    found = _shared_ids(ranges, shards)
    assert list(found) == [
        Fault(shard="s1", key=None, what="its image id 2 is also one of s0"),
        Fault(shard="s2", key=None, what="its image id 5 is also one of s0"),
        Fault(shard="s3", key=None, what="its image id 21 is also one of s2"),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (first(scores=lambda scores: scores * np.float32(0.99)), "has other scores than"),
        (first(boxes=lambda boxes: boxes + 1), "has other boxes than"),
        (first(areas=lambda areas: areas + 1), "has other areas than"),
        (first(category_ids=lambda ids: 8 - ids), "has other category ids than"),
        (first(counts=lambda counts: counts[::-1]), "has other masks than"),
        (first(quality=lambda quality: {"contrast": quality["contrast"] + 1}), "has other quality columns than"),
        (first(height=16, width=96), "has another size than"),
        (lambda row: replace(row, key="0-a.png") if row.key == "0-0.png" else row, "goes on with 0-a.png where"),
    ],
)
def test_a_coco_shard_must_say_what_the_parquet_shard_says(store, uri, manifest, change, words):
    """Who trains on COCO and who reports on Parquet must speak of the same labels."""
    rewrite(store, uri, manifest, change, formats=["coco"])
    fault = only_fault(store, uri)
    assert words in fault
    assert fault.startswith(manifest.shards[0].uri)


def test_an_image_too_few_in_coco_is_found(store, uri, manifest):
    """Images that are only in one of the formats must not fall off its end unseen."""
    rewrite(
        store,
        uri,
        manifest,
        lambda row: replace(row, status="quarantined", error="empty: ") if row.key == "0-4.png" else row,
        formats=["coco"],
    )
    assert "goes on with nothing where" in only_fault(store, uri)


def test_files_of_another_run_are_found(store, uri, manifest):
    """Category ids mean something else in another run."""
    other = replace(manifest, run_id="other", categories=(Category(id=1, name="cat"), Category(id=7, name="dog")))
    rewrite(store, uri, other, lambda row: row)
    faults = faults_of(store, uri)
    assert any("speaks of another run_id than the manifest" in fault for fault in faults)
    assert any("speaks of another categories than the manifest" in fault for fault in faults)


@pytest.mark.parametrize("format", ["parquet", "coco"])
def test_rows_of_another_shard_are_found(store, uri, manifest, format):
    """An output that was copied in place of another has sound rows, of images that are then in the run twice."""
    other = commit_of(store, uri, manifest, 1)
    data = store.get(join(uri, other.outputs[format].path))
    put_output(store, uri, commit_of(store, uri, manifest), format, data)
    fault = only_fault(store, uri)
    assert fault.startswith(manifest.shards[0].uri)
    assert "of another shard" in fault


@pytest.mark.parametrize(("format", "words"), [("parquet", "is no Parquet shard"), ("coco", "is no COCO shard")])
def test_an_output_that_is_something_else_is_a_fault(store, uri, manifest, format, words):
    """Rubbish with the right checksum must give a sentence, not a traceback."""
    put_output(store, uri, commit_of(store, uri, manifest), format, b"rubbish " * 30)
    assert words in only_fault(store, uri)


def test_a_coco_shard_that_ends_early_is_a_fault(store, uri, manifest):
    """A COCO file that lost its tail is read as far as it goes, and then named."""
    commit = commit_of(store, uri, manifest)
    data = store.get(join(uri, commit.outputs["coco"].path))
    for cut in (2, 50, len(data) // 2):
        put_output(store, uri, commit, "coco", data[:-cut])
        assert "coco" in only_fault(store, uri) or ".json" in only_fault(store, uri)


def test_shards_of_one_number_are_found(store, uri, manifest):
    """Image ids are made from the number, so two shards of one would share them."""
    first, second = manifest.shards
    store.delete(join(uri, "manifest.json"))
    ledger.write_manifest(store, uri, replace(manifest, shards=[first, replace(second, number=first.number)]))
    assert f"has 2 shards of the number {first.number}" in faults_of(store, uri)[0]


def test_a_shard_without_an_image_to_label_verifies(store, uri, tmp_path):
    """Rows without instances make empty columns, which are the first to break."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    (folder / "a.png").write_bytes(draw(4))
    (folder / "b.png").write_bytes(b"nothing of use")
    config = config_of(folder, uri)
    manifest, labeler = found_run(store, config)
    for planned in plan(config.input.uris, format="auto", images_per_shard=1000, store=store):
        store.put(join(uri, planned.shard.uri), planned.listing)
    label_shard(manifest.shards[0], run=Run(id=manifest.run_id, uri=uri, config=config), store=store, labeler=labeler)
    assert verify(store, uri).faults == ()
    assert ledger.totals(ledger.commits(store, uri)).reasons == {"not_an_image": 1}
