"""Reading what is done and what is not: commits one by one or all of a run, their sums, and failures."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import pyarrow as pa

from pipeline.errors import AccessError, NotFoundError, StoreError, UnreachableError
from pipeline.ledger import folds
from pipeline.ledger.documents import COMMIT, FAILURE, commit_uri, load
from pipeline.ledger.listings import Listing, committed_ids, each, etags_of, listing, positions_done
from pipeline.parallel import ahead
from pipeline.records import Commit, Failure, Manifest, Shard
from pipeline.shard_list import ShardList
from pipeline.store import Store, join


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The sums over commits. images = labelled + empty + quarantined.

    `seconds` is working time, over all workers, for `images_done`: what is taken from another run took none here;
    `shards_taken` counts that.
    """

    shards: int
    shards_taken: int
    images_done: int
    images: int
    labelled: int
    empty: int
    quarantined: int
    instances: int
    reasons: Mapping[str, int]
    seconds: float


def read_commit(store: Store, run_uri: str, shard_id: str) -> Commit | None:
    """The commit of a shard; None where it is not done.

    Raises:
        StoreError: it is damaged.
    """
    try:
        return load(store, COMMIT, commit_uri(run_uri, shard_id))
    except NotFoundError:
        return None


def commits(store: Store, run_uri: str, *, threads: int = 16) -> Iterator[Commit]:
    """All commits, also those of no shard of the run, in the order of their shard ids; each from its own object.

    Raises:
        StoreError: one of them is damaged.
    """
    uris = (commit_uri(run_uri, shard_id) for shard_id in sorted(committed_ids(store, run_uri, threads=threads)))
    yield from ahead(partial(load, store, COMMIT), uris, threads=threads)


def read(
    store: Store, run_uri: str, manifest: Manifest, *, listed: Listing | None = None, threads: int = 16
) -> Iterator[tuple[Shard, Commit | StoreError]]:
    """Each shard that is done and its commit, in the order of the manifest; from folds where they have it.

    Args:
        store: where the run is.
        run_uri: the run.
        manifest: what `read_manifest` gives for it.
        listed: the commits to read; None for those that are there now.
        threads: how many commits are fetched at once.

    Yields:
        A shard, and its commit; or the error, where that is damaged or has vanished since it was listed.

    Raises:
        AccessError, UnreachableError: the storage does not let us look.
    """
    shards = ShardList.of(manifest.shards)
    etags = etags_of(shards, listing(store, run_uri, threads=threads) if listed is None else listed)
    done = positions_done(etags)
    with folds.opened(store, run_uri, shards, etags) as folded:
        rest = folds.unfolded(etags, folded)
        ids = each(shards.ids.take(pa.array(rest)).combine_chunks())
        fetched = zip(rest, ahead(partial(_attempt, store, run_uri), ids, threads=threads), strict=True)
        merged = heapq.merge(*(one.commits(run_uri) for one in folded), fetched, key=itemgetter(0))
        done_shards = shards if len(done) == len(shards) else shards.take(done)
        for shard, (_, found) in zip(done_shards, merged, strict=True):
            yield shard, found


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
        if one.base is None:
            seconds += one.seconds
            sums["images_done"] += one.images
        else:
            sums["shards_taken"] += 1
    return Totals(
        shards=sums["shards"],
        shards_taken=sums["shards_taken"],
        images_done=sums["images_done"],
        images=sums["images"],
        labelled=sums["labelled"],
        empty=sums["empty"],
        quarantined=sums["quarantined"],
        instances=sums["instances"],
        reasons=dict(sorted(reasons.items())),
        seconds=seconds,
    )


def failures(store: Store, run_uri: str, *, threads: int = 16) -> list[Failure]:
    """All failures on record, in the order of their shard ids; those of shards that are done by now included.

    Raises:
        StoreError: one of them is damaged.
    """
    found = store.list(join(run_uri, "failures", ""), literal=True)
    uris = sorted(info.uri for info in found if info.uri.endswith(".json"))
    return list(ahead(partial(load, store, FAILURE), uris, threads=threads))


def _attempt(store: Store, run_uri: str, shard_id: str) -> Commit | StoreError:
    try:
        return load(store, COMMIT, commit_uri(run_uri, shard_id))
    except (AccessError, UnreachableError):
        raise
    except StoreError as error:
        return error
