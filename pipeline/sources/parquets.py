"""Parquet files with a column of images, or of where they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from pipeline.errors import ShardError, UserError
from pipeline.records import ImageRecord, Shard
from pipeline.sources.common import ReadOptions, accounted, folder, image_record, resolve
from pipeline.sources.listings import Listed, fetched
from pipeline.store import Store, redact

Kind: TypeAlias = Literal["bytes", "struct", "uri"]

_DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError)

#: Rows are decoded, and so held in memory, this many at a time. Arrow reads through a buffer, without which it would
#: read whole row groups. It cannot do with less than a page, which most writers end after 1 MB or 1,024 rows.
_BATCH_ROWS = 16
_BUFFER = 1 << 18

_BYTES_NAMES = ("image", "img", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "data", "content")
_URI_NAMES = ("uri", "url", "path", "image_uri", "image_url", "image_path", "file_name", "image")
_KEY_NAMES = ("key", "__key__", "file_name", "path", "image_path", "uri", "url", "id")

_IS_BYTES = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
_IS_TEXT = (types.is_string, types.is_large_string, types.is_string_view)


class _Columns(NamedTuple):
    """Where a file holds its images, in which form, and their keys."""

    image: str
    kind: Kind
    key: str | None


@accounted
def parquet(shard: Shard, /, *, store: Store, options: ReadOptions) -> Iterator[ImageRecord]:
    """The images of a Parquet file, one a row.

    The image column holds bytes, struct<bytes, path>, or URIs (relative ones start at the file's folder). The key is
    the text of `options.key_column`, or the path of a struct, or the text of a column with a usual name, or the row's
    number from 0. A file without rows holds no image, which is no error.
    """
    try:
        with store.open(shard.uri, etag=shard.etag) as stream:
            yield from fetched(_rows(stream, shard.uri, options), store=store, options=options)
    except UserError as error:
        raise ShardError(str(error)) from error
    except _DAMAGE as error:
        detail = " ".join(str(error).split())[:300]
        raise ShardError(f"{redact(shard.uri)} cannot be read as Parquet: {detail}") from error


def check_columns(uri: str, etag: str, *, store: Store, options: ReadOptions) -> None:
    """Make sure that a Parquet file has a column of images. A damaged file passes: it fails when it is read.

    Raises:
        UserError: it has none, or not the one that is configured.
    """
    try:
        with store.open(uri, etag=etag) as stream:
            _columns(pq.read_schema(stream), uri, options)
    except UserError:
        raise
    except _DAMAGE:
        return


def _rows(stream: BinaryIO, uri: str, options: ReadOptions) -> Iterator[ImageRecord | Listed]:
    file = pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
    columns = _columns(file.schema_arrow, uri, options)
    names = [columns.image] if columns.key in (None, columns.image) else [columns.image, columns.key]
    row = 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=names):
        for index in range(batch.num_rows):
            (values,) = batch.slice(index, 1).to_pylist()
            yield _row(row, values, columns, uri, options)
            row += 1


def _row(row: int, values: dict[str, Any], columns: _Columns, uri: str, options: ReadOptions) -> ImageRecord | Listed:
    """One row. A row that says only where its image is becomes a `Listed`."""
    image, key = values[columns.image], values.get(columns.key or "")
    place: str | None = None
    if columns.kind == "uri":
        image, place = None, image
    elif columns.kind == "struct" and image is not None:
        image, place = image["bytes"], image.get("path")
        key = place if place and options.key_column is None else key
    if isinstance(key, bytes):
        key = key.decode("utf-8", "backslashreplace")
    key = str(row) if key is None else str(key)
    if image is not None:
        return image_record(key, uri, image, options)
    if place:
        return Listed(key=key, uri=resolve(folder(uri), place))
    return ImageRecord(key=key, uri=uri, error=f"empty: no value in the column {columns.image!r}")


def _columns(schema: pa.Schema, uri: str, options: ReadOptions) -> _Columns:
    """Which columns to read."""
    kinds = {field.name: _kind(field.type) for field in schema}
    found = ", ".join(f"{field.name} ({field.type})" for field in schema) or "no columns"
    for setting, name in (("image_column", options.image_column), ("key_column", options.key_column)):
        if name is not None and name not in kinds:
            raise UserError(f"{redact(uri)} has no column {name!r}, which input.{setting} names; it has {found}.")
    if options.image_column is not None:
        usable = [options.image_column]
    else:
        usable = [name for name in _BYTES_NAMES if kinds.get(name) in ("bytes", "struct")]
        usable += [name for name in _URI_NAMES if kinds.get(name) == "uri"]
    key = options.key_column or next((name for name in _KEY_NAMES if name in kinds), None)
    for name in usable:
        if kind := kinds[name]:
            return _Columns(image=name, kind=kind, key=key)
    raise UserError(
        f"{redact(uri)} has {found}, and none of these is known to hold images; set input.image_column to a column of "
        "bytes, of struct<bytes, path>, or of URIs."
    )


def _kind(type_: pa.DataType) -> Kind | None:
    """How a column of this type can hold images; None where it cannot."""
    if types.is_dictionary(type_):
        type_ = type_.value_type
    if types.is_struct(type_):
        index = type_.get_field_index("bytes")
        return "struct" if index >= 0 and _kind(type_.field(index).type) == "bytes" else None
    if any(holds(type_) for holds in _IS_BYTES):
        return "bytes"
    return "uri" if any(holds(type_) for holds in _IS_TEXT) else None
