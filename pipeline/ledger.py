"""The ledger of a run: what it is (the manifest), what is done (commits), what went wrong (failures).

    <run>/manifest.json                      written once, before the first shard
    <run>/commits/<2 hex>/<shard-id>.json    created only if absent: the first attempt wins, for good
    <run>/failures/<shard-id>.json           the last word on a shard that is not done; a commit overrides it

All of it is JSON for people to read. Nothing here is ever renamed or changed, failures aside.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from pipeline.errors import NotFoundError, StoreError, UserError
from pipeline.records import SCHEMA_VERSION, Commit, Failure, Manifest, Shard
from pipeline.store import Store, join, name, redact

T = TypeVar("T")
U = TypeVar("U")
R = TypeVar("R", Commit, Failure)

_SHARD_ID = re.compile(r"[0-9a-f]{20}")
_COMMIT_NAME = re.compile(r"[0-9a-f]{20}\.json")
_PREFIXES = tuple(f"{number:02x}" for number in range(256))
_FEW = 1000  # what one page of a listing holds: up to here, one listing is quicker than 256
_LIMIT = 16 << 20  # bytes of a commit or a failure; they have about a thousand

_manifest: TypeAdapter[Manifest] = TypeAdapter(Manifest)
_commit: TypeAdapter[Commit] = TypeAdapter(Commit)
_failure: TypeAdapter[Failure] = TypeAdapter(Failure)
_shard: TypeAdapter[Shard] = TypeAdapter(Shard)
_object: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The sums over commits. images = labelled + empty + quarantined; `seconds` is working time, over all workers."""

    shards: int
    images: int
    labelled: int
    empty: int
    quarantined: int
    instances: int
    reasons: Mapping[str, int]
    seconds: float


def write_manifest(store: Store, run_uri: str, manifest: Manifest) -> bool:
    """Found a run, if none is there.

    Returns:
        Whether the run is ours. If not, the manifest of another is there.
    """
    head = {field.name: getattr(manifest, field.name) for field in fields(manifest) if field.name != "shards"}
    opening = _object.dump_json(head, indent=2).removesuffix(b"\n}")
    shards = b",\n".join(b"    " + _shard.dump_json(shard) for shard in manifest.shards)
    return store.create(_manifest_uri(run_uri), opening + b',\n  "shards": [\n' + shards + b"\n  ]\n}\n")


def read_manifest(store: Store, run_uri: str) -> Manifest:
    """What a run is.

    Raises:
        UserError: there is no run, or its manifest is damaged or of a later version of this package.
    """
    uri = _manifest_uri(run_uri)
    try:
        data = store.get(uri)
    except NotFoundError:
        raise UserError(f"{redact(run_uri)} is no labeling run: it holds no manifest.json.") from None
    try:
        manifest = _manifest.validate_json(data, strict=True)
    except ValidationError as error:
        _refuse_other_version(uri, _schema_version(data))
        raise UserError(f"{redact(uri)} is damaged: {_fault(error)}.") from None
    _refuse_other_version(uri, manifest.schema_version)
    return manifest


def commit(store: Store, run_uri: str, commit: Commit) -> bool:
    """Claim that a shard is done, unless someone has.

    Returns:
        Whether the claim is ours. If not, another attempt's stands, and our outputs are of no use.

    Raises:
        UnreachableError: the storage stopped answering. The claim may stand, so our outputs have to stay.
    """
    return store.create(_commit_uri(run_uri, commit.shard_id), _commit.dump_json(commit, indent=2) + b"\n")


def read_commit(store: Store, run_uri: str, shard_id: str) -> Commit | None:
    """The commit of a shard; None where it is not done.

    Raises:
        StoreError: it is damaged.
    """
    try:
        return _read(store, _commit, _commit_uri(run_uri, shard_id))
    except NotFoundError:
        return None


def commits(store: Store, run_uri: str, *, threads: int = 16) -> Iterator[Commit]:
    """All commits, in the order of their shard ids. Their number is not limited by memory.

    Raises:
        StoreError: one of them is damaged.
    """
    uris = [_commit_uri(run_uri, shard_id) for shard_id in sorted(committed_ids(store, run_uri, threads=threads))]
    yield from _ahead(partial(_read, store, _commit), uris, threads)


def committed_ids(store: Store, run_uri: str, *, threads: int = 16) -> set[str]:
    """The ids of the shards that are done, from listings alone: one for a small run, 256 in threads for a large one."""
    root = join(run_uri, "commits")

    def ids(prefix: str, limit: int | None = None) -> set[str]:
        listing = islice(store.list(join(root, prefix, ""), literal=True), limit)
        names = (name(info.uri) for info in listing)
        return {one.removesuffix(".json") for one in names if _COMMIT_NAME.fullmatch(one)}

    few = ids("", _FEW)
    if len(few) < _FEW:
        return few
    return set().union(*_ahead(ids, _PREFIXES, threads))


def record_failure(store: Store, run_uri: str, failure: Failure) -> None:
    """Write why a shard is not done, in place of what was written before."""
    uri = join(run_uri, "failures", f"{_checked(failure.shard_id)}.json")
    store.put(uri, _failure.dump_json(failure, indent=2) + b"\n")


def failures(store: Store, run_uri: str, *, threads: int = 16) -> list[Failure]:
    """All failures on record, in the order of their shard ids; those of shards that are done by now included.

    Raises:
        StoreError: one of them is damaged.
    """
    listing = store.list(join(run_uri, "failures", ""), literal=True)
    uris = sorted(info.uri for info in listing if info.uri.endswith(".json"))
    return list(_ahead(partial(_read, store, _failure), uris, threads))


def pending(manifest: Manifest, committed: Collection[str]) -> tuple[Shard, ...]:
    """The shards that are not done, in the order of the manifest.

    Args:
        manifest: the run.
        committed: the ids of the shards that are done.
    """
    done = frozenset(committed)
    return tuple(shard for shard in manifest.shards if shard.id not in done)


def totals(commits: Iterable[Commit]) -> Totals:
    """The sums over commits, which are read once."""
    sums: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    seconds = 0.0
    for one in commits:
        sums["shards"] += 1
        for key in ("images", "labelled", "empty", "quarantined", "instances"):
            sums[key] += getattr(one, key)
        reasons.update(one.reasons)
        seconds += one.seconds
    return Totals(
        shards=sums["shards"],
        images=sums["images"],
        labelled=sums["labelled"],
        empty=sums["empty"],
        quarantined=sums["quarantined"],
        instances=sums["instances"],
        reasons=dict(sorted(reasons.items())),
        seconds=seconds,
    )


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


def _commit_uri(run_uri: str, shard_id: str) -> str:
    return join(run_uri, "commits", _checked(shard_id)[:2], f"{shard_id}.json")


def _checked(shard_id: str) -> str:
    assert _SHARD_ID.fullmatch(shard_id), f"a shard id is 20 hex digits, which {shard_id!r} is not"
    return shard_id


def _read(store: Store, adapter: TypeAdapter[R], uri: str) -> R:
    """A commit or a failure."""
    data = store.get(uri, limit=_LIMIT)
    try:
        record = adapter.validate_json(data, strict=True)
    except ValidationError as error:
        raise StoreError(f"{redact(uri)} is damaged: {_fault(error)}.") from None
    if name(uri) != f"{record.shard_id}.json":
        raise StoreError(f"{redact(uri)} is damaged: it speaks of another shard, {record.shard_id[:20]}.")
    return record


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


def _fault(error: ValidationError) -> str:
    """The first fault that was found, with its place and without the value, which may be long."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def _leaves(config: Mapping[str, object], above: str = "") -> Iterator[tuple[str, str]]:
    """Each value of a config under its dotted key, as JSON, which has no more than one way to say the same."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", to_json(value).decode()


def _ahead(function: Callable[[T], U], items: Iterable[T], threads: int) -> Iterator[U]:
    """The results of a function in the order of the items, worked out in threads, only a little ahead of the reader."""
    waiting: deque[Future[U]] = deque()
    executor = ThreadPoolExecutor(threads, thread_name_prefix="ledger")
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) >= 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
