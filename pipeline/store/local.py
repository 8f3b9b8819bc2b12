"""Local files: whole or not there, and still there after a loss of power."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import AccessError, ChangedError, NotFoundError, StoreError, UserError
from pipeline.store.uris import HIDDEN, ObjectInfo, Selection, Unfinished, hidden, local_path, redact

_BUFFER = 1 << 20
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LocalBackend:
    """Files on a disk, a network file system or a FUSE mount."""

    def stat(self, uri: str) -> ObjectInfo:
        """See `Backend`. The etag is made of the size and the time of the last change."""
        with _translated(uri):
            return _info(uri, _path(uri).stat())

    def open(self, uri: str, etag: str | None) -> BinaryIO:
        """See `Backend`. A file that `put` replaces meanwhile is read to its end as it was."""
        self.stat(uri)  # opening a pipe would wait for ever
        with _translated(uri):
            file = _path(uri).open("rb", buffering=_BUFFER)
        if etag is not None and _info(uri, os.fstat(file.fileno())).etag != etag:
            file.close()
            raise ChangedError(f"{redact(uri)} was replaced since it was planned.")
        return file

    def put(self, uri: str, data: bytes | Path) -> None:
        """See `Backend`."""
        path = _path(uri)
        with _translated(uri), _written(path, data) as temporary:
            temporary.replace(path)
            _sync_directory(path.parent)

    def create(self, uri: str, data: bytes) -> bool:
        """See `Backend`. A link to a finished file is made, which exactly one of several racers can do."""
        path = _path(uri)
        with _translated(uri), _written(path, data) as temporary:
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _create_in_place(path, data)
            _sync_directory(path.parent)
            return True

    def walk(self, selection: Selection) -> Iterator[ObjectInfo]:
        """See `Backend`. Sorted by name within a directory. Links are followed, but not in a circle."""
        return _walk(selection.directory, selection.depth, frozenset())

    def delete(self, uri: str) -> None:
        """See `Backend`."""
        with _translated(uri):
            _path(uri).unlink(missing_ok=True)

    def unfinished(self, directory: str) -> Iterator[Unfinished]:
        """See `Backend`."""
        return hidden(self.walk(Selection(directory=directory)))

    def abort(self, uri: str, upload: str) -> None:
        """See `Backend`. There are none."""


def _path(uri: str) -> Path:
    path = local_path(uri)
    if "\0" in path:
        raise UserError(f"{redact(uri)!r} holds a zero byte, which no path may.")
    return Path(path)


def _info(uri: str, status: os.stat_result) -> ObjectInfo:
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        raise NotFoundError(f"{redact(uri)} is {kind}, not a file.")
    etag = f"{status.st_size:x}-{status.st_mtime_ns:x}"
    return ObjectInfo(uri=uri, bytes=status.st_size, etag=etag, modified=status.st_mtime)


def _walk(directory: str, depth: int | None, above: frozenset[tuple[int, int]]) -> Iterator[ObjectInfo]:
    """The files under a directory, which is given as the beginning of their URIs."""
    path = _path(directory)
    try:
        with _translated(directory):
            here = path.stat()
            with os.scandir(path) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
    except NotFoundError:
        return
    above |= {(here.st_dev, here.st_ino)}
    for entry in entries:
        uri = directory + entry.name
        try:
            status = entry.stat()
        except OSError:
            if entry.is_symlink():  # it leads nowhere: listed all the same, so that whoever reads it can report it
                yield ObjectInfo(uri=uri, bytes=0, etag="missing")
            continue
        if stat.S_ISREG(status.st_mode):
            yield _info(uri, status)
        elif stat.S_ISDIR(status.st_mode) and depth != 1 and (status.st_dev, status.st_ino) not in above:
            yield from _walk(uri + "/", None if depth is None else depth - 1, above)


@contextmanager
def _written(path: Path, data: bytes | Path) -> Iterator[Path]:
    """A hidden file beside `path` with the data, safely on disk. It is gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{HIDDEN}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as source:
                shutil.copyfileobj(source, file, _BUFFER)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _create_in_place(path: Path, data: bytes) -> bool:
    """Create where the file system has no links. One wins, but the half-written file can be met."""
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _sync_directory(directory: Path) -> None:
    """Make a new name in a directory last. Some network file systems refuse that, and need no such thing."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Turns an OSError into the sentence that the user sees."""
    try:
        yield
    except OSError as error:
        raise _translate(uri, error) from None


def _translate(uri: str, error: OSError) -> StoreError:
    shown, reason = redact(uri), (error.strerror or str(error)).lower()
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return NotFoundError(f"{shown}: {reason}.")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return AccessError(f"{shown}: {reason}.")
    return StoreError(f"{shown}: {reason}.")
