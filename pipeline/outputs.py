"""Where results go, looked at before the work, so that hours of it do not end at a place that cannot be written."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from pipeline.errors import AccessError, StoreError, UnreachableError, UserError
from pipeline.store import Store, join, local_path, name, redact, scheme
from pipeline.store.uris import HIDDEN


def check_file(store: Store, uri: str, *, key: str, example: str) -> None:
    """Make sure that a file can be written, in place of one that is there.

    Args:
        store: where to.
        uri: the file.
        key: the option that names it, with which sentences begin.
        example: a name that it could have.

    Raises:
        UserError: it is a folder, or cannot be written.
        UnreachableError: the storage does not answer.
    """
    local = _local(uri)
    if uri.endswith("/") or (local is not None and _is_folder(local)):
        raise UserError(f"{key} is {redact(uri)}, a folder; name the file, for example {redact(join(uri, example))}.")
    if local is not None and _exists(local) and (local.parent == Path("/dev") or not _is_file(local)):
        raise UserError(f"{key} is {redact(uri)}, a device or a pipe, which the file would replace; name a file.")
    _try(store, uri.removesuffix(name(uri)), uri, key)


def check_folder(store: Store, uri: str, *, key: str) -> None:
    """Make sure that files can be written below a place.

    Raises:
        UserError: it is a file, or cannot be written.
        UnreachableError: the storage does not answer.
    """
    local = _local(uri)
    if local is not None and _exists(local) and not _is_folder(local):
        raise UserError(f"{key} is {redact(uri)}, a file; name a folder.")
    _try(store, uri, uri, key)


def _local(uri: str) -> Path | None:
    return Path(local_path(uri)) if scheme(uri) in ("", "file") else None


# Those of Path raise where a name is too long or a folder closed, of which the storage has a sentence.
def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112


def _try(store: Store, folder: str, uri: str, key: str) -> None:
    """Write an object there that no listing shows, and remove it; on a disk, where the first of its folders stands."""
    local = _local(folder)
    if local is not None:
        folder = str(next((one for one in (local, *local.parents) if _exists(one)), local))
    place = join(folder, f"{HIDDEN}probe-{uuid.uuid4().hex}")
    try:
        store.put(place, b"")
    except (StoreError, UserError) as error:
        kind = UnreachableError if isinstance(error, UnreachableError) else UserError
        raise kind(f"{key} cannot be written: {str(error).replace(redact(place), redact(uri))}") from error
    with suppress(AccessError):  # it stays, where nothing may be deleted
        store.delete(place)
