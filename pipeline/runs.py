"""Reading a run: how far it is, and the rows of its data objects. All goes by commits, never by what lies in a folder.

A data object is fetched whole into a temporary file and compared with its commit before a row of it is believed.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipeline import ledger, shards
from pipeline.errors import NotFoundError, StoreError
from pipeline.records import Commit, Failure, ImageLabels, Manifest, Output
from pipeline.store import Store, join, redact

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far a run is.

    shards = done + failed + pending, where a shard has failed if its last attempt did and nothing was committed since;
    it is tried again when the run is started again. images = labelled + empty + quarantined. seconds: working time of
    the shards that are done, over all workers.
    """

    uri: str
    run_id: str
    created: str
    version: str
    shards: int
    done: int
    failed: int
    pending: int
    images: int
    labelled: int
    empty: int
    quarantined: int
    reasons: Mapping[str, int]
    instances: int
    seconds: float
    images_per_second: float | None
    failures: tuple[Failure, ...]


def status(store: Store, run_uri: str) -> Status:
    """How far a run is, from its ledger alone.

    Raises:
        UserError: there is no run, or another version of this package made it.
        StoreError: a commit is damaged, or the storage failed.
    """
    manifest = ledger.read_manifest(store, run_uri)
    listed = ledger.listing(store, run_uri)
    totals = ledger.totals(read_commits(store, run_uri, manifest, listed=listed))
    pending = ledger.pending(manifest, listed.ids)
    failures = ledger.failures(store, run_uri)
    not_done = pending.known([failure.shard_id for failure in failures])
    failures = [failure for failure in failures if failure.shard_id in not_done]
    return Status(
        uri=redact(run_uri),
        run_id=manifest.run_id,
        created=manifest.created,
        version=manifest.version,
        shards=len(manifest.shards),
        done=len(manifest.shards) - len(pending),
        failed=len(failures),
        pending=len(pending) - len(failures),
        images=totals.images,
        labelled=totals.labelled,
        empty=totals.empty,
        quarantined=totals.quarantined,
        reasons=totals.reasons,
        instances=totals.instances,
        seconds=round(totals.seconds, 3),
        images_per_second=round(totals.images / totals.seconds, 3) if totals.seconds else None,
        failures=tuple(failures),
    )


def read_commits(
    store: Store, run_uri: str, manifest: Manifest, *, listed: ledger.Listing | None = None, threads: int = 16
) -> Iterator[Commit]:
    """The commits of a run, in the order of the manifest; see `ledger.read`.

    Raises:
        StoreError: one of them is damaged.
    """
    for _, found in ledger.read(store, run_uri, manifest, listed=listed, threads=threads):
        if isinstance(found, Commit):
            yield found
        elif not isinstance(found, NotFoundError):  # which has been removed since it was listed
            raise found


def read_rows(store: Store, run_uri: str) -> Iterator[ImageLabels]:
    """The rows of all committed shards, in the order of the manifest; see `rows`."""
    for commit in read_commits(store, run_uri, ledger.read_manifest(store, run_uri)):
        yield from rows(store, run_uri, commit)


def rows(store: Store, run_uri: str, commit: Commit) -> Iterator[ImageLabels]:
    """The rows of a committed shard, from its Parquet object, else from its COCO object, which lacks the quarantined.

    Raises:
        StoreError: the object is missing, it is not the one that was committed, or it cannot be read.
    """
    for format, read in shards.READERS.items():
        if format in commit.outputs:
            with tempfile.TemporaryDirectory(prefix="patchlabel-") as folder:
                path = fetch(store, run_uri, commit.outputs[format], Path(folder))
                yield from read(path, commit.shard_id).rows
            return
    raise StoreError(
        f"{redact(run_uri)}: the commit of shard {commit.shard_id} names no output that can be read; known are "
        f"{', '.join(shards.READERS)}."
    )


def fetch(store: Store, run_uri: str, output: Output, folder: Path) -> Path:
    """Copy a data object into a local folder, under its own name.

    Raises:
        StoreError: it is missing, or it is not the one that was committed.
    """
    uri = join(run_uri, output.path)
    path = folder / Path(output.path).name
    checksum, size = hashlib.sha256(), 0
    try:
        with store.open(uri) as stream, path.open("wb") as file:
            while size <= output.bytes and (chunk := stream.read(_CHUNK)):
                size += len(chunk)
                checksum.update(chunk)
                file.write(chunk)
    except NotFoundError:
        raise NotFoundError(f"{redact(uri)} is missing, though it was committed.") from None
    if size != output.bytes:
        has = f"{size}" if size < output.bytes else "more"
        raise StoreError(f"{redact(uri)} is not what was committed: it has {has} bytes instead of {output.bytes}.")
    if checksum.hexdigest() != output.sha256:
        raise StoreError(f"{redact(uri)} is not what was committed: its sha256 differs.")
    return path


def batches(rows: Iterable[ImageLabels], size: int) -> Iterator[Sequence[ImageLabels]]:
    """Rows in lists of `size`; the last one may be shorter."""
    rest = iter(rows)
    while batch := list(islice(rest, size)):
        yield batch
