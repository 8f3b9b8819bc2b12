"""Hugging Face: a folder for `datasets.load_dataset(path)`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import yaml

from pipeline import scratch
from pipeline.exports.common import Item, Request, Tally, Written, folder, provenance
from pipeline.exports.parquet import known
from pipeline.exports.parts import TableParts

_ROW = {
    "image_id": "int64",
    "key": "string",
    "shard_id": "string",
    "uri": "string",
    "height": "int32",
    "width": "int32",
    "status": "string",
    "corrected": "int32",
}


def write(request: Request, /) -> Written:
    """`data/train-*.parquet` with the features in their metadata, and `README.md`, the card; one split, `train`.

    A row is an image. `objects` has, for each instance: `category` (a ClassLabel, which counts from 0), `category_id`
    (the data set's own), `score`, `bbox` (x, y, w, h in pixels), `area`, `counts` (the mask as compressed COCO RLE; its
    size is height and width) and the quality columns, null where a value is not known. With `images`, `image` holds the
    stored bytes and is decoded by `datasets`. Quarantined images are not in it.
    """
    tally = Tally()
    indices = {category.id: index for index, category in enumerate(request.labels.categories)}
    schema = _schema(request)
    with folder(request) as files, scratch.folder() as local:
        with TableParts(files, local, "data/train-{}.parquet", schema) as rows:
            for item in tally.sized(request):
                rows.add(_row(item, schema, indices))
        files.put_last("README.md", _card(request).encode())
        return tally.written(request, files.bytes)


def _features(request: Request) -> dict[str, Any]:
    """The features of the dataset, as `datasets` writes them into files."""

    def value(dtype: str) -> dict[str, Any]:
        return {"dtype": dtype, "_type": "Value"}

    def several(feature: dict[str, Any]) -> dict[str, Any]:
        return {"feature": feature, "_type": "List"}

    objects = {
        "category": {"names": [category.name for category in request.labels.categories], "_type": "ClassLabel"},
        "category_id": value("int32"),
        "score": value("float32"),
        "bbox": several(value("float32")),
        "area": value("int64"),
        "counts": value("string"),
        **{name: value("float32") for name in request.quality},
    }
    image = {"image": {"_type": "Image"}} if request.images else {}
    return image | {name: value(dtype) for name, dtype in _ROW.items()} | {"objects": several(objects)}


def _schema(request: Request) -> pa.Schema:
    """The same for Arrow."""
    objects = pa.struct(
        [
            ("category", pa.int64()),
            ("category_id", pa.int32()),
            ("score", pa.float32()),
            ("bbox", pa.list_(pa.float32())),
            ("area", pa.int64()),
            ("counts", pa.string()),
            *((name, pa.float32()) for name in request.quality),
        ]
    )
    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))] if request.images else []
    fields += [(name, pa.type_for_alias(dtype)) for name, dtype in _ROW.items()]
    metadata = {"huggingface": json.dumps({"info": {"features": _features(request)}})}
    return pa.schema([*fields, ("objects", pa.list_(objects))], metadata=metadata)


def _row(item: Item, schema: pa.Schema, indices: Mapping[int, int]) -> dict[str, Any]:
    row, x = item.row, item.row.instances
    kind = schema.field("objects").type.value_type
    columns = {
        "category": [indices[one] for one in x.category_ids.tolist()],
        "category_id": x.category_ids,
        "score": x.scores,
        "bbox": x.boxes.tolist(),
        "area": x.areas,
        "counts": x.counts,
    }
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else known(x.quality.get(field.name), len(x))
        for field in kind
    ]
    objects = pa.StructArray.from_arrays(arrays, fields=list(kind))
    values: dict[str, Any] = {name: [getattr(row, name)] for name in _ROW if name != "shard_id"}
    if item.image is not None:
        values["image"] = [{"bytes": item.image.data, "path": item.name}]
    return values | {"shard_id": [item.shard_id], "objects": pa.ListArray.from_arrays([0, len(x)], objects)}


def _card(request: Request) -> str:
    """The card: where the files are, for `datasets`, and where the labels are from, for people."""
    head = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        "task_categories": ["image-segmentation"],
    }
    lines = [f"- {name}: {json.dumps(value)}" for name, value in provenance(request.labels).items()]
    example = 'pycocotools.mask.decode({"size": [row["height"], row["width"]], "counts": one["counts"]})'
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# Instance masks\n\n"
        f'The mask of `one` in `row["objects"]` is `{example}`.\n\n' + "\n".join(lines) + "\n"
    )
