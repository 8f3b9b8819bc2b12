"""The manifest: a JSON document for people, which names the list of shards, a Parquet file beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from pipeline.errors import NotFoundError, UserError
from pipeline.ledger.documents import LIMIT, fault, fetch, sha256
from pipeline.records import SCHEMA_VERSION, Category, Manifest
from pipeline.shard_list import ShardList
from pipeline.store import Store, join, redact


@dataclass(frozen=True, slots=True, kw_only=True)
class _ShardFile:
    """The list of shards as a file of the run: its path there, how many it lists, its size and its checksum."""

    path: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """A `Manifest` as it is written."""

    run_id: str
    schema_version: int
    version: str
    created: str
    config: Mapping[str, object]
    fingerprint: str
    categories: tuple[Category, ...]
    shards: _ShardFile


_HEAD = [field.name for field in fields(Manifest) if field.name != "shards"]
_document: TypeAdapter[_Document] = TypeAdapter(_Document)
_object: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])


def write_manifest(store: Store, run_uri: str, manifest: Manifest) -> bool:
    """Found a run, if none is there. The list of shards is written first, under a name of its own.

    Returns:
        Whether the run is ours. If not, the manifest of another is there.
    """
    with tempfile.TemporaryDirectory(prefix="patchlabel-") as folder:
        path = Path(folder) / "shards.parquet"
        ShardList.of(manifest.shards).write(path)
        checksum = sha256(path)
        shards = _ShardFile(
            path=_shards_path(checksum), count=len(manifest.shards), bytes=path.stat().st_size, sha256=checksum
        )
        store.put(join(run_uri, shards.path), path)
    document = _Document(**{name: getattr(manifest, name) for name in _HEAD}, shards=shards)
    return store.create(_manifest_uri(run_uri), _document.dump_json(document, indent=2) + b"\n")


def read_manifest(store: Store, run_uri: str) -> Manifest:
    """What a run is.

    Raises:
        UserError: there is no run, or its manifest is damaged or of a later version of this package.
    """
    uri = _manifest_uri(run_uri)
    try:
        data = store.get(uri, limit=LIMIT)
    except NotFoundError:
        raise UserError(f"{redact(run_uri)} is no labeling run: it holds no manifest.json.") from None
    try:
        document = _document.validate_json(data, strict=True)
    except ValidationError as error:
        _refuse_other_version(uri, _schema_version(data))
        raise UserError(f"{redact(uri)} is damaged: {fault(error)}.") from None
    _refuse_other_version(uri, document.schema_version)
    shards = _shards(store, run_uri, document.shards)
    return Manifest(**{name: getattr(document, name) for name in _HEAD}, shards=shards)


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """What differs between two configs, as lines of `key: old -> new` with dotted keys.

    >>> differences({"input": {"uri": "a"}, "seed": 1}, {"input": {"uri": "b"}, "limits": {"bytes": 5}, "seed": 1})
    ['input.uri: "a" -> "b"', 'limits.bytes: not set -> 5']
    """
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        redact(f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}")
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _manifest_uri(run_uri: str) -> str:
    return join(run_uri, "manifest.json")


def _shards_path(checksum: str) -> str:
    return f"shards/{checksum[:20]}.parquet"


def _shards(store: Store, run_uri: str, file: _ShardFile) -> ShardList:
    """The list that a manifest names.

    Raises:
        UserError: it is missing, or another one.
    """
    uri = join(run_uri, file.path)
    if file.path != _shards_path(file.sha256):
        raise UserError(f"{redact(_manifest_uri(run_uri))} is damaged: shards.path does not begin as shards.sha256.")
    with tempfile.TemporaryDirectory(prefix="patchlabel-") as folder:
        path = Path(folder) / "shards.parquet"
        try:
            checksum = fetch(store, uri, path, limit=file.bytes)
        except NotFoundError:
            raise UserError(f"{redact(uri)}, the list of shards that manifest.json names, is missing.") from None
        if checksum != file.sha256:
            raise UserError(f"{redact(uri)} is not the list of shards that manifest.json names: its sha256 differs.")
        try:
            shards = ShardList.read(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{redact(uri)} is no list of shards: {' '.join(str(error).split())[:300]}.") from None
    if len(shards) != file.count:
        raise UserError(f"{redact(uri)} lists {len(shards)} shards, and manifest.json says {file.count}.")
    return shards


def _refuse_other_version(uri: str, version: object) -> None:
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise UserError(
            f"{redact(uri)} has schema version {version}, and this version of the package reads {SCHEMA_VERSION}."
        )


def _schema_version(data: bytes) -> object:
    """The schema version of what is no manifest of ours, where it can be told."""
    try:
        return _object.validate_json(data).get("schema_version")
    except ValidationError:
        return None


def _leaves(config: Mapping[str, object], above: str = "") -> Iterator[tuple[str, str]]:
    """Each value of a config under its dotted key, as JSON, which has no more than one way to say the same."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", to_json(value).decode()
