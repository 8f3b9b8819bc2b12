"""Removing what dead attempts left behind: what no commit names, once it is older than any attempt can be.

The manifest, commits, lists of shards and of inputs, and folds are never touched, nor anything whose name is none that
this package gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pipeline import corrections, ledger
from pipeline.errors import StoreError, UserError
from pipeline.parallel import ahead
from pipeline.records import Commit, Manifest
from pipeline.sinks import SINKS
from pipeline.store import Store, Unfinished, join, local_path, name, redact

T = TypeVar("T")

DAY_S = 86_400.0
_DATA = re.compile(r"[0-9a-f]{20}-[0-9a-f]{12}\.[a-z]+")  # shard and attempt
_RECORD = re.compile(r"([0-9a-f]{20})\.json")
_RECORDS = ("failures", "trails")
_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What was removed, or would be.

    data: data objects that no commit and no corrections name. unfinished: half-written objects, and uploads in parts
    that were never completed. records: failures and trails of shards that are done by now. bytes: of all these, as far
    as the storage tells. names: relative to the run, sorted.
    """

    data: int
    unfinished: int
    records: int
    bytes: int
    names: tuple[str, ...]


def collect(store: Store, run_uri: str, *, older_than_s: float = DAY_S, dry_run: bool = False) -> Collected:
    """Remove what no commit of a run names. The run may go on meanwhile.

    Ages go by the clock of the storage. For that, an object is written and removed, by a dry run too.

    Args:
        store: where the run is.
        run_uri: the run.
        older_than_s: what was written less than so many seconds ago stays: an attempt may be about to commit it.
        dry_run: whether all stays, and is only named.

    Raises:
        UserError: there is no run, or its storage does not tell when something was written.
        StoreError: a commit or a version of corrections cannot be read; nothing is removed then.
    """
    manifest = ledger.read_manifest(store, run_uri)
    now = store.clock(run_uri)
    if now is None:
        raise UserError(f"{redact(run_uri)}: this storage does not tell the age of an object; nothing was removed.")
    # First what is there, then the commits: the other way round, what is committed in between would pass for an orphan.
    before = now - older_than_s
    folders = sorted({corrections.FOLDER, *(sink.folder for sink in SINKS.values())})
    data = _old(store, run_uri, folders, _DATA, before)
    records = _old(store, run_uri, _RECORDS, _RECORD, before)
    unfinished = [
        one for one in store.unfinished(join(run_uri, "")) if one.modified is not None and one.modified <= before
    ]
    for version in corrections.read(store, run_uri).versions:
        for output in version.outputs.values():
            data.pop(output.path, None)
    removed: dict[str, int] = {}
    for commit in _commits(store, run_uri, manifest):
        for output in commit.outputs.values():
            data.pop(output.path, None)
        for path in (f"{folder}/{commit.shard_id}.json" for folder in _RECORDS):
            if path in records:
                removed[path] = records[path]
    collected = Collected(
        data=len(data),
        unfinished=len(unfinished),
        records=len(removed),
        bytes=sum(data.values()) + sum(removed.values()) + sum(one.bytes for one in unfinished),
        names=tuple(sorted([*data, *removed, *(_shown(run_uri, one) for one in unfinished)])),
    )
    if not dry_run:
        _each(lambda path: store.delete(join(run_uri, path)), [*data, *removed])
        _each(store.discard, unfinished)
    return collected


def _old(store: Store, run_uri: str, folders: Iterable[str], names: re.Pattern[str], before: float) -> dict[str, int]:
    """The objects of some folders that were written before a time -> their sizes in bytes, by path."""
    found: dict[str, int] = {}
    for folder in folders:
        for info in store.list(join(run_uri, folder, ""), literal=True):
            path = f"{folder}/{name(info.uri)}"
            old = info.modified is not None and info.modified <= before
            if old and names.fullmatch(name(info.uri)) and info.uri.endswith(f"/{path}"):
                found[path] = info.bytes
    return found


def _commits(store: Store, run_uri: str, manifest: Manifest) -> Iterator[Commit]:
    """All commits that are there now, also those of no shard of the run.

    Raises:
        StoreError: one of them cannot be read, so that nobody knows what it names.
    """
    listed = ledger.listing(store, run_uri)
    for _, found in ledger.read(store, run_uri, manifest, listed=listed):
        if isinstance(found, StoreError):
            raise found
        yield found
    for shard_id in ledger.strangers(manifest, listed):
        commit = ledger.read_commit(store, run_uri, shard_id)
        if commit is None:
            raise StoreError(f"{redact(run_uri)}: the commit of {shard_id} has vanished; nothing was removed.")
        yield commit


def _shown(run_uri: str, one: Unfinished) -> str:
    path = one.uri.removeprefix(join(local_path(run_uri), ""))
    return path if one.upload is None else f"{path} (an upload in parts)"


def _each(do: Callable[[T], None], items: Iterable[T]) -> None:
    for _ in ahead(do, items, threads=_THREADS):
        pass
