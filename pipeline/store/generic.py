"""Every other scheme (gs, az, http and more), through fsspec and the package that it names."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import fsspec

from pipeline.errors import (
    AccessError,
    ChangedError,
    LabelingError,
    NotFoundError,
    StoreError,
    UnreachableError,
    UserError,
)
from pipeline.store.patience import Patience, Retries
from pipeline.store.uris import ObjectInfo, Selection, Unfinished, hidden, redact, scheme

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

_BLOCK = 8 << 20
_BUFFER = 64 << 10
#: What changes with the content, in the words of the several file systems; the surest first.
_ETAGS = ("etag", "md5hash", "content_md5", "content-md5", "md5", "generation", "ukey")
_TIMES = ("mtime", "updated", "last_modified", "last-modified", "lastmodified", "modified", "created")


class GenericBackend:
    """Objects behind an fsspec file system. Credentials come from the environment, as its package reads it."""

    def __init__(self, patience: Patience, retries: Retries) -> None:
        self._patience, self._retries = patience, retries

    def stat(self, uri: str) -> ObjectInfo:
        """See `Backend`."""
        files, path = self._locate(uri)
        entry = self._again(uri, lambda: files.info(path))
        if entry.get("type") == "directory":
            raise NotFoundError(f"{redact(uri)} is a directory, not an object.")
        if entry.get("size") is None:
            raise StoreError(f"{redact(uri)}: the server does not tell its size.")
        return _info(uri, entry)

    def open(self, uri: str, etag: str | None) -> BinaryIO:
        """See `Backend`. Replacement is noticed at the beginning, and at the end of what is longer than 8 MiB."""
        info = self.stat(uri)
        if etag not in (None, info.etag):
            raise ChangedError(f"{redact(uri)} was replaced since it was planned.")
        files, path = self._locate(uri)

        def fetch(start: int, end: int) -> bytes:
            data: bytes = self._again(uri, lambda: files.cat_file(path, start=start, end=end))
            return data

        return io.BufferedReader(_Reader(info, fetch, self.stat), _BUFFER)

    def put(self, uri: str, data: bytes | Path) -> None:
        """See `Backend`."""
        files, path = self._locate(uri, writing=True)
        if isinstance(data, bytes):
            self._again(uri, lambda: files.pipe_file(path, data))
        else:
            self._again(uri, lambda: files.put_file(str(data), path))

    def create(self, uri: str, data: bytes) -> bool:
        """See `Backend`. Only where the package leaves it to the store: to look first and then write is not safe."""
        files, path = self._locate(uri, writing=True)
        unsupported = f"{redact(uri)}: {scheme(uri)}:// does not support put-if-absent, which commits need."
        if type(files).pipe_file is fsspec.AbstractFileSystem.pipe_file:
            raise UserError(unsupported)
        try:
            with _translated(uri):
                files.pipe_file(path, data, mode="create")
        except ChangedError:
            return False
        except NotImplementedError:
            raise UserError(unsupported) from None
        return True

    def walk(self, selection: Selection) -> Iterator[ObjectInfo]:
        """See `Backend`. The whole listing is held in memory."""
        uri = selection.directory
        files, path = self._locate(uri)
        try:
            found = self._again(uri, lambda: files.find(path, maxdepth=selection.depth, detail=True))
        except NotFoundError:
            return
        base = path.rstrip("/") + "/"
        for place, entry in found.items():
            if place.startswith(base) and entry.get("type") != "directory":
                here = uri + place[len(base) :]
                yield _info(here, entry) if entry.get("size") is not None else self.stat(here)

    def delete(self, uri: str) -> None:
        """See `Backend`."""
        files, path = self._locate(uri, writing=True)
        with suppress(NotFoundError):
            if self._again(uri, lambda: files.exists(path)):
                self._again(uri, lambda: files.rm_file(path))

    def unfinished(self, directory: str) -> Iterator[Unfinished]:
        """See `Backend`."""
        return hidden(self.walk(Selection(directory=directory)))

    def abort(self, uri: str, upload: str) -> None:
        """See `Backend`."""

    def _locate(self, uri: str, *, writing: bool = False) -> tuple[Any, str]:
        """The file system of a URI, and the path on it."""
        kind = scheme(uri)
        if kind not in fsspec.available_protocols() or "::" in uri:
            accepted = "a local path, file://, s3://, gs://, az://, https:// and http:// are accepted"
            raise UserError(f"{redact(uri)}: no such kind of storage; {accepted}.")
        if kind in ("http", "https") and writing:
            raise UserError(f"{redact(uri)}: {kind}:// can only be read; write to a local path, s3://, gs:// or az://.")
        try:
            with _translated(uri):
                files, path = fsspec.url_to_fs(uri, use_listings_cache=False, **self._options(kind))
        except ImportError as error:
            raise UserError(f"{redact(uri)} needs a package that is not installed: {error}.") from None
        return files, path

    def _options(self, kind: str) -> dict[str, Any]:
        if kind not in ("http", "https"):
            return {}
        import aiohttp

        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=self._patience.connect_s, sock_read=self._patience.read_s
        )
        return {"client_kwargs": {"timeout": limits, "trust_env": True}}

    def _again(self, uri: str, operation: Callable[[], T]) -> T:
        """The answer to an operation, tried again while the store does not answer."""
        failure = UnreachableError(f"{redact(uri)} was not tried.")
        for attempt in self._patience.tries():
            if attempt > 1:
                self._retries.add(scheme(uri))
            try:
                with _translated(uri):
                    return operation()
            except UnreachableError as error:
                failure = error
        raise failure


class _Reader(io.RawIOBase):
    """Reads an object by blocks."""

    def __init__(self, info: ObjectInfo, fetch: Callable[[int, int], bytes], look: Callable[[str], ObjectInfo]) -> None:
        self._info, self._fetch, self._look = info, fetch, look
        self._block, self._start = b"", 0
        self._position = self._fetched = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.bytes}[whence]
        if target < 0:
            raise ValueError(f"cannot seek to {target}, before the first byte")
        self._position = target
        return target

    def readinto(self, buffer: Buffer) -> int:
        if self._position >= self._info.bytes:
            return 0
        if not self._start <= self._position < self._start + len(self._block):
            self._load()
        view = memoryview(buffer)
        offset = self._position - self._start
        chunk = self._block[offset : offset + len(view)]
        view[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def _load(self) -> None:
        """Fetch the block that begins at the position."""
        size, start = self._info.bytes, self._position
        end = min(start + _BLOCK, size)
        block = self._fetch(start, end)
        self._fetched += 1
        if len(block) == size:  # a plain web server sends all, whichever part it is asked for
            start, end = 0, size
        if len(block) != end - start or (
            end == size and self._fetched > 1 and self._look(self._info.uri) != self._info
        ):
            raise ChangedError(f"{redact(self._info.uri)} was replaced while it was read.")
        self._block, self._start = block, start


def _info(uri: str, entry: Mapping[str, Any]) -> ObjectInfo:
    known = {str(key).lower(): value for key, value in entry.items() if value}
    size = int(entry["size"])
    changed = next((known[key] for key in _TIMES if key in known), "")
    when = changed.timestamp() if isinstance(changed, datetime) else changed
    etag = next((str(known[key]).strip('"') for key in _ETAGS if key in known), f"{size:x}-{when}")
    return ObjectInfo(uri=uri, bytes=size, etag=etag, modified=_seconds(when))


def _seconds(when: object) -> float | None:
    """A time in the words of some file system, in seconds since 1970; None where it is none of those known."""
    if isinstance(when, (int, float)):
        return float(when)
    try:
        return datetime.fromisoformat(str(when)).timestamp()
    except ValueError:
        return None


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Turns an error of a file system into the sentence that the user sees."""
    try:
        yield
    except (LabelingError, ImportError, NotImplementedError):
        raise
    except Exception as error:  # noqa: BLE001 each package has errors of its own, which cannot be named without it
        raise _translate(uri, error) from None


def _translate(uri: str, error: BaseException) -> LabelingError:
    shown = redact(uri)
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # fsspec's http says "not found" to whatever went wrong
    kind, text = type(error).__name__, redact(" ".join(str(error).split()))[:300]
    found = (getattr(error, key, None) for key in ("status", "status_code", "code"))
    status = next((int(str(value)) for value in found if str(value).isdigit()), 0)
    if isinstance(error, FileExistsError) or status in (409, 412):
        return ChangedError(f"{shown} exists, or was replaced meanwhile.")
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return NotFoundError(f"{shown}: there is no such object.")
    if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in kind or "Auth" in kind:
        return AccessError(
            f"{shown}: access was refused ({status or kind}); check the credentials and what they allow."
        )
    lost = isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith("aiohttp")
    if status >= 500 or status == 429 or (lost and not status):
        return UnreachableError(f"{shown}: the store does not answer ({status or kind}).")
    return StoreError(f"{shown}: {kind}: {text}.")
