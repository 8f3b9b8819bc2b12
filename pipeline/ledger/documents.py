"""The objects of a ledger as they are stored: JSON documents that are checked before they are believed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import StoreError
from pipeline.records import Commit, Failure
from pipeline.store import Store, join, name, redact

R = TypeVar("R", Commit, Failure)

LIMIT = 16 << 20  # bytes of a document; a commit has about a thousand
COMMIT: TypeAdapter[Commit] = TypeAdapter(Commit)
FAILURE: TypeAdapter[Failure] = TypeAdapter(Failure)

_SHARD_ID = re.compile(r"[0-9a-f]{20}")
_CHUNK = 1 << 20


def commit_uri(run_uri: str, shard_id: str) -> str:
    """Where the commit of a shard is."""
    return join(run_uri, "commits", checked_id(shard_id)[:2], f"{shard_id}.json")


def checked_id(shard_id: str) -> str:
    """The id itself, which is going to be a part of a name."""
    assert _SHARD_ID.fullmatch(shard_id), f"a shard id is 20 hex digits, which {shard_id!r} is not"
    return shard_id


def load(store: Store, adapter: TypeAdapter[R], uri: str) -> R:
    """A commit or a failure.

    Raises:
        NotFoundError: there is none.
        StoreError: it is damaged.
    """
    return parse(adapter, store.get(uri, limit=LIMIT), uri)


def parse(adapter: TypeAdapter[R], data: bytes, uri: str) -> R:
    """A commit or a failure from its bytes.

    Raises:
        StoreError: they are damaged, or speak of another shard than the name of the object does.
    """
    try:
        record = adapter.validate_json(data, strict=True)
    except ValidationError as error:
        raise StoreError(f"{redact(uri)} is damaged: {fault(error)}.") from None
    if name(uri) != f"{record.shard_id}.json":
        raise StoreError(f"{redact(uri)} is damaged: it speaks of another shard, {record.shard_id[:20]}.")
    return record


def fault(error: ValidationError) -> str:
    """The first fault that was found, with its place and without the value, which may be long."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def fetch(store: Store, uri: str, path: Path, *, limit: int) -> str:
    """Copy an object into a local file, or the beginning of one of more than `limit` bytes -> sha256 of the file."""
    checksum, size = hashlib.sha256(), 0
    with store.open(uri) as stream, path.open("wb") as file:
        while size <= limit and (chunk := stream.read(_CHUNK)):
            size += len(chunk)
            checksum.update(chunk)
            file.write(chunk)
    return checksum.hexdigest()


def sha256(path: Path) -> str:
    """The checksum of a local file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
