"""Labels -> files: one function a format, each a context manager that yields a writer of batches.

A writer holds at most a batch: what it is given goes to a local file at once, which the worker uploads whole. To add a
format, write one such function and enter it in `SINKS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.coco_file import coco_file
from pipeline.records import SCHEMA_VERSION, Category, ImageLabels

#: A Parquet row group ends at whichever comes first.
ROW_GROUP_ROWS, ROW_GROUP_BYTES = 1000, 32 << 20

Writer: TypeAlias = Callable[[Sequence[ImageLabels]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a data object says of itself: where it comes from, and what its category ids mean."""

    run_id: str
    shard_id: str
    fingerprint: str
    version: str
    categories: tuple[Category, ...]
    quality: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """A format: the folder of the run that it fills, the suffix of its files, and how one is written."""

    folder: str
    suffix: str
    open: Callable[[Path, Header], AbstractContextManager[Writer]]


def schema(quality: Sequence[str] = ()) -> pa.Schema:
    """The Parquet schema, version 1: one row an image. `quality` names further float columns of an instance."""
    instance = pa.struct(
        [
            ("category_id", pa.int32()),
            ("score", pa.float32()),
            ("bbox", pa.list_(pa.float32())),
            ("area", pa.int64()),
            ("segmentation", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
            *((name, pa.float32()) for name in quality),
        ]
    )
    return pa.schema(
        [
            ("image_id", pa.int64()),
            ("key", pa.string()),
            ("shard_id", pa.string()),
            ("uri", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("status", pa.string()),
            ("error", pa.string()),
            ("instances", pa.list_(instance)),
        ]
    )


@contextmanager
def parquet(path: Path, header: Header) -> Iterator[Writer]:
    """Write `path` as Parquet (zstd); the metadata holds the header, the categories as JSON.

    Rows are gathered into row groups, as one for each small batch would make a file of footers.
    """
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        "run_id": header.run_id,
        "fingerprint": header.fingerprint,
        "version": header.version,
        "categories": json.dumps([asdict(c) for c in header.categories]),
    }
    file_schema = schema(header.quality).with_metadata(metadata)
    plain = ["instances.list.element.segmentation.counts", "instances.list.element.score"]
    columns = [".".join(c) for c in _leaves(file_schema)]
    with pq.ParquetWriter(
        path,
        file_schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[c for c in columns if c not in plain],
    ) as writer:
        gathered: list[pa.RecordBatch] = []
        rows = size = 0

        def write(labels: Sequence[ImageLabels]) -> None:
            nonlocal rows, size
            gathered.append(_batch(labels, header, file_schema))
            rows, size = rows + len(labels), size + gathered[-1].nbytes
            if rows >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
                flush()

        def flush() -> None:
            nonlocal rows, size
            writer.write_table(pa.Table.from_batches(gathered, file_schema))
            gathered.clear()
            rows = size = 0

        yield write
        if gathered:
            flush()


@contextmanager
def coco(path: Path, header: Header) -> Iterator[Writer]:
    """Write `path` as COCO JSON that pycocotools loads as it is; see `coco_file`."""
    info = {
        "description": "instance masks by PatchDCT",
        "version": header.version,
        "schema_version": SCHEMA_VERSION,
        "run_id": header.run_id,
        "shard_id": header.shard_id,
        "fingerprint": header.fingerprint,
    }
    with coco_file(path, info, header.categories) as file:
        yield file.write


SINKS: dict[str, Sink] = {
    "parquet": Sink(folder="labels", suffix="parquet", open=parquet),
    "coco": Sink(folder="coco", suffix="json", open=coco),
}


def _batch(labels: Sequence[ImageLabels], header: Header, file_schema: pa.Schema) -> pa.RecordBatch:
    """Rows as one Arrow batch, built from the columns without a Python object an instance."""
    lengths = np.array([len(row.instances) for row in labels], np.int32)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    total = int(offsets[-1])
    sizes = np.repeat(np.array([(row.height, row.width) for row in labels], np.int32).reshape(-1, 2), lengths, axis=0)

    def column(values: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
        return np.concatenate(values).astype(dtype) if values else np.zeros(0, dtype)

    per_image = [row.instances for row in labels]
    counts = [c for x in per_image for c in x.counts]
    fields = {
        "category_id": pa.array(column([x.category_ids for x in per_image], np.int32)),
        "score": pa.array(column([x.scores for x in per_image], np.float32)),
        "bbox": _lists(column([x.boxes.reshape(-1) for x in per_image], np.float32), total, 4),
        "area": pa.array(column([x.areas for x in per_image], np.int64)),
        "segmentation": pa.StructArray.from_arrays(
            [_lists(sizes.reshape(-1), total, 2), pa.array(counts, pa.string())], ["size", "counts"]
        ),
        **{
            name: pa.array(column([x.quality[name] for x in per_image if len(x)], np.float32))
            for name in header.quality
        },
    }
    instances = pa.ListArray.from_arrays(
        pa.array(offsets), pa.StructArray.from_arrays(list(fields.values()), list(fields))
    )
    return pa.record_batch(
        [
            pa.array([row.image_id for row in labels], pa.int64()),
            pa.array([row.key for row in labels], pa.string()),
            pa.array([header.shard_id] * len(labels), pa.string()),
            pa.array([row.uri for row in labels], pa.string()),
            pa.array([row.height for row in labels], pa.int32()),
            pa.array([row.width for row in labels], pa.int32()),
            pa.array([row.status for row in labels], pa.string()),
            pa.array([row.error for row in labels], pa.string()),
            instances,
        ],
        schema=file_schema,
    )


def _lists(values: npt.NDArray[Any], count: int, width: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * width), pa.array(values))


def _leaves(file_schema: pa.Schema) -> list[tuple[str, ...]]:
    """The Parquet paths of all leaf columns."""

    def walk(kind: pa.DataType, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if pa.types.is_struct(kind):
            for i in range(kind.num_fields):
                yield from walk(kind.field(i).type, (*path, kind.field(i).name))
        elif pa.types.is_list(kind):
            yield from walk(kind.value_type, (*path, "list", "element"))
        else:
            yield path

    return [leaf for column in file_schema for leaf in walk(column.type, (column.name,))]
