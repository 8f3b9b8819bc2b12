"""What is done, as the storage lists it: ids and etags of commits, without reading one of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.parallel import ahead
from pipeline.records import Manifest
from pipeline.shard_list import ShardList
from pipeline.store import ObjectInfo, Store, join

_COMMIT = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{18})\.json")
_TAIL = len("ab/.json") + 20
_PREFIXES = tuple(f"{number:02x}" for number in range(256))
_FEW = 1000  # what one page of a listing holds: up to here, one listing is quicker than 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The commits of a run as they were listed: shard ids and etags, strings [commits]; no id comes twice."""

    ids: pa.Array
    etags: pa.Array

    def __len__(self) -> int:
        return len(self.ids)


def listing(store: Store, run_uri: str, *, threads: int = 16) -> Listing:
    """The commits that are there: from one listing for a small run, from 256 in threads for a large one."""
    root = join(run_uri, "commits")

    def found(prefix: str) -> pa.Table:
        return table(store.list(join(root, prefix, ""), literal=True))

    def table(infos: Iterable[ObjectInfo]) -> pa.Table:
        rows = [(match[2], info.etag) for info in infos if (match := _COMMIT.fullmatch(info.uri[-_TAIL:]))]
        columns = zip(*rows, strict=True) if rows else ([], [])
        return pa.table([pa.array(values, pa.string()) for values in columns], ["id", "etag"])

    few = list(islice(store.list(join(root, ""), literal=True), _FEW))
    whole = table(few) if len(few) < _FEW else pa.concat_tables(ahead(found, _PREFIXES, threads=threads))
    return Listing(ids=whole["id"].combine_chunks(), etags=whole["etag"].combine_chunks())


def committed_ids(store: Store, run_uri: str, *, threads: int = 16) -> set[str]:
    """The ids of the shards that are done."""
    return set(listing(store, run_uri, threads=threads).ids.to_pylist())


def pending(manifest: Manifest, committed: Collection[str] | pa.Array) -> ShardList:
    """The shards that are not done, in the order of the manifest. They are made one by one, as they are iterated over.

    Args:
        manifest: the run.
        committed: the ids of the shards that are done, as a collection or as a column of a `Listing`.
    """
    return ShardList.of(manifest.shards).without(committed)


def strangers(manifest: Manifest, listed: Listing) -> list[str]:
    """The ids of commits that are of no shard of the run, sorted."""
    known = pc.is_in(listed.ids, value_set=ShardList.of(manifest.shards).ids.combine_chunks())
    return sorted(listed.ids.filter(pc.invert(known)).to_pylist())


def etags_of(shards: ShardList, listed: Listing) -> pa.Array:
    """The etag of each shard's commit, string [shards]; null where the shard is not done."""
    return listed.etags.take(pc.index_in(shards.ids, value_set=listed.ids).combine_chunks())


def positions_done(etags: pa.Array) -> npt.NDArray[np.int64]:
    """Which shards are done, by `etags_of`: int64 [done], ascending."""
    return np.flatnonzero(etags.is_valid().to_numpy(zero_copy_only=False))


def each(values: pa.Array) -> Iterator[str]:
    """The strings of an array, some at a time."""
    for start in range(0, len(values), _FEW):
        yield from values.slice(start, _FEW).to_pylist()
