"""Exports: one COCO file over a run, as pycocotools reads it; the other formats have tests of their own."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO

from pipeline import corrections, runs
from pipeline.coco_file import coco_file
from pipeline.errors import StoreError, UserError
from pipeline.exports import export
from pipeline.records import NO_INSTANCES
from pipeline.store import join
from pipeline.view import View
from tests.small_runs import IMAGES, commit_of, make_run, overwrite, rewrite


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """The URI of a run of two shards."""
    folder = tmp_path_factory.mktemp("export")
    make_run(store, str(folder / "run"), folder / "inputs")
    return str(folder / "run")


def loaded(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_pycocotools_finds_every_label_of_the_run(store, run, tmp_path):
    """An export that loses an annotation, or gives two the same id, trains a worse model without a word."""
    written = export(store, run, format="coco", out=str(tmp_path / "out.json"))
    coco = loaded(tmp_path / "out.json")
    rows = list(runs.read_rows(store, run))
    sized = [row for row in rows if row.status != "quarantined"]
    assert {image["id"]: image["file_name"] for image in coco.dataset["images"]} == {
        row.image_id: row.key for row in sized
    }
    assert sorted(coco.anns) == list(range(1, sum(len(row.instances) for row in rows) + 1))
    assert {category["id"]: category["name"] for category in coco.dataset["categories"]} == {1: "bright", 7: "dark"}
    for row in sized:
        annotations = coco.imgToAnns.get(row.image_id, [])
        assert [one["segmentation"]["counts"] for one in annotations] == list(row.instances.counts)
        assert [one["category_id"] for one in annotations] == row.instances.category_ids.tolist()
        for one, area in zip(annotations, row.instances.areas, strict=True):
            assert coco.annToMask(one).shape == (row.height, row.width)
            assert coco.annToMask(one).sum() == area == one["area"]
            assert one["iscrowd"] == 0
    assert (written.images, written.quarantined, written.instances) == (len(sized), 2, len(coco.anns))
    assert written.bytes == (tmp_path / "out.json").stat().st_size
    assert written.missing == 0
    info = coco.dataset["info"]
    assert (info["run_id"], info["shards"], info["shards_done"], info["complete"]) == ("0123456789ab", 2, 2, True)


def test_a_run_without_parquet_gives_the_same(store, run, tmp_path):
    """output.formats [coco] must export as well as any."""
    make_run(store, str(tmp_path / "run"), tmp_path / "inputs", formats=["coco"])
    export(store, run, format="coco", out=str(tmp_path / "a.json"))
    export(store, str(tmp_path / "run"), format="coco", out=str(tmp_path / "b.json"))
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    without_ids = [[image["file_name"] for image in document["images"]] for document in (first, second)]
    assert without_ids[0] == without_ids[1]
    drop = {"image_id"}
    annotations = [
        [{key: value for key, value in one.items() if key not in drop} for one in document["annotations"]]
        for document in (first, second)
    ]
    assert annotations[0] == annotations[1]


def test_min_score_leaves_out_masks_and_keeps_images(store, run, tmp_path):
    """An image whose masks all score low is a true negative, which training needs."""
    scores = sorted(float(score) for row in runs.read_rows(store, run) for score in row.instances.scores)
    least = scores[len(scores) // 2]
    export(store, run, format="coco", out=str(tmp_path / "out.json"), view=View(min_score=least))
    document = json.loads((tmp_path / "out.json").read_text())
    assert len(document["images"]) == 2 * (IMAGES - 1)
    assert len(document["annotations"]) == sum(score >= least for score in scores)
    assert [one["id"] for one in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
    assert all(one["score"] >= least - 1e-6 for one in document["annotations"])


def test_an_unfinished_run_says_so(store, place, tmp_path):
    """Half of a run must not pass as the whole, once its file has gone elsewhere."""
    uri = join(place, "run")
    make_run(store, uri, tmp_path / "inputs", shards=3, done=1)
    written = export(store, uri, format="coco", out=join(place, "out.json"))
    info = json.loads(store.get(join(place, "out.json")))["info"]
    assert (info["shards"], info["shards_done"], info["complete"], written.missing) == (3, 1, False, 2)


def test_a_run_with_nothing_done_is_a_valid_file(store, tmp_path):
    """Empty lists are written by another branch than full ones."""
    make_run(store, str(tmp_path / "run"), tmp_path / "inputs", done=0)
    export(store, str(tmp_path / "run"), format="coco", out=str(tmp_path / "out.json"))
    assert (loaded(tmp_path / "out.json").imgs, loaded(tmp_path / "out.json").anns) == ({}, {})


def test_a_run_of_two_labelers_names_both(store, tmp_path):
    """Labels of a run that went on with other weights must not be ascribed to the first."""
    uri = str(tmp_path / "run")
    manifest = make_run(store, uri, tmp_path / "inputs")
    overwrite(store, uri, replace(commit_of(store, uri, manifest), fingerprint="zz"))
    export(store, uri, format="coco", out=str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text())["info"]["fingerprint"] == f"{manifest.fingerprint}, zz"


def test_a_failed_export_leaves_what_was_there(store, tmp_path):
    """A damaged run must not replace a good export by half of one."""
    uri = str(tmp_path / "run")
    manifest = make_run(store, uri, tmp_path / "inputs")
    store.delete(join(uri, commit_of(store, uri, manifest, 1).outputs["parquet"].path))
    (tmp_path / "out.json").write_text("precious")
    with pytest.raises(StoreError, match="missing"):
        export(store, uri, format="coco", out=str(tmp_path / "out.json"))
    assert (tmp_path / "out.json").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "coco", "out": "{}/"}, "a folder; name the file"),
        ({"format": "xml", "out": "{}/out.xml"}, "--format is 'xml'; accepted are coco"),
        ({"format": "coco", "out": "{}/out.json", "images": True}, "--images is not for --format coco; it is for yolo"),
        ({"format": "yolo", "out": "{}/out", "polygons": True}, "--polygons is not for --format yolo; it is for cvat"),
        ({"format": "hf", "out": "{}"}, "where something is already; name a new folder"),
    ],
)
def test_what_cannot_be_exported_is_refused(store, run, tmp_path, options, words):
    """A wrong option must be answered before the run is read, and a new export not be mixed with an old one."""
    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(UserError, match=words):
        export(store, run, **{**options, "out": options["out"].format(tmp_path)})
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]


def test_an_export_that_was_killed_leaves_the_disk_as_it_was_for_long(store, run, tmp_path, monkeypatch):
    """Its temporary file is as large as the export itself; a few of them fill the disk."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    words = (
        "import os; from pipeline import coco_file, exports, store\n"
        "coco_file._append = lambda *_: os.kill(os.getpid(), 9)\n"
        f"exports.export(store.Store(), {run!r}, format='coco', out='never.json')"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", words], env=environment, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(path.name == "export.json" for path in tmp_path.rglob("*"))
    export(store, run, format="coco", out=str(tmp_path / "out.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_commits_are_read_once(store, run, tmp_path):
    """Reading a million commits from object storage takes minutes, and twice as many with two readings."""
    read = []

    class Counting(type(store)):
        def open(self, uri, *, etag=None):
            read.append(uri)
            return super().open(uri, etag=etag)

    export(Counting(), run, format="coco", out=str(tmp_path / "out.json"))
    commits = [uri for uri in read if "/commits/" in uri]
    assert len(commits) == len(set(commits)) == 2


def test_the_info_may_come_last(tmp_path):
    """An export knows whose labels it holds once it has read them; parts of it are not to be left beside it."""
    info = {}
    with coco_file(tmp_path / "out.json", info, []):
        info["run_id"] = "known by now"
    assert json.loads((tmp_path / "out.json").read_text())["info"] == {"run_id": "known by now"}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_value_that_is_not_known_is_null(store, tmp_path):
    """NaN is no JSON: one unknown quality would end the export, or make a file that no other tool reads."""
    uri = str(tmp_path / "run")
    manifest = make_run(store, uri, tmp_path / "inputs", formats=["parquet"])
    seen = []

    def forget(row):
        if not len(row.instances):
            return row
        seen.append(row.key)
        contrast = row.instances.quality["contrast"]
        values = np.where(np.arange(len(contrast)) == 0, np.nan, contrast).astype(np.float32)
        return replace(row, instances=replace(row.instances, quality={"contrast": values}))

    rewrite(store, uri, manifest, forget, formats=["parquet"])
    export(store, uri, format="coco", out=str(tmp_path / "out.json"))
    coco = loaded(tmp_path / "out.json")
    unknown = [one for one in coco.anns.values() if one["contrast"] is None]
    assert len(unknown) == len(seen) > 0
    assert all(one["contrast"] > 0 for one in coco.anns.values() if one not in unknown)


def test_corrected_images_say_so(store, tmp_path):
    """Labels that people answer for must not look like those of a model, once they are in another file."""
    uri = str(tmp_path / "run")
    manifest = make_run(store, uri, tmp_path / "inputs", shards=1)
    shard = manifest.shards[0]
    first, second = list(runs.read_rows(store, uri))[:2]
    emptied = replace(first, instances=NO_INSTANCES, status="empty")
    corrections.write(store, uri, manifest, {shard.id: [emptied]}, by="me", source="s", source_sha256="0", counts={})
    export(store, uri, format="coco", out=str(tmp_path / "out.json"))
    coco = loaded(tmp_path / "out.json")
    assert coco.imgs[first.image_id]["corrected"] == 1
    assert coco.getAnnIds(imgIds=[first.image_id]) == []
    assert "corrected" not in coco.imgs[second.image_id]
    assert coco.dataset["info"]["corrections"] == 1
