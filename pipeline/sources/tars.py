"""Tar archives, plain and gzipped, read as a stream."""

from __future__ import annotations

import gzip
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from pipeline.errors import ShardError
from pipeline.images import looks_like_image
from pipeline.records import ImageRecord, Shard
from pipeline.sources.common import ReadOptions, accounted, has_image_name, image_record
from pipeline.store import Store, redact

if TYPE_CHECKING:
    from typing import Self

_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, struct.error, ValueError, LookupError)

_BUFFER = 10240  # tarfile copies what is left of it at each read, so more is slower
_HEAD = 32
#: Headers of these types (long names, pax) are followed by data that `tarfile` reads into memory whole.
_EXTENSIONS = (*tarfile.GNU_TYPES[:2], tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_MAX_EXTENSION = 1 << 20


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
            archive = stack.enter_context(_opened(stored))
            while (member := archive.next()) is not None:
                archive.members.clear()  # it keeps them all
                record = _from_member(archive, member, shard.uri, options)
                last = member.name
                if record is not None:
                    images += 1
                    yield record
            _check_rest(archive)
    except _DAMAGE as error:
        where = "is no tar archive" if last is None else f"is damaged after its member {last!r}"
        raise ShardError(f"{redact(shard.uri)} {where}: {error}; accepted are .tar, .tar.gz and .tgz.") from error
    if not images:
        raise ShardError(f"{redact(shard.uri)} holds no image.")


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


class _Archive(tarfile.TarFile):
    tarinfo = _Member
    members: list[tarfile.TarInfo]  # known to its documentation, but not to its type stub


def _opened(stored: BinaryIO) -> _Archive:
    magic = stored.read(2)
    stored.seek(0)
    # GzipFile also takes several gzip streams in a row, and compares checksums; tarfile's own way does neither.
    stream = cast(IO[bytes], gzip.GzipFile(fileobj=stored)) if magic == b"\x1f\x8b" else stored
    return _Archive.open(fileobj=stream, mode="r|", bufsize=_BUFFER, encoding="utf-8", errors="surrogateescape")


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


def _check_rest(archive: tarfile.TarFile) -> None:
    """Reads to the end of the file, so that gzip compares its checksum, and a second archive is not lost in silence."""
    assert archive.fileobj is not None
    while rest := archive.fileobj.read(_BUFFER):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("more follows its end-of-archive mark, such as a second archive")
