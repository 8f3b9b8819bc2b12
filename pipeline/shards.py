"""The readers of what `sinks` writes: one function a format, and READERS, the table of them; and how it is fetched.

A reader streams, and it is strict: whatever a sink would not have written is a StoreError that names the file and, if
possible, the image. What the rows say is for `verify` to judge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import NotFoundError, StoreError
from pipeline.records import ImageLabels, Instances, Output
from pipeline.sinks import schema
from pipeline.store import Store, join, redact

_BATCH = 64  # rows
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The content of a data object.

    about: what the file says of itself: schema_version, run_id, fingerprint, version and categories (id and name).
    rows: its images, once; those of a COCO file lack the quarantined and their `uri`.
    """

    about: Mapping[str, Any]
    rows: Iterator[ImageLabels]


def read_parquet(path: Path, shard_id: str) -> Data:
    """The rows of a Parquet shard, a few row groups at a time.

    Raises:
        StoreError: now or with a row: it is no Parquet file, or it has another schema, or is of another shard.
    """
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow
        about: dict[str, Any] = {k.decode(): v.decode() for k, v in (found.metadata or {}).items()}
        about["categories"] = json.loads(about.get("categories", "[]"))
        about["schema_version"] = int(about.get("schema_version", "0"))
    except (pa.ArrowException, ValueError, OSError) as error:
        raise StoreError(f"{path.name} is no Parquet shard: {_text(error)}.") from None
    plain = [field.name for field in schema().field("instances").type.value_type]
    kind = found.field("instances").type if "instances" in found.names else None
    inner = [field.name for field in kind.value_type] if kind is not None and _is_struct_list(kind) else []
    quality = tuple(inner[len(plain) :])
    if not found.equals(schema(quality), check_metadata=False):
        raise StoreError(f"{path.name} has another schema than a Parquet shard; read the schema in the README.")
    return Data(about=about, rows=_parquet_rows(path, shard_id, quality))


def read_coco(path: Path, shard_id: str) -> Data:
    """The images of a COCO shard with their annotations, which are in the same order: it is read at two places at once.

    Raises:
        StoreError: now or with a row: it is not laid out as this package does it, or is of another shard.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            head, _ = _coco_head(file)
        about = {**head["info"], "categories": head["categories"]}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path.name} is no COCO shard of this package: {_text(error)}.") from None
    if about.get("shard_id") != shard_id:
        raise StoreError(f"{path.name} is of another shard.")
    return Data(about=about, rows=_coco_rows(path))


def fetch(store: Store, run_uri: str, output: Output, folder: Path) -> Path:
    """Copy a data object into a local folder, under its own name.

    Raises:
        StoreError: it is missing, or it is not the one that was committed.
    """
    uri = join(run_uri, output.path)
    path = folder / Path(output.path).name
    checksum, size = hashlib.sha256(), 0
    try:
        with store.open(uri) as stream, path.open("wb") as file:
            while size <= output.bytes and (chunk := stream.read(_CHUNK)):
                size += len(chunk)
                checksum.update(chunk)
                file.write(chunk)
    except NotFoundError:
        raise NotFoundError(f"{redact(uri)} is missing, though it was committed.") from None
    if size != output.bytes:
        has = f"{size}" if size < output.bytes else "more"
        raise StoreError(f"{redact(uri)} is not what was committed: it has {has} bytes instead of {output.bytes}.")
    if checksum.hexdigest() != output.sha256:
        raise StoreError(f"{redact(uri)} is not what was committed: its sha256 differs.")
    return path


#: By preference. A reader is given the file and the id of the shard that it has to be of.
READERS: dict[str, Callable[[Path, str], Data]] = {"parquet": read_parquet, "coco": read_coco}


def _parquet_rows(path: Path, shard_id: str, quality: tuple[str, ...]) -> Iterator[ImageLabels]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH):
                yield from _from_arrow(path.name, batch, shard_id, quality)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path.name} cannot be read: {_text(error)}.") from None


def _from_arrow(file: str, batch: pa.RecordBatch, shard_id: str, quality: tuple[str, ...]) -> Iterator[ImageLabels]:
    """Rows, whose columns are slices of the batch's."""
    lists = batch.column("instances")
    columns = {name: batch.column(name).to_pylist() for name in batch.schema.names if name != "instances"}
    whole = lists.flatten()
    fields = dict(zip((field.name for field in whole.type), whole.flatten(), strict=True))
    size, counts = fields["segmentation"].flatten()
    holes = [name for name, values in columns.items() if None in values and name != "error"]
    holes += [name for name, values in [("instances", lists), *fields.items(), ("size", size)] if values.null_count]
    if holes or counts.null_count:
        raise StoreError(f"{file} lacks values in {', '.join(holes) or 'counts'}, near key {columns['key'][0]!r}.")
    sizes = _fixed(file, "size", size, 2)
    boxes = _fixed(file, "bbox", fields["bbox"], 4)
    numbers = {name: fields[name].to_numpy() for name in ("category_id", "score", "area", *quality)}
    texts = counts.to_pylist()
    ends = np.cumsum(lists.value_lengths().to_numpy())
    for row in range(len(batch)):
        part = slice(int(ends[row - 1]) if row else 0, int(ends[row]))
        values = {name: column[row] for name, column in columns.items()}
        if values.pop("shard_id") != shard_id:
            raise StoreError(f"{file}: {values['key']}: the row is of another shard.")
        if (sizes[part] != (values["height"], values["width"])).any():
            raise StoreError(f"{file}: {values['key']}: a mask is not of the image's size.")
        instances = Instances(
            category_ids=numbers["category_id"][part],
            scores=numbers["score"][part],
            boxes=boxes[part],
            areas=numbers["area"][part],
            counts=tuple(texts[part]),
            quality={name: numbers[name][part] for name in quality},
        )
        yield ImageLabels(instances=instances, **values)


def _fixed(file: str, name: str, lists: pa.ListArray, width: int) -> Any:
    """A list column, all of whose lists must have `width` values, as an array [N, width]."""
    values = lists.flatten()
    if values.null_count or (lists.value_lengths().to_numpy() != width).any():
        raise StoreError(f"{file}: a {name} has not {width} values.")
    return values.to_numpy().reshape(-1, width)


def _coco_rows(path: Path) -> Iterator[ImageLabels]:
    try:
        with (
            path.open(encoding="utf-8", newline="\n") as file,
            path.open(encoding="utf-8", newline="\n") as other,
        ):
            annotations = _coco_annotations(other)
            waiting = next(annotations, None)
            for image in _coco_images(file):
                mine = []
                while waiting is not None and waiting["image_id"] == image["id"]:
                    mine.append(waiting)
                    waiting = next(annotations, None)
                yield _from_coco(path.name, image, mine)
            if waiting is not None:
                raise StoreError(
                    f"{path.name}: annotation {waiting['id']} is of no image, or not in the images' order."
                )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise StoreError(f"{path.name} cannot be read: {_text(error)}.") from None


def _from_coco(file: str, image: Mapping[str, Any], annotations: list[dict[str, Any]]) -> ImageLabels:
    """An image with its annotations as a row."""
    size = [image["height"], image["width"]]
    if any(one["segmentation"]["size"] != size for one in annotations):
        raise StoreError(f"{file}: {image['file_name']}: a mask is not of the image's size.")
    known = {"id", "image_id", "category_id", "segmentation", "bbox", "area", "iscrowd", "score"}
    quality = sorted({name for one in annotations for name in one} - known)
    return ImageLabels(
        key=image["file_name"],
        image_id=image["id"],
        uri="",
        height=size[0],
        width=size[1],
        instances=Instances(
            category_ids=np.array([one["category_id"] for one in annotations], np.int32),
            scores=np.array([one["score"] for one in annotations], np.float32),
            boxes=np.array([one["bbox"] for one in annotations], np.float32).reshape(-1, 4),
            areas=np.array([one["area"] for one in annotations], np.int64),
            counts=tuple(one["segmentation"]["counts"] for one in annotations),
            quality={name: np.array([one[name] for one in annotations], np.float32) for name in quality},
        ),
        status="labelled" if annotations else "empty",
    )


def _coco_head(file: TextIO) -> tuple[Mapping[str, Any], bool]:
    """What comes before the images, and whether there are any."""
    line = file.readline().rstrip("\n")
    return json.loads(line.removesuffix(",").removesuffix("]") + "]}"), not line.endswith("],")


def _coco_images(file: TextIO) -> Iterator[dict[str, Any]]:
    _, more = _coco_head(file)
    while more:
        line = file.readline().rstrip("\n")
        more = not line.endswith("],")
        yield json.loads(line[: -1 if more else -2])


def _coco_annotations(file: TextIO) -> Iterator[dict[str, Any]]:
    for line in file:
        if line.startswith('"annotations": ['):
            break
    else:
        raise ValueError("it has no annotations")
    more = not line.endswith("]}\n")
    number = 0
    while more:
        line = file.readline().rstrip("\n")
        more = not line.endswith("]}")
        annotation = json.loads(line[: -1 if more else -2])
        number += 1
        if annotation["id"] != number:
            raise ValueError(f"annotation {annotation['id']} should have the id {number}")
        yield annotation
    if file.readline():
        raise ValueError("something follows its end")


def _is_struct_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) and pa.types.is_struct(kind.value_type))


def _text(error: Exception) -> str:
    """An error on one line."""
    return " ".join(f"{type(error).__name__} {error}".split()).rstrip(".")
