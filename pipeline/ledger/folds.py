"""Folds: copies of many commits in one Parquet object, so that a large run is read without a request for each shard.

A fold is a cache and nothing more. A row of it is believed only where the listing shows the commit with the etag that
it had when it was copied, so a commit that was removed or written anew is never taken from a fold. Each fold is named
by its checksum, and one that does not fit its name is left out; two that hold the same commits do no harm.

Rows are in the order of the manifest: folds are read together, each front to back, whatever the size of the run.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import AccessError, LabelingError, StoreError, UnreachableError
from pipeline.ledger.documents import COMMIT, LIMIT, commit_uri, fetch, parse, sha256
from pipeline.ledger.listings import each, etags_of, listing, positions_done
from pipeline.parallel import ahead
from pipeline.records import Commit, Manifest
from pipeline.shard_list import ShardList
from pipeline.store import Store, join, name, redact

log = logging.getLogger("pipeline.run")

#: position: of the shard in the manifest. document: the commit as it is stored, byte for byte.
SCHEMA = pa.schema(
    [("position", pa.int32()), ("shard_id", pa.string()), ("etag", pa.string()), ("document", pa.binary())]
)
LEAST = 5000
_NAME = re.compile(r"([0-9a-f]{20})\.parquet")
_LIMIT = 16 << 30  # bytes of a fold: one of a million commits has about 0.2 GB
_ROWS = 4096  # of a row group, which is what of each fold is in memory
_DAMAGE = (pa.ArrowException, OSError, ValueError)


def worth_folding(unfolded: int, done: int) -> bool:
    """Whether a fold pays: at 5,000 commits, and at a tenth of what is done, so that folds stay few as a run grows."""
    return unfolded >= max(LEAST, done // 10)


def fold(
    store: Store,
    run_uri: str,
    manifest: Manifest,
    *,
    least: int = LEAST,
    threads: int = 16,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Copy the commits that no fold has into one, if there are at least `least` of them.

    It may go on beside a run, and several at once. What goes wrong is logged and harms nobody.

    Args:
        store: where the run is.
        run_uri: the run.
        manifest: what `read_manifest` gives for it.
        least: with fewer commits than these, nothing is done.
        threads: how many commits are read at once.
        stopped: asked before each commit whether to leave it at that and write nothing.

    Returns:
        How many were copied.
    """
    try:
        return _fold(store, run_uri, ShardList.of(manifest.shards), least, threads, stopped)
    except (LabelingError, *_DAMAGE) as error:
        log.warning("commits were not folded, which only makes reading the run slower: %s", error)
        return 0


def _fold(store: Store, run_uri: str, shards: ShardList, least: int, threads: int, stopped: Callable[[], bool]) -> int:
    etags = etags_of(shards, listing(store, run_uri, threads=threads))
    with opened(store, run_uri, shards, etags) as folds:
        rest = unfolded(etags, folds)
    if len(rest) < least:
        return 0
    there = pa.array(rest)
    chosen = zip(rest, each(shards.ids.take(there).combine_chunks()), each(etags.take(there)), strict=True)
    wanted = takewhile(lambda _: not stopped(), chosen)
    copies = filter(None, ahead(partial(_copy, store, run_uri), wanted, threads=threads))
    count = 0
    with tempfile.TemporaryDirectory(prefix="patchlabel-") as folder:
        path = Path(folder) / "fold.parquet"
        with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
            while group := list(islice(copies, _ROWS)):
                count += len(group)
                writer.write_batch(pa.record_batch([*map(list, zip(*group, strict=True))], schema=SCHEMA))
        if stopped():
            return 0
        if count:
            store.put(join(run_uri, "folds", f"{sha256(path)[:20]}.parquet"), path)
    return count


def _copy(store: Store, run_uri: str, row: tuple[np.int64, str, str]) -> tuple[int, str, str, bytes] | None:
    """A row of a fold; None where the commit is not the one that was listed any more, or is damaged."""
    position, shard_id, etag = row
    if etag.endswith("-"):  # nothing but the size, on storage that tells no more
        return None
    uri = commit_uri(run_uri, shard_id)
    try:
        with store.open(uri, etag=etag) as stream:
            document = stream.read(LIMIT)
        parse(COMMIT, document, uri)
    except (AccessError, UnreachableError):
        raise
    except StoreError:
        return None
    return int(position), shard_id, etag, document


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """A fold in a local file. positions: int64 [rows], of the commits to be taken from it; -1 where a row is not."""

    path: Path
    positions: npt.NDArray[np.int64]

    def commits(self, run_uri: str) -> Iterator[tuple[int, Commit | StoreError]]:
        """The position and the commit of each row that is to be taken from it, in the order of the manifest."""
        start = 0
        for batch in pq.ParquetFile(self.path).iter_batches(_ROWS, columns=["shard_id", "document"]):
            positions = self.positions[start : start + batch.num_rows]
            start += batch.num_rows
            columns = (column.to_pylist() for column in batch.columns)
            for position, shard_id, document in zip(positions.tolist(), *columns, strict=True):
                if position >= 0:
                    yield position, _parsed(document, run_uri, shard_id)


@contextmanager
def opened(store: Store, run_uri: str, shards: ShardList, etags: pa.Array) -> Iterator[list[Fold]]:
    """The folds of a run as local files, without the rows that are not to be believed or that another fold has, too.

    Args:
        store: where the run is.
        run_uri: the run.
        shards: all shards of the run.
        etags: of their commits as listed; null where there is none.
    """
    taken = np.zeros(len(shards), np.bool_)
    ids = shards.ids.combine_chunks()
    with tempfile.TemporaryDirectory(prefix="patchlabel-") as folder:
        folds = []
        for info in sorted(store.list(join(run_uri, "folds", ""), literal=True), key=lambda info: info.uri):
            if not (match := _NAME.fullmatch(name(info.uri))):
                continue
            path = Path(folder) / match[0]
            try:
                if not fetch(store, info.uri, path, limit=_LIMIT).startswith(match[1]):
                    raise StoreError("its checksum differs.")
                if (positions := _positions(path, ids, etags, taken)).max(initial=-1) >= 0:
                    folds.append(Fold(path=path, positions=positions))
                    continue
            except (AccessError, UnreachableError):
                raise
            except (StoreError, *_DAMAGE) as error:
                log.warning("%s is left out, and what it copied is read commit by commit: %s", redact(info.uri), error)
            path.unlink(missing_ok=True)
        yield folds


def unfolded(etags: pa.Array, folds: list[Fold]) -> npt.NDArray[np.int64]:
    """The positions of the shards that are done and in no fold, ascending."""
    done = positions_done(etags)
    folded = np.zeros(len(etags) + 1, np.bool_)  # the last for -1
    for one in folds:
        folded[one.positions] = True
    return done[~folded[done]]


def _positions(path: Path, ids: pa.Array, etags: pa.Array, taken: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """See `Fold`; enters what it takes into `taken`.

    Raises:
        ValueError: the file has another layout, or is not in the order of a manifest with these ids.
        pyarrow.ArrowException, OSError: it cannot be read.
    """
    file = pq.ParquetFile(path)
    if not file.schema_arrow.equals(SCHEMA):
        raise ValueError("it has other columns than a fold.")
    table = file.read(columns=["position", "shard_id", "etag"])
    positions = table["position"].to_numpy().astype(np.int64)
    if len(positions) and (positions[0] < 0 or positions[-1] >= len(ids) or (np.diff(positions) <= 0).any()):
        raise ValueError("it is not in the order of the manifest.")
    there = pa.array(positions)
    same = pc.and_(pc.equal(table["shard_id"], ids.take(there)), pc.equal(table["etag"], etags.take(there)))
    believed = pc.fill_null(same, False).to_numpy() & ~taken[positions]
    taken[positions[believed]] = True
    return np.where(believed, positions, -1)


def _parsed(document: bytes, run_uri: str, shard_id: str) -> Commit | StoreError:
    try:
        return parse(COMMIT, document, commit_uri(run_uri, shard_id))
    except StoreError as error:
        return error
