"""Storage: get, stream, put, create (put-if-absent), list. All input and output of objects is here, with its retries.

A place is a URI: a local path or file://, s3:// (by boto3), or another scheme (gs, az, http and more, by fsspec). What
goes wrong is a `StoreError`, or a `UserError` where the URI itself is at fault, with one sentence that names the URI
without its secrets.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from pipeline.errors import AccessError, NotFoundError, StoreError, UnreachableError, UserError
from pipeline.store.patience import Patience, Retries
from pipeline.store.uris import (
    HIDDEN,
    ObjectInfo,
    Selection,
    Unfinished,
    absolute,
    join,
    local_path,
    name,
    redact,
    scheme,
    selection,
)

__all__ = [
    "ObjectInfo",
    "Patience",
    "Store",
    "Unfinished",
    "absolute",
    "join",
    "local_path",
    "name",
    "redact",
    "scheme",
    "selection",
]


class Backend(Protocol):
    """What a kind of storage does for `Store`."""

    def stat(self, uri: str) -> ObjectInfo:
        """The size and etag of an object. A directory is no object: NotFoundError."""

    def open(self, uri: str, etag: str | None) -> BinaryIO:
        """A buffered reader. ChangedError where the object has another etag than the one given."""

    def put(self, uri: str, data: bytes | Path) -> None:
        """Write an object; whole or not at all."""

    def create(self, uri: str, data: bytes) -> bool:
        """Write an object where there is none. False: something is there, or was; UnreachableError: it is not known."""

    def walk(self, selection: Selection) -> Iterator[ObjectInfo]:
        """At least the objects under `selection.directory` that it takes; none where the directory does not exist."""

    def delete(self, uri: str) -> None:
        """Remove an object; content where there is none."""

    def unfinished(self, directory: str) -> Iterator[Unfinished]:
        """Under a directory: hidden objects, and the uploads in parts that were neither completed nor aborted."""

    def abort(self, uri: str, upload: str) -> None:
        """Remove the parts of such an upload; content where there are none."""


class Store:
    """Access to storage of every kind.

    It is cheap to make and to send to another process: connections are made where and when they are needed, from the
    credentials in that process's environment. Threads may share it.

    Args:
        patience: how long storage is waited for.
    """

    def __init__(self, patience: Patience = Patience()) -> None:  # noqa: B008 frozen
        self._patience = patience
        self._retries = Retries()
        self._lock = threading.Lock()
        self._backends: dict[tuple[int, str], Backend] = {}

    def __reduce__(self) -> tuple[type[Store], tuple[Patience]]:
        return Store, (self._patience,)

    def retries(self) -> dict[str, int]:
        """How often something was tried again, in this process, by reason: the store's code or the error's kind."""
        return self._retries.counts()

    def stat(self, uri: str) -> ObjectInfo:
        """The size and etag of an object.

        Raises:
            NotFoundError: there is no such object; a directory is none.
        """
        return self._backend(uri).stat(uri)

    def exists(self, uri: str) -> bool:
        """Whether there is such an object."""
        try:
            self.stat(uri)
        except NotFoundError:
            return False
        return True

    def open(self, uri: str, *, etag: str | None = None) -> BinaryIO:
        """A buffered reader of an object, made for reading it front to back; it can seek, which is slower.

        A transfer that breaks off goes on where it stopped.

        Args:
            uri: the object.
            etag: what `stat` or `list` said of it, where just that content is wanted.

        Raises:
            ChangedError: the object is not the one with this etag. A later read raises it where the object was replaced
                meanwhile.
            NotFoundError: there is no such object.
        """
        return self._backend(uri).open(uri, etag)

    def get(self, uri: str, *, limit: int | None = None) -> bytes:
        """The content of an object.

        Raises:
            StoreError: it has more than `limit` bytes.
            NotFoundError: there is no such object.
        """
        with self.open(uri) as stream:
            data = stream.read() if limit is None else stream.read(limit + 1)
        if limit is not None and len(data) > limit:
            raise StoreError(f"{redact(uri)} has more than {limit} bytes, the most that is taken here.")
        return data

    def put(self, uri: str, data: bytes | Path) -> None:
        """Write an object, in place of one that is there. Nobody meets a half-written one.

        Args:
            uri: where to; missing directories are made.
            data: the content, or the local file that holds it.
        """
        self._backend(uri).put(uri, data)

    def create(self, uri: str, data: bytes) -> bool:
        """Write an object where there is none: of all who try, one wins.

        A refusal, or the lack of an answer, is looked into before it is believed: where the object turns out to hold
        just these bytes, they were ours. So `data` must be unlike any other's, by a unique id for instance.

        Returns:
            Whether the object is ours.

        Raises:
            UnreachableError: the storage stopped answering. Whether the object was created is then not known.
            UserError: the storage cannot do this.
        """
        backend = self._backend(uri)
        failure = StoreError(f"{redact(uri)} could not be created, and nothing is there.")
        for attempt in self._patience.tries():
            if attempt > 1:
                self._retries.add("create")
            try:
                if backend.create(uri, data):
                    return True
            except UnreachableError as error:
                failure = error
            try:
                return self.get(uri) == data
            except NotFoundError:
                continue
        raise failure

    def list(self, uri: str, *, literal: bool = False) -> Iterator[ObjectInfo]:
        """The object itself, or all objects below a "directory", or those that a pattern matches, one by one.

        `*` and `?` stay within one level, `**` crosses levels, `[ab]` and `[!ab]` choose a character; a pattern that
        ends in "/" takes all below the directories that it matches. Nothing comes where nothing is; a missing bucket,
        wrong credentials and the like raise at the first step. The order is that of the storage.

        Args:
            uri: an object, a "directory" or a pattern. http URLs have no patterns.
            literal: whether wildcard characters stand for themselves.
        """
        if scheme(uri) == "file":
            uri = local_path(uri)
        backend = self._backend(uri)
        if not uri.endswith("/"):
            try:
                yield backend.stat(uri)
            except NotFoundError:
                pass
            else:
                return
        chosen = selection(uri, literal=literal)
        for info in backend.walk(chosen):
            if chosen.takes(info.uri) and not name(info.uri).startswith(HIDDEN):
                yield info

    def delete(self, uri: str) -> None:
        """Remove an object; content where there is none."""
        self._backend(uri).delete(uri)

    def unfinished(self, uri: str) -> Iterator[Unfinished]:
        """What writers left under a "directory" that died before they were through, and what others write just now.

        Those are hidden objects and uploads in parts; no listing shows them. `modified` tells how old they are.
        """
        return self._backend(uri).unfinished(join(local_path(uri), ""))

    def discard(self, unfinished: Unfinished) -> None:
        """Remove what `unfinished` found."""
        if unfinished.upload is None:
            self.delete(unfinished.uri)
        else:
            self._backend(unfinished.uri).abort(unfinished.uri, unfinished.upload)

    def clock(self, uri: str) -> float | None:
        """What time it is where a "directory" is stored, in seconds since 1970; None where the storage does not tell.

        It is the time of a hidden object that is written for this, and removed; by it, what a listing shows is old.
        """
        directory = join(local_path(uri), "")
        place = f"{directory}{HIDDEN}clock-{uuid.uuid4().hex}"
        self.put(place, b"")
        try:  # a listing tells times as other listings do, and so often more precisely than `stat`
            chosen = Selection(directory=directory, start=name(place), depth=1)
            found = (info for info in self._backend(place).walk(chosen) if info.uri == place)
            return next((info.modified for info in found), None)
        finally:
            self.delete(place)

    def probe(self, uri: str) -> None:
        """Make sure that a run can be written under a URI, and that its storage knows put-if-absent.

        Raises:
            UserError: it does not.
            AccessError: the credentials do not allow writing.
        """
        place, mark = join(uri, f"{HIDDEN}probe-{uuid.uuid4().hex}"), uuid.uuid4().hex
        self.exists(place)  # finds an endpoint that is down in half the time that `create` needs to be sure
        kept = self.create(place, f"first {mark}".encode()) and not self.create(place, f"second {mark}".encode())
        with suppress(AccessError):  # it stays, where nothing may be deleted
            self.delete(place)
        if not kept:
            raise UserError(
                f"{redact(uri)}: this storage does not support put-if-absent, which commits need; "
                "use a local disk, or an S3 that does (AWS, SeaweedFS, MinIO, Ceph)."
            )

    def _backend(self, uri: str) -> Backend:
        """What serves a URI in this process. Imported when needed, as boto3 and fsspec take their time."""
        kind = {"": "file", "s3a": "s3"}.get(scheme(uri), scheme(uri))
        kind = kind if kind in ("file", "s3") else "generic"
        key = (os.getpid(), kind)  # a forked process must not share the connections of its parent
        with self._lock:
            if key not in self._backends:
                self._backends[key] = _make(kind, self._patience, self._retries)
            return self._backends[key]


def _make(kind: str, patience: Patience, retries: Retries) -> Backend:
    if kind == "file":
        from pipeline.store.local import LocalBackend

        return LocalBackend()
    if kind == "s3":
        from pipeline.store.s3 import S3Backend

        return S3Backend(patience, retries)
    from pipeline.store.generic import GenericBackend

    return GenericBackend(patience, retries)
