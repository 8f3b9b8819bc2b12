"""What the sources have in common."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from pipeline.errors import ChangedError, NotFoundError, ShardError, UserError
from pipeline.records import ROW_BITS, ImageRecord, Shard
from pipeline.store import Store, join, redact, scheme

#: Names that announce an image. The second line is of formats that are not decoded: quarantined, not passed over.
_IMAGE_NAME = re.compile(
    r"\.(jpe?g|png|webp|tiff?|bmp"
    r"|jpe|jfif|gif|heic|heif|avif|jp2|j2k|jxl)$",
    re.IGNORECASE,
)
#: Characters of a name that an error shows.
_SHOWN = 200
_MAX_NAME = 4096
_LOCAL = ("", "file")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What reading needs beyond the shard.

    max_image_bytes: limits.max_image_bytes; what is larger is not read. run_uri: where listings are. image_column,
    key_column: for Parquet, where the names are not the usual ones.
    """

    max_image_bytes: int
    run_uri: str = ""
    image_column: str | None = None
    key_column: str | None = None


class Source(Protocol):
    """Reads a shard of one format."""

    def __call__(self, shard: Shard, /, *, store: Store, options: ReadOptions) -> Iterator[ImageRecord]:
        """The images of the shard, in a fixed order, with unique keys.

        Raises:
            ShardError: the shard is damaged, gone, replaced, or not what its format says.
            StoreError: storage refused or did not answer.
        """
        ...


def accounted(read: Source) -> Source:
    """Adds to a source what holds for all: unique keys, names that can be written, rows that fit into image ids."""

    @functools.wraps(read)
    def source(shard: Shard, /, *, store: Store, options: ReadOptions) -> Iterator[ImageRecord]:
        seen: dict[str, int] = {}
        try:
            for row, record in enumerate(read(shard, store=store, options=options)):
                if row >> ROW_BITS:
                    raise ShardError(
                        f"{redact(shard.uri)} holds more than {1 << ROW_BITS} images, the most a shard may."
                    )
                named = record if record.key else replace(record, key=str(row))
                yield _unique(_writable(named), seen)
        except (NotFoundError, ChangedError) as gone:
            raise ShardError(str(gone)) from gone

    return source


def image_record(
    key: str, uri: str, data: bytes, options: ReadOptions, *, size: int | None = None, image_id: int | None = None
) -> ImageRecord:
    """A record of image bytes, or of why they are not wanted. `size` stands in for bytes that were not read."""
    size = len(data) if size is None else size
    error = None
    if size == 0:
        error = "empty: 0 bytes"
    elif size > options.max_image_bytes:
        data, error = b"", f"too_large: {size} bytes, over limits.max_image_bytes = {options.max_image_bytes}"
    return ImageRecord(key=key, uri=uri, data=data, image_id=image_id, error=error)


def has_image_name(name: str) -> bool:
    """Whether a file's extension is that of an image, accepted or not. What macOS adds (`._name`) is none."""
    return _IMAGE_NAME.search(name) is not None and not name.rpartition("/")[2].startswith("._")


def folder(uri: str) -> str:
    """Where an object is, with "/" at the end."""
    return uri[: uri.rfind("/") + 1]


def resolve(base: str, name: str) -> str:
    """The URI of an image that is named by a URI, absolutely, or relative to `base`.

    Only what lies on a disk may name files of a disk: a name that came from elsewhere would choose among the files of
    the machine that reads it. A name may lead out of `base`, and to another bucket or server.

    Raises:
        UserError: it may not be read, or is no name that a file or an object can have.
    """
    if "\0" in name or len(name) > _MAX_NAME or not _encodes(name):
        raise UserError(f"{name[:_SHOWN]!r} is no name of an image")
    uri = name if "://" in name or name.startswith("/") else join(base, name)
    if scheme(uri) in _LOCAL and scheme(base) not in _LOCAL:
        raise UserError(f"{name[:_SHOWN]!r} is a local file, which what lies on {scheme(base)}:// may not name")
    return uri


def _encodes(name: str) -> bool:
    """Whether a name can be written as bytes: a JSON may hold halves of characters."""
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _writable(record: ImageRecord) -> ImageRecord:
    """The record with names in valid Unicode, which tar, JSON and file systems do not ask for, and no password."""
    if record.uri.startswith(("http://", "https://")):
        record = replace(record, uri=redact(record.uri))
    if "://" in record.key:
        record = replace(record, key=redact(record.key))
    if (record.key + record.uri + (record.error or "")).isascii():
        return record
    key, uri, error = (
        text and text.encode("utf-8", "backslashreplace").decode() for text in (record.key, record.uri, record.error)
    )
    return replace(record, key=key or "", uri=uri or "", error=error)


def _unique(record: ImageRecord, seen: dict[str, int]) -> ImageRecord:
    """The record, or an error under a new key where the key was seen before. `seen`: keys, and how often."""
    key = record.key
    if key in seen:
        number = seen[key] + 1
        while (key := f"{record.key}#{number}") in seen:
            number += 1
        seen[record.key] = number
        error = f"duplicate: a second image of the key {record.key[:_SHOWN]!r}"
        record = replace(record, key=key, data=b"", error=error)
    seen[key] = 1
    return record
