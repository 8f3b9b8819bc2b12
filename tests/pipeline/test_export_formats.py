"""The formats of other tools, read without these tools. What the tools themselves make of them is in tests/tools."""

import io
import json
import xml.sax
import xml.sax.handler
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import PurePosixPath

import cv2
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as mask_api

from pipeline import polygons, runs
from pipeline.cli import main
from pipeline.errors import LabelingError
from pipeline.exports import EXPORTS, bitmaps, export, labelstudio, parts, yolo
from pipeline.exports.common import Folder, Request, items
from pipeline.exports.names import Names
from pipeline.records import NO_INSTANCES, Category, ImageLabels, Shard
from pipeline.store import join
from pipeline.view import View
from tests.tools.awkward import AwkwardLabeler, make_run

FOLDERS = [name for name in EXPORTS if name != "coco"]
BITMAPS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: arrays.arrays(np.uint8, size, elements=st.integers(0, 1))
)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    make_run(store, str(folder / "run"), folder / "inputs")
    return str(folder / "run")


def rows_of(store, run):
    return [row for row in runs.opened(store, run).all_rows() if row.status != "quarantined"]


def names_of(store, run):
    """The file names of the images of a run."""
    request = Request(labels=runs.opened(store, run), out="", images=True)
    return [item.name for item in items(request) if item.row.status != "quarantined"]


class Elements(xml.sax.handler.ContentHandler):
    """The elements of an XML with their attributes and their text, in order."""

    def __init__(self, data):
        super().__init__()
        self.found = []
        xml.sax.parseString(data, self)

    def startElement(self, name, attrs):  # noqa: N802 its name there
        self.found.append((name, dict(attrs), []))

    def characters(self, content):
        self.found[-1][2].append(content)


@pytest.mark.parametrize("format", FOLDERS)
def test_each_format_counts_what_it_writes(store, run, tmp_path, format):
    """The last line of the command is all that a user sees of ten thousand files."""
    rows = rows_of(store, run)
    written = export(store, run, format=format, out=str(tmp_path / "out"), images=EXPORTS[format].images)
    assert (written.images, written.quarantined, written.missing) == (len(rows), 2, 0)
    assert written.instances == sum(len(row.instances) for row in rows)
    assert written.bytes == sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())


@pytest.mark.parametrize("format", [name for name in FOLDERS if EXPORTS[name].images and name != "hf"])
def test_images_lie_beside_the_labels_as_they_were_stored(store, run, tmp_path, format):
    """A second image of the same name, from another archive, must not replace the first; none may leave the folder."""
    out = tmp_path / "deep" / "out"
    export(store, run, format=format, out=str(out), images=True)
    names = names_of(store, run)
    assert len(set(names)) == len(names) == 12
    folder = "data" if format == "fiftyone" else "images"
    found = {
        path.relative_to(out / folder).as_posix(): path.read_bytes()
        for path in (out / folder).rglob("*")
        if path.suffix in (".png", ".jpg")
    }
    assert sorted(found) == sorted(names)
    for row, name in zip(rows_of(store, run), names, strict=True):
        assert Image.open(io.BytesIO(found[name])).size == (row.width, row.height)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_folder_goes_to_object_storage(store, place, tmp_path):
    """A folder is many objects there, and no rename; the one that tools begin with must come last."""
    make_run(store, join(place, "run"), tmp_path / "in")
    put = []

    class Noting(type(store)):
        def put(self, uri, data):
            put.append(uri)
            return super().put(uri, data)

    export(Noting(), join(place, "run"), format="yolo", out=join(place, "out"), images=True)
    names = {info.uri.rpartition("/out/")[2] for info in store.list(join(place, "out", ""))}
    assert len(names) == 2 * 12 + 1
    assert put[-1].endswith("/out/data.yaml")
    assert "data.yaml" in names


def test_yolo_polygons_are_the_masks(store, run, tmp_path):
    """A label in the wrong file, of the wrong class or beside the object trains a worse model without a word."""
    out = tmp_path / "out"
    export(store, run, format="yolo", out=str(out))
    document = yaml.safe_load((out / "data.yaml").read_text())
    assert (document["train"], document["val"], "path" in document) == ("images", "images", False)
    assert list(document["names"]) == [0, 1, 2]
    assert [document["category_ids"][index] for index in range(3)] == [7, 3, 90]
    assert document["names"][0] == AwkwardLabeler.categories[0].name
    exact = 0
    for row, name in zip(rows_of(store, run), names_of(store, run), strict=True):
        lines = (out / yolo.label_path(name)).read_text().splitlines()
        assert len(lines) == len(row.instances)
        for line, category_id, counts in zip(lines, row.instances.category_ids, row.instances.counts, strict=True):
            index, *values = line.split()
            assert document["category_ids"][int(index)] == category_id
            assert len(values) >= 6
            points = np.array(values, float).reshape(-1, 2)
            assert 0 < points.min() <= points.max() < 1
            drawn = np.zeros((row.height, row.width), np.uint8)
            cv2.fillPoly(drawn, [(points * [row.width, row.height]).astype(np.int32)], 1)
            if len(polygons.outlines(counts, row.height, row.width)) == 1:
                assert mask_api.encode(np.asfortranarray(drawn))["counts"].decode() == counts
                exact += 1
    assert exact > 20


def test_a_far_speck_does_not_draw_a_bridge_across_the_image():
    """The bridge to a piece of one pixel would be drawn as well, and be more wrong than the pixel is right."""
    bitmap = np.zeros((20, 60), np.uint8)
    bitmap[2:12, 2:12] = bitmap[5, 57] = bitmap[2:12, 14:20] = 1
    counts = mask_api.encode(np.asfortranarray(bitmap))["counts"].decode()
    pieces = polygons.outlines(counts, 20, 60)
    joined = polygons.join(pieces, [polygons.area(one) for one in pieces])
    kept = mask_api.decode({"size": [20, 60], "counts": polygons.fill([joined], 20, 60)})
    bitmap[5, 57] = 0
    assert (kept == bitmap).all()


def test_cvat_masks_go_along_the_rows_of_their_box(store, run, tmp_path):
    """Names that no XML can hold end the upload; a mask by columns is another one."""
    export(store, run, format="cvat", out=str(tmp_path / "out"))
    found = Elements((tmp_path / "out" / "annotations-00000.xml").read_bytes()).found
    images = [attrs for name, attrs, _ in found if name == "image"]
    rows = rows_of(store, run)
    assert [one["name"] for one in images] == [row.key.replace("\x01", "\ufffd") for row in rows]
    assert [int(one["id"]) for one in images] == list(range(len(rows)))
    shapes = iter([attrs for name, attrs, _ in found if name == "mask"])
    names = {category.id: category.name for category in AwkwardLabeler.categories}
    for row in rows:
        for category_id, counts in zip(row.instances.category_ids.tolist(), row.instances.counts, strict=True):
            shape = next(shapes)
            left, top, width, height = (int(shape[name]) for name in ("left", "top", "width", "height"))
            lengths = np.array(shape["rle"].split(","), int)
            pixels = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(height, width)
            mask = np.zeros((row.height, row.width), np.uint8)
            mask[top : top + height, left : left + width] = pixels
            assert mask_api.encode(np.asfortranarray(mask))["counts"].decode() == counts
            assert (shape["label"], shape["source"]) == (names[category_id], "auto")
    values = [("".join(text).strip(), attrs["name"]) for name, attrs, text in found if name == "attribute" and attrs]
    assert {name for _, name in values} == {"score", "contrast", "never"}
    assert {value for value, name in values if name == "never"} == {""}
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert [one["name"] for one in labels] == list(names.values())


def test_label_studio_tasks_name_what_corrections_must_find_again(store, run, tmp_path):
    """A correction whose image cannot be told is work thrown away."""
    export(store, run, format="labelstudio", out=str(tmp_path / "out"), images=True, polygons=True)
    tasks = json.loads((tmp_path / "out" / "tasks-00000.json").read_text())
    for task, row, name in zip(tasks, rows_of(store, run), names_of(store, run), strict=True):
        assert (task["data"]["key"], task["data"]["image_id"]) == (row.key, row.image_id)
        assert PurePosixPath(name).parts[0] == task["data"]["shard_id"]
        for index, counts in enumerate(row.instances.counts):
            regions = [
                one for one in task["predictions"][0]["result"] if one["id"].startswith(f"{row.image_id}-{index}-")
            ]
            rings = [np.array(one["value"]["points"]) * (row.width / 100, row.height / 100) for one in regions]
            assert polygons.fill(rings, row.height, row.width) == counts
    config = Elements((tmp_path / "out" / "label_config.xml").read_bytes()).found
    assert [attrs["value"] for name, attrs, _ in config if name == "Label"] == [
        category.name for category in AwkwardLabeler.categories
    ]


@given(BITMAPS)
def test_masks_as_crops_and_runs_along_rows_are_the_same_masks(bitmap):
    """A run that ends with its row, a mask that ends with its image: what is left out there shifts all that follows."""
    height, width = bitmap.shape
    counts = mask_api.encode(np.asfortranarray(bitmap))["counts"].decode()
    found = bitmaps.crop(counts, height, width)
    pasted = np.zeros_like(bitmap)
    pasted[found.top : found.top + found.pixels.shape[0], found.left : found.left + found.pixels.shape[1]] = (
        found.pixels
    )
    assert (pasted == bitmap).all()
    assert not bitmap.any() or (found.pixels.any(axis=0).all() or found.pixels[:, [0, -1]].any(axis=0).all())
    lengths = bitmaps.row_runs(found, height, width)
    assert (np.repeat(np.arange(len(lengths)) % 2, lengths) == bitmap.reshape(-1)).all()
    assert (lengths[1:] > 0).all()


@given(st.lists(st.integers(1, 50_000), min_size=1, max_size=6), st.booleans())
def test_brush_strokes_decode_to_the_pixels(lengths, starts):
    """Label Studio's lengths end at 65,536 values, which is a run of 16,384 pixels."""
    runs = np.array([0, *lengths] if starts else lengths)
    bits = np.unpackbits(np.array(labelstudio.brush(runs), np.uint8))
    at = 0

    def take(number):
        nonlocal at
        at += number
        return int("".join(map(str, bits[at - number : at])), 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values, got = [], 0
    while got < total:
        assert take(1) == 1
        length = take(sizes[take(2)]) + 1
        values.append(np.full(length, take(word)))
        got += length
    assert len(bits) - at < 8
    assert (np.concatenate(values) == np.repeat(np.arange(len(runs)) % 2 * 255, runs * 4)).all()


def test_the_tables_hold_all_and_join(store, run, tmp_path):
    """A table that loses the quarantined cannot answer what became of an image."""
    out = tmp_path / "out"
    export(store, run, format="parquet", out=str(out))
    every = list(runs.opened(store, run).all_rows())
    status = duckdb.sql(f"select status, count(*) from '{out}/images/*.parquet' group by 1 order by 1").fetchall()
    assert status == [("empty", 4), ("labelled", 8), ("quarantined", 2)]
    joined = duckdb.sql(
        f"select i.key, n.instance, n.counts, n.score, n.x, n.contrast, n.never, c.name "
        f"from '{out}/images/*.parquet' i join '{out}/instances/*.parquet' n using (image_id) "
        f"join '{out}/categories.parquet' c on c.id = n.category_id "
        "order by i.image_id, n.instance"
    ).fetchall()
    expected = [
        (row.key, index, counts)
        for row in sorted(every, key=lambda row: row.image_id)
        for index, counts in enumerate(row.instances.counts)
    ]
    assert [one[:3] for one in joined] == expected
    assert {one[6] for one in joined} == {None}
    assert sum(one[5] is None for one in joined) == 3 * 8
    assert {one[7] for one in joined} == {category.name for category in AwkwardLabeler.categories}
    assert json.loads((out / "info.json").read_text())["complete"] is True


def test_hugging_face_says_its_features_in_each_file(store, run, tmp_path):
    """`datasets` takes classes and images for what they are by the metadata alone."""
    out = tmp_path / "out"
    export(store, run, format="hf", out=str(out), images=True)
    table = pq.read_table(out / "data" / "train-00000.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["objects"]["feature"]["category"]["names"] == [one.name for one in AwkwardLabeler.categories]
    assert set(features) == set(table.schema.names)
    card = (out / "README.md").read_text().split("---\n")
    assert yaml.safe_load(card[1])["configs"][0]["data_files"][0]["path"] == "data/train-*.parquet"
    for found, row in zip(table.to_pylist(), rows_of(store, run), strict=True):
        assert [one["counts"] for one in found["objects"]] == list(row.instances.counts)
        assert Image.open(io.BytesIO(found["image"]["bytes"])).size == (row.width, row.height)


def test_files_of_bounded_size_hold_all_rows(store, tmp_path):
    """A run of a hundred million images in one file is a file that nobody opens."""
    with ThreadPoolExecutor(1) as pool:
        folder = Folder(store, str(tmp_path / "out"), pool)
        with parts.TextParts(
            folder, tmp_path, "t-{}.json", head="[", tail="]", between=",", entries=3, size=1000
        ) as text:
            for number in range(7):
                text.write(str(number))
    found = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("t-*.json"))]
    assert found == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_run_of_nothing_is_still_a_dataset(store, tmp_path):
    """Empty folders and tables without a file are refused by the tools, in words that nobody understands."""
    make_run(store, str(tmp_path / "run"), tmp_path / "in")
    nothing = View(min_score=1.0)
    for format in FOLDERS:
        written = export(store, str(tmp_path / "run"), format=format, out=str(tmp_path / format), view=nothing)
        assert (written.images, written.instances) == (12, 0)
    assert duckdb.sql(f"select count(*) from '{tmp_path}/parquet/instances/*.parquet'").fetchall() == [(0,)]


def test_an_image_that_is_gone_is_told(store, tmp_path):
    """Labels without their image must not pass for a whole dataset."""
    make_run(store, str(tmp_path / "run"), tmp_path / "in")
    (tmp_path / "in" / "1.tar").unlink()
    with pytest.raises(LabelingError, match=r"1\.tar"):
        export(store, str(tmp_path / "run"), format="yolo", out=str(tmp_path / "out"), images=True)
    assert not (tmp_path / "out" / "data.yaml").exists()


KEYS = st.lists(
    st.text(
        st.sampled_from("ab.AB/_é\\ \x00\n:*-1") | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12
    ),
    min_size=1,
    max_size=30,
    unique=True,
)


@given(KEYS, st.sampled_from(["tar", "listing"]))
def test_names_stay_in_their_folder_and_differ(keys, format):
    """A key is whatever an archive says: "../../.bashrc", or two that are one file on a disk that knows no capitals."""
    names = Names({"input": {"uri": ["s3://b/images/"]}})
    found = []
    for number, key in enumerate(keys):
        if number % 10 == 0:
            names.begin(Shard(id=f"{number:020d}", uri="u", format=format, bytes=0, etag="", number=number))
        row = ImageLabels(key=key, image_id=number, uri="", height=1, width=1, instances=NO_INSTANCES, status="empty")
        found.append(names.of(row))
    for name in found:
        parts_of = name.split("/")
        assert all(part not in ("", ".", "..") and not part.startswith(".") for part in parts_of)
        assert not name.startswith("/")
        assert all(sign.isalnum() or sign in "_.+=@,-/" for sign in name)
    stems = [name.rpartition(".")[0].casefold() for name in found]
    assert len(set(stems)) == len(stems)


def test_a_plain_key_is_its_own_name():
    """Who has a folder of images wants labels that lie as these do."""
    row = ImageLabels(key="deep/a.B.png", image_id=5, uri="", height=1, width=1, instances=NO_INSTANCES, status="empty")
    shard = Shard(id="0a" * 10, uri="u", format="listing", bytes=0, etag="", number=1)
    for uris, format, name in [
        (["s3://b/images/"], "listing", "deep/a.B.png"),
        (["s3://b/images/"], "tar", f"{shard.id}/deep/a.B.png"),
        (["s3://b/images/", "s3://b/others/"], "listing", f"{shard.id}/deep/a.B.png"),
        (["s3://b/*/"], "listing", f"{shard.id}/deep/a.B.png"),
    ]:
        names = Names({"input": {"uri": uris}})
        names.begin(replace(shard, format=format))
        assert names.of(row) == name


def test_the_command_takes_the_options_of_a_format(run, tmp_path, capsys):
    """An option that the command does not hand on gives another file than the one that was asked for."""
    out = tmp_path / "out"
    assert (
        main(["export", run, "--format", "cvat", "--out", str(out), "--polygons", "--images", "--min-score", "0.5"])
        == 0
    )
    assert "12 images, without 2 quarantined, " in capsys.readouterr().out
    found = Elements((out / "annotations-00000.xml").read_bytes()).found
    assert {name for name, _, _ in found} >= {"polygon", "image"}
    assert "mask" not in {name for name, _, _ in found}
    assert (out / "images").is_dir()
    scores = [
        float("".join(text)) for name, attrs, text in found if name == "attribute" and attrs.get("name") == "score"
    ]
    assert min(scores) >= 0.5
    assert main(["export", run, "--format", "coco", "--out", str(tmp_path / "out.json"), "--images"]) == 2
    assert "--images is not for --format coco" in capsys.readouterr().err


def test_names_differ_across_the_border_of_two_shards():
    """A folder of images is cut into shards anywhere, so "a.jpg" may end one and "A.png" begin the next."""
    names = Names({"input": {"uri": ["s3://b/images/"]}})
    found = []
    for number, key in enumerate(["a.jpg", "A.png"]):
        names.begin(Shard(id=f"{number:020d}", uri="u", format="listing", bytes=0, etag="", number=number))
        row = ImageLabels(key=key, image_id=number, uri="", height=1, width=1, instances=NO_INSTANCES, status="empty")
        found.append(names.of(row))
    assert found == ["a.jpg", "A_1.png"]


def test_class_names_that_no_xml_can_hold_are_mended():
    """One control character in a class name, and the tool refuses the labels of a whole run."""
    config = labelstudio.label_config((Category(id=1, name="a\x02 <b>"),), False)
    found = Elements(config.encode()).found
    assert [attrs["value"] for name, attrs, _ in found if name == "Label"] == ["a\ufffd <b>"]
