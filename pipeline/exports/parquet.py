"""Flat Parquet tables, for DuckDB, polars and pandas."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import scratch, sinks
from pipeline.exports.common import Item, Request, Tally, Written, folder, provenance
from pipeline.exports.parts import TableParts

#: As in a shard of the run, but for the instances, which are counted: each is a row of its own table.
IMAGES = pa.schema(
    [
        *(column for column in sinks.schema() if column.name != "instances"),
        ("corrected", pa.int32()),
        ("instances", pa.int32()),
    ]
)

CATEGORIES = pa.schema([("id", pa.int32()), ("name", pa.string())])


def instance_schema(quality: tuple[str, ...]) -> pa.Schema:
    """A row an instance. instance: its place in its image; x, y, w, h: the tight box in pixels; counts: COCO RLE."""
    return pa.schema(
        [
            ("image_id", pa.int64()),
            ("instance", pa.int32()),
            ("category_id", pa.int32()),
            ("category", pa.string()),
            ("score", pa.float32()),
            *((name, pa.float32()) for name in ("x", "y", "w", "h")),
            ("area", pa.int64()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("counts", pa.string()),
            *((name, pa.float32()) for name in quality),
        ]
    )


def write(request: Request, /) -> Written:
    """`images/*.parquet`, `instances/*.parquet`, `categories.parquet` and `info.json`.

    images: a row an image, quarantined ones with their error. instances: a row an instance, with the image's size, the
    mask as compressed COCO RLE, and the quality columns, null where a value is not known; `image_id` joins the two.
    Nothing is lost but what the view leaves out.
    """
    tally = Tally()
    names = {category.id: category.name for category in request.labels.categories}
    with folder(request) as files, scratch.folder() as local:
        with (
            TableParts(files, local, "images/images-{}.parquet", IMAGES) as images,
            TableParts(files, local, "instances/instances-{}.parquet", instance_schema(request.quality)) as instances,
        ):
            for item in tally.all(request):
                images.add(_image(item))
                if len(item.row.instances):
                    instances.add(_instances(item, names, request.quality))
        with TableParts(files, local, "categories.parquet", CATEGORIES) as categories:
            categories.add({"id": list(names), "name": list(names.values())})
        files.put_last("info.json", json.dumps(provenance(request.labels), indent=1).encode() + b"\n")
        return tally.written(request, files.bytes)


def _image(item: Item) -> dict[str, list[object]]:
    row = item.row
    values = {name: getattr(row, name) for name in IMAGES.names if name not in ("shard_id", "instances")}
    values |= {"shard_id": item.shard_id, "instances": len(row.instances)}
    return {name: [value] for name, value in values.items()}


def _instances(item: Item, names: Mapping[int, str], quality: tuple[str, ...]) -> dict[str, object]:
    row, x = item.row, item.row.instances
    number = len(x)
    return {
        "image_id": np.full(number, row.image_id),
        "instance": np.arange(number),
        "category_id": x.category_ids,
        "category": [names[one] for one in x.category_ids.tolist()],
        "score": x.scores,
        **dict(zip("xywh", x.boxes.T, strict=True)),
        "area": x.areas,
        "height": np.full(number, row.height),
        "width": np.full(number, row.width),
        "counts": x.counts,
        **{name: known(x.quality.get(name), number) for name in quality},
    }


def known(column: npt.NDArray[np.float32] | None, number: int) -> pa.Array:
    """A quality column with null in the place of NaN, which some tools sort and average as a number."""
    values = np.full(number, np.nan, np.float32) if column is None else column
    return pa.array(values, pa.float32(), from_pandas=True)
