"""Tar archives, plain and gzipped, read as a stream."""

from __future__ import annotations

import gzip
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pipeline.errors import ShardError
from pipeline.images import looks_like_image
from pipeline.records import ImageRecord, Shard
from pipeline.sources.common import ReadOptions, accounted, has_image_name, image_record
from pipeline.store import Store, redact

if TYPE_CHECKING:
    from typing import Self

_DAMAGE = (
    tarfile.TarError,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    struct.error,
    ValueError,
    LookupError,
    ArithmeticError,
    RecursionError,
)

_CHUNK = 1 << 16
_HEAD = 32
#: Headers of these types (long names, pax) are followed by data that `tarfile` reads into memory whole.
_EXTENSIONS = (*tarfile.GNU_TYPES[:2], tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_MAX_EXTENSION = 1 << 20
#: What may stand before one member (extensions, maps of holes), in bytes; and pax records that hold for all members.
_MAX_HEADERS, _MAX_GLOBAL_RECORDS = 4 << 20, 10_000
#: A gzip may unpack to this many bytes, and beyond them to so many times its own. Images hardly shrink, text tenfold.
_FREE_BYTES, _MAX_RATIO = 1 << 30, 200
#: Of a run of digits in a pax header, `tarfile` tries each part.
_LONG_NUMBER = re.compile(rb"\d{100}")
_SHOWN = 200


@accounted
def tar(shard: Shard, /, *, store: Store, options: ReadOptions) -> Iterator[ImageRecord]:
    """The images of a tar or tar.gz, in its order.

    An image is a member with an image's name, or one whose first bytes are those of an image. All others (.json, .txt,
    .cls) are sidecars and passed over wherever they stand, so an image is one row whether or not the members of its
    sample stand together. The key is the member's name without a leading "./". A link with an image's name is a record
    with an error.

    Unlike `tarfile`, this takes neither a damaged header nor the mere end of the file for the end of the archive.
    """
    last: str | None = None
    images = 0
    try:
        with ExitStack() as stack:
            stored = stack.enter_context(store.open(shard.uri, etag=shard.etag))
            stream = _Stream(stored, shard.bytes)
            archive = stack.enter_context(_opened(stream))
            while (member := _next(archive, stream)) is not None:
                record = _from_member(archive, member, shard.uri, options)
                last = member.name
                if record is not None:
                    images += 1
                    yield record
            _check_rest(stream)
    except _DAMAGE as error:
        where = "is no tar archive" if last is None else f"is damaged after its member {last[:_SHOWN]!r}"
        detail = "headers upon headers" if isinstance(error, RecursionError) else str(error)[:_SHOWN]
        raise ShardError(f"{redact(shard.uri)} {where}: {detail}; accepted are .tar, .tar.gz and .tgz.") from error
    if not images:
        raise ShardError(f"{redact(shard.uri)} holds no image.")


class _Stream:
    """What `tarfile` reads from: a file that only goes forward, unpacked if it is a gzip, with bounds.

    Its own way of reading a stream would not compare the checksums of a gzip, nor go on to a second gzip behind it.
    """

    def __init__(self, stored: BinaryIO, size: int) -> None:
        """`size`: of what is stored, in bytes."""
        packed = stored.read(2) == b"\x1f\x8b"
        stored.seek(0)
        self._file: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=stored) if packed else stored
        self._most = max(_FREE_BYTES, _MAX_RATIO * size) if packed else None
        self._put_back = b""
        self._position = 0
        #: How many bytes may be read (not: passed over) before more are allowed; None for any number.
        self.allowance: int | None = _MAX_HEADERS

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        """Go forward, or stay."""
        if position < self._position:
            raise tarfile.StreamError("a header leads back to what was before it")
        while (rest := position - self._position) > 0 and self._read(min(rest, _CHUNK)):
            pass
        return self._position

    def read(self, size: int) -> bytes:
        if self.allowance is not None:
            self.allowance -= size
            if self.allowance < 0:
                raise tarfile.ReadError(f"more than {_MAX_HEADERS} bytes of headers before a member")
        return self._read(size)

    def put_back(self, data: bytes) -> None:
        """Have the bytes that were read last come again."""
        self._put_back = data + self._put_back
        self._position -= len(data)

    def _read(self, size: int) -> bytes:
        data, self._put_back = self._put_back[:size], self._put_back[size:]
        if len(data) < size:
            data += self._file.read(size - len(data))
        self._position += len(data)
        if self._most is not None and self._position > self._most:
            raise tarfile.ReadError(
                f"it unpacks to more than {self._most} bytes, the most of {_FREE_BYTES} and {_MAX_RATIO} times its size"
            )
        return data


class _Member(tarfile.TarInfo):
    """A header that is never passed over: `tarfile` takes a damaged or missing one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """The member of a header block. Of blocks that are none, only one of zeros ends the archive."""
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not buf.strip(b"\0"):
                raise
            raise tarfile.ReadError(str(error) if buf else "it ends without the end-of-archive mark") from None
        if member.size < 0 or (member.type in _EXTENSIONS and member.size > _MAX_EXTENSION):
            raise tarfile.ReadError(f"a header announces {member.size} bytes")
        return member

    def _proc_member(self, archive: _Archive) -> tarfile.TarInfo:
        """What follows a header. Records of a pax header are looked at first: `tarfile` may lose itself in them."""
        if self.type in _PAX:
            padded = -(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            data = archive.fileobj.read(padded)
            _check_pax(data[: self.size])
            archive.fileobj.put_back(data)
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return member


class _Archive(tarfile.TarFile):
    tarinfo = _Member
    fileobj: _Stream  # type: ignore[assignment]
    members: list[tarfile.TarInfo]  # known to its documentation, but not to its type stub


def _opened(stream: _Stream) -> _Archive:
    return _Archive(fileobj=cast(Any, stream), encoding="utf-8", errors="surrogateescape")  # needs no more of a file


def _check_pax(data: bytes) -> None:
    """Refuse records of a pax header ("25 mtime=1700000000.25", the first number its length) that overlap.

    Raises:
        tarfile.ReadError: they do, or hold a number that takes `tarfile` too long.
    """
    place = 0
    while place < len(data):
        number = data[place : place + 8].partition(b" ")[0]
        record = data[place : place + int(number)] if number.isdigit() else b""
        if not record.endswith(b"\n") or b"=" not in record:
            raise tarfile.ReadError("a record of a pax header is none")
        place += len(record)
    if _LONG_NUMBER.search(data):
        raise tarfile.ReadError("a record of a pax header holds a number of 100 digits")


def _next(archive: _Archive, stream: _Stream) -> tarfile.TarInfo | None:
    stream.allowance = _MAX_HEADERS
    member = archive.next()
    stream.allowance = None
    archive.members.clear()  # it keeps them all
    if len(archive.pax_headers) > _MAX_GLOBAL_RECORDS:
        raise tarfile.ReadError(f"more than {_MAX_GLOBAL_RECORDS} records of global pax headers")
    return member


def _from_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, uri: str, options: ReadOptions
) -> ImageRecord | None:
    """The record of a member, None for what is no image. Reads no more of it than the limit allows."""
    key = member.name
    while key.startswith("./"):
        key = key[2:].lstrip("/")
    named = has_image_name(key)
    if not member.isreg():
        if not named or member.isdir():
            return None
        what = f"a link to {member.linkname}" if member.issym() or member.islnk() else "a device or a pipe"
        return ImageRecord(key=key, uri=uri, error=f"unreadable: {what}; only files are read")
    file = archive.extractfile(member)
    assert file is not None
    head = file.read(_HEAD)
    if not named and not looks_like_image(head):
        return None
    if member.size > options.max_image_bytes:
        return image_record(key, uri, b"", options, size=member.size)
    data = head + file.read()
    if len(data) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return image_record(key, uri, data, options)


def _check_rest(stream: _Stream) -> None:
    """Reads to the end of the file, so that gzip compares its checksum, and a second archive is not lost in silence."""
    while rest := stream.read(_CHUNK):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("more follows its end-of-archive mark, such as a second archive")
