"""Parquet files with a column of images, or of where they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple, TypeAlias

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
#: A file may unpack to this many bytes, and beyond them to so many times its own: compressed images hardly shrink.
_FREE_BYTES, _MAX_RATIO = 1 << 28, 200

_SHOWN = 1000  # characters of a schema in a message

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
            yield from fetched(_rows(stream, shard, options), store=store, options=options)
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


def _rows(stream: BinaryIO, shard: Shard, options: ReadOptions) -> Iterator[ImageRecord | Listed]:
    uri = shard.uri
    file = pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
    columns = _columns(file.schema_arrow, uri, options)
    names = [columns.image] if columns.key in (None, columns.image) else [columns.image, columns.key]
    most = max(_FREE_BYTES, _MAX_RATIO * shard.bytes)
    _check_counts(file.metadata, most)
    row = unpacked = 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=names):
        for index in range(batch.num_rows):
            size, image = _row(row, batch, index, columns, uri, options)
            unpacked += size
            if unpacked > most:
                raise ValueError(_bomb(most))
            yield image
            row += 1
    if row != file.metadata.num_rows:
        raise ValueError(f"it announces {file.metadata.num_rows} rows and has {row}")


def _check_counts(metadata: pq.FileMetaData, most: int) -> None:
    """Refuse a file whose counts contradict each other, as rows would be lost, or which unpacks to too much.

    Of the row groups only: to ask for an encrypted column, Arrow ends the process.

    Raises:
        ValueError: it is such a file.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = sum(group.num_rows for group in groups)
    if rows != metadata.num_rows:
        raise ValueError(f"it announces {metadata.num_rows} rows, and its row groups {rows}")
    if sum(group.total_byte_size for group in groups) > most:
        raise ValueError(_bomb(most))


def _bomb(most: int) -> str:
    return f"it unpacks to more than {most} bytes, the most of {_FREE_BYTES} and {_MAX_RATIO} times its size"


def _row(
    row: int, batch: pa.RecordBatch, index: int, columns: _Columns, uri: str, options: ReadOptions
) -> tuple[int, ImageRecord | Listed]:
    """One row, and the bytes that its image takes. A row that says only where its image is becomes a `Listed`."""
    image = _plain(batch.column(columns.image)[index])
    key = _plain(batch.column(columns.key)[index]).as_py() if columns.key is not None else None
    place: str | None = None
    if columns.kind == "uri":
        image, place = pa.scalar(None), image.as_py()
    elif columns.kind == "struct" and image.is_valid:
        names = [field.name for field in image.type]
        place = image["path"].as_py() if "path" in names else None
        key = place if place and options.key_column is None else key
        image = _plain(image["bytes"])
    if isinstance(key, bytes):
        key = key.decode("utf-8", "backslashreplace")
    key = str(row) if key is None else str(key)
    if image.is_valid:
        buffer = image.as_buffer()
        data = b"" if buffer.size > options.max_image_bytes else buffer.to_pybytes()
        return buffer.size, image_record(key, uri, data, options, size=buffer.size)
    if place:
        try:
            return 0, Listed(key=key, uri=resolve(folder(uri), place))
        except UserError as error:
            return 0, ImageRecord(key=key, uri=uri, error=f"unreadable: {error}")
    return 0, ImageRecord(key=key, uri=uri, error=f"empty: no value in the column {columns.image!r}")


def _plain(scalar: pa.Scalar) -> pa.Scalar:
    """The value itself, where it was given as the number of an entry of a dictionary."""
    return scalar.value if isinstance(scalar, pa.DictionaryScalar) else scalar


def _columns(schema: pa.Schema, uri: str, options: ReadOptions) -> _Columns:
    """Which columns to read."""
    kinds = {field.name: _kind(field.type) for field in schema}
    found = ", ".join(f"{field.name} ({field.type})" for field in schema)[:_SHOWN] or "no columns"
    for setting, name in (("image_column", options.image_column), ("key_column", options.key_column)):
        if name is not None and name not in kinds:
            raise UserError(f"{redact(uri)} has no column {name!r}, which input.{setting} names; it has {found}.")
    if options.image_column is not None:
        usable = [options.image_column]
    else:
        usable = [name for name in _BYTES_NAMES if kinds.get(name) in ("bytes", "struct")]
        usable += [name for name in _URI_NAMES if kinds.get(name) == "uri"]
    key = options.key_column or next((name for name in _KEY_NAMES if name in kinds), None)
    if twice := [name for name in (*usable[:1], key) if schema.names.count(name) > 1]:
        raise UserError(f"{redact(uri)} has several columns of the name {twice[0]!r}; it has {found}.")
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
