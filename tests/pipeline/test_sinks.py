"""Parquet and COCO shards, as DuckDB, pandas and pycocotools read them."""

import contextlib
import io
import json

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO

from pipeline import sinks
from pipeline.config import LabelerConfig
from pipeline.records import NO_INSTANCES, SCHEMA_VERSION, Category, ImageLabels
from tests.fakes import ThresholdLabeler

HEADER = sinks.Header(
    run_id="run",
    shard_id="0" * 20,
    fingerprint="f",
    version="1.2.3",
    categories=(Category(id=1, name="bright"), Category(id=7, name='da"rk')),
    quality=("contrast",),
)


@pytest.fixture(scope="module")
def rows():
    """Five rows: two labelled, one empty, one quarantined, one of odd names."""
    labeler = ThresholdLabeler(LabelerConfig(), None)
    image = np.full((9, 14, 3), 128, np.uint8)
    image[2:5, 3:7], image[6:8, 1:12] = 255, 10
    other = np.full((70, 30, 3), 20, np.uint8)
    found = labeler.label([image, other])
    return [
        _row("a.png", 1, image.shape, found[0]),
        _row("sub/b.png", 2**53 - 1, other.shape, found[1]),
        _row("empty.png", 3, (5, 4), NO_INSTANCES, status="empty"),
        _row("broken.jpg", 4, (0, 0), NO_INSTANCES, status="quarantined", error="truncated: 3 bytes short"),
        _row('caf\u00e9 "\n\u2028.png', 5, image.shape, found[0]),
    ]


def _row(key, image_id, shape, instances, status="labelled", error=None):
    return ImageLabels(
        key=key,
        image_id=image_id,
        uri=f"s3://bucket/{key}",
        height=shape[0],
        width=shape[1],
        instances=instances,
        status=status,
        error=error,
    )


def write(format, path, rows, batch=2, header=HEADER):
    with sinks.SINKS[format].open(path, header) as writer:
        for start in range(0, len(rows), batch):
            writer(rows[start : start + batch])
    return path


def test_parquet_has_the_promised_schema_and_metadata(tmp_path, rows):
    """Readers outside this package go by these names and types; a change needs another schema version."""
    file = pq.ParquetFile(write("parquet", tmp_path / "x.parquet", rows))
    assert [f"{field.name} {field.type}" for field in file.schema_arrow] == [
        "image_id int64",
        "key string",
        "shard_id string",
        "uri string",
        "height int32",
        "width int32",
        "status string",
        "error string",
        "instances list<element: struct<category_id: int32, score: float, bbox: list<element: float>, area: int64, "
        "segmentation: struct<size: list<element: int32>, counts: string>, contrast: float>>",
    ]
    metadata = {key.decode(): value.decode() for key, value in file.schema_arrow.metadata.items()}
    assert json.loads(metadata["categories"]) == [{"id": 1, "name": "bright"}, {"id": 7, "name": 'da"rk'}]
    assert (metadata["schema_version"], metadata["run_id"], metadata["fingerprint"]) == (
        str(SCHEMA_VERSION),
        "run",
        "f",
    )


def test_parquet_rows_are_the_labels(tmp_path, rows):
    """A column shifted by one row labels every image with its neighbour's masks."""
    table = pq.read_table(write("parquet", tmp_path / "x.parquet", rows)).to_pylist()
    assert [row["key"] for row in table] == [row.key for row in rows]
    for written, row in zip(table, rows, strict=True):
        x = row.instances
        assert written["shard_id"] == HEADER.shard_id
        for name in ("image_id", "uri", "height", "width", "status", "error"):
            assert written[name] == getattr(row, name)
        assert [one["category_id"] for one in written["instances"]] == x.category_ids.tolist()
        assert [one["score"] for one in written["instances"]] == x.scores.tolist()
        assert [one["bbox"] for one in written["instances"]] == x.boxes.tolist()
        assert [one["area"] for one in written["instances"]] == x.areas.tolist()
        assert [one["segmentation"]["counts"] for one in written["instances"]] == list(x.counts)
        assert all(one["segmentation"]["size"] == [row.height, row.width] for one in written["instances"])
        assert [one["contrast"] for one in written["instances"]] == (x.quality["contrast"].tolist() if len(x) else [])


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_size_of_batches_changes_no_row(tmp_path, rows, batch):
    """A worker's batch size is a matter of speed."""
    first = pq.read_table(write("parquet", tmp_path / "a", rows, batch=2))
    assert pq.read_table(write("parquet", tmp_path / "b", rows, batch=batch)).equals(first)
    one = write("coco", tmp_path / "a.json", rows, batch=2).read_bytes()
    assert write("coco", tmp_path / "b.json", rows, batch=batch).read_bytes() == one


def test_duckdb_and_pandas_open_the_parquet(tmp_path, rows):
    """The tools that people have must read it without this package."""
    path = write("parquet", tmp_path / "x.parquet", rows)
    counts = duckdb.sql(f"select status, count(*), sum(len(instances)) from '{path}' group by status order by status")
    masks = sum(len(row.instances) for row in rows)
    assert counts.fetchall() == [("empty", 1, 0), ("labelled", 3, masks), ("quarantined", 1, 0)]
    frame = pd.read_parquet(path)
    assert frame["image_id"].tolist() == [row.image_id for row in rows]
    assert [len(instances) for instances in frame["instances"]] == [len(row.instances) for row in rows]


def test_pycocotools_opens_the_coco(tmp_path, rows):
    """A COCO file that only this package can read is none."""
    path = write("coco", tmp_path / "x.json", rows)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    sized = [row for row in rows if row.status != "quarantined"]
    assert [(image["id"], image["file_name"]) for image in coco.dataset["images"]] == [
        (row.image_id, row.key) for row in sized
    ]
    assert coco.dataset["categories"] == [{"id": 1, "name": "bright"}, {"id": 7, "name": 'da"rk'}]
    assert coco.dataset["info"]["run_id"] == "run"
    assert [one["id"] for one in coco.dataset["annotations"]] == list(range(1, len(coco.anns) + 1))
    for row in sized:
        annotations = coco.imgToAnns.get(row.image_id, [])
        assert [one["segmentation"]["counts"] for one in annotations] == list(row.instances.counts)
        for one, area, box in zip(annotations, row.instances.areas, row.instances.boxes, strict=True):
            assert coco.annToMask(one).shape == (row.height, row.width)
            assert coco.annToMask(one).sum() == area == one["area"]
            assert one["bbox"] == box.tolist()
            assert one["iscrowd"] == 0
            assert one["contrast"] > 0


@pytest.mark.parametrize("chosen", [[], [2], [3], [2, 3]])
def test_shards_without_a_mask_are_valid(tmp_path, rows, chosen):
    """A shard of empty or of quarantined images only must still load, and account for its images."""
    some = [rows[index] for index in chosen]
    assert pq.read_table(write("parquet", tmp_path / "x.parquet", some)).num_rows == len(some)
    document = json.loads(write("coco", tmp_path / "x.json", some).read_text())
    assert len(document["images"]) == sum(row.status == "empty" for row in some)
    assert document["annotations"] == []


def test_nothing_is_left_beside_a_shard(tmp_path, rows):
    """What is uploaded is the folder's content."""
    write("coco", tmp_path / "x.json", rows)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_annotations_are_strict_json(tmp_path, rows):
    """NaN is no JSON, and other readers than Python's refuse the whole file for it."""
    path = write("coco", tmp_path / "x.json", rows)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_labeler_without_quality_columns_adds_none(tmp_path, rows):
    """The plain schema is what most readers know."""
    plain = sinks.Header(
        run_id="run", shard_id="0" * 20, fingerprint="f", version="1", categories=HEADER.categories, quality=()
    )
    file = pq.ParquetFile(write("parquet", tmp_path / "x.parquet", rows, header=plain))
    assert file.schema_arrow.equals(sinks.schema(), check_metadata=False)
