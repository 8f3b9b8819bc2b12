"""Reading a run: how far it is, and the rows of its data objects. All goes by commits, never by what lies in a folder.

A data object is fetched whole into a temporary file and compared with its commit before a row of it is believed. `rows`
gives what the model found; `opened` gives what counts: with the corrections of people, and through a view.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from pipeline import corrections, ledger, scratch, shards
from pipeline.corrections import Corrections
from pipeline.errors import NotFoundError, StoreError
from pipeline.records import Category, Commit, Failure, ImageLabels, Manifest, Shard
from pipeline.shard_list import ShardList
from pipeline.store import Store, redact
from pipeline.view import PLAIN, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far a run is.

    shards = done + failed + pending, where a shard has failed if its last attempt did and nothing was committed since;
    it is tried again when the run is started again; `taken` of those done are from another run. images = labelled +
    empty + quarantined. seconds: working time of the shards that were done here, over all workers. corrections: how
    many versions of them count, corrected: how many images they brought, one that came twice counting twice.
    """

    uri: str
    run_id: str
    created: str
    version: str
    shards: int
    done: int
    failed: int
    pending: int
    taken: int
    images: int
    labelled: int
    empty: int
    quarantined: int
    reasons: Mapping[str, int]
    instances: int
    seconds: float
    images_per_second: float | None
    corrections: int
    corrected: int
    failures: tuple[Failure, ...]


def status(
    store: Store, run_uri: str, *, passing: Callable[[Iterable[Commit]], Iterable[Commit]] = lambda commits: commits
) -> Status:
    """How far a run is, from its ledger alone.

    Args:
        store: where it is.
        run_uri: the run.
        passing: what the commits pass through on the way, for whoever wants to know more of them.

    Raises:
        UserError: there is no run, or another version of this package made it.
        StoreError: a commit is damaged, or the storage failed.
    """
    manifest = ledger.read_manifest(store, run_uri)
    listed = ledger.listing(store, run_uri)
    totals = ledger.totals(passing(read_commits(store, run_uri, manifest, listed=listed)))
    pending = ledger.pending(manifest, listed.ids)
    failures = ledger.failures(store, run_uri)
    not_done = pending.known([failure.shard_id for failure in failures])
    failures = [failure for failure in failures if failure.shard_id in not_done]
    corrected = corrections.read(store, run_uri)
    return Status(
        uri=redact(run_uri),
        run_id=manifest.run_id,
        created=manifest.created,
        version=manifest.version,
        shards=len(manifest.shards),
        done=len(manifest.shards) - len(pending),
        failed=len(failures),
        pending=len(pending) - len(failures),
        taken=totals.shards_taken,
        images=totals.images,
        labelled=totals.labelled,
        empty=totals.empty,
        quarantined=totals.quarantined,
        reasons=totals.reasons,
        instances=totals.instances,
        seconds=round(totals.seconds, 3),
        images_per_second=round(totals.images_done / totals.seconds, 3) if totals.seconds else None,
        corrections=len(corrected.counting),
        corrected=sum(version.counts.get("images", 0) for version in corrected.counting),
        failures=tuple(failures),
    )


def read_commits(
    store: Store, run_uri: str, manifest: Manifest, *, listed: ledger.Listing | None = None, threads: int = 16
) -> Iterator[Commit]:
    """The commits of a run, in the order of the manifest; see `ledger.read`.

    Raises:
        StoreError: one of them is damaged.
    """
    return (commit for _, commit in _done(store, run_uri, manifest, listed=listed, threads=threads))


def _done(
    store: Store, run_uri: str, manifest: Manifest, *, listed: ledger.Listing | None = None, threads: int = 16
) -> Iterator[tuple[Shard, Commit]]:
    for shard, found in ledger.read(store, run_uri, manifest, listed=listed, threads=threads):
        if isinstance(found, Commit):
            yield shard, found
        elif not isinstance(found, NotFoundError):  # which has been removed since it was listed
            raise found


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The labels of a run as they count: what is committed, corrected by people, through a view.

    done: by the fingerprint of the labeler, how many shards `shards` has given so far. chosen: keys of images by
    shard, where only these are to be read; None: all.
    """

    store: Store
    uri: str
    manifest: Manifest
    corrections: Corrections
    view: View
    categories: tuple[Category, ...]
    done: Counter[str] = field(default_factory=Counter)
    chosen: Mapping[str, Collection[str]] | None = None

    def only(self, chosen: Mapping[str, Collection[str]]) -> Labels:
        """The same run, of which only some images are read: keys by shard id."""
        return replace(self, done=Counter(), chosen=chosen)

    def commits(self) -> Iterator[Commit]:
        """The commits, in the order of the manifest; see `read_commits`."""
        return (commit for _, commit in self.shards())

    def shards(self) -> Iterator[tuple[Shard, Commit]]:
        """The shards that are done, each with its commit, in the order of the manifest."""
        for shard, commit in _done(self.store, self.uri, self.manifest):
            if self.chosen is None or shard.id in self.chosen:
                self.done[commit.fingerprint] += 1
                yield shard, commit

    def shard(self, shard_id: str) -> Shard:
        """The shard of an id, which is one of the run's. Of a million it takes milliseconds: see also `shards`."""
        return ShardList.of(self.manifest.shards).find(shard_id)

    def rows(self, commit: Commit) -> Iterator[ImageLabels]:
        """The rows of a committed shard; see `rows`.

        Raises:
            StoreError: also of the corrections.
        """
        corrected = self.corrections.rows(self.store, commit.shard_id)
        keys = None if self.chosen is None else self.chosen[commit.shard_id]
        for row in rows(self.store, self.uri, commit):
            if keys is None or row.key in keys:
                yield self.view.row(corrected.get(row.key, row), self.manifest.categories)

    def all_rows(self) -> Iterator[ImageLabels]:
        """The rows of all committed shards, in the order of the manifest."""
        for commit in self.commits():
            yield from self.rows(commit)


def opened(store: Store, run_uri: str, view: View = PLAIN) -> Labels:
    """The labels of a run, to be read.

    Raises:
        UserError: there is no run, or the view speaks of classes that it does not have.
        StoreError: the manifest or the list of corrections is damaged, or the storage failed.
    """
    manifest = ledger.read_manifest(store, run_uri)
    return Labels(
        store=store,
        uri=run_uri,
        manifest=manifest,
        corrections=corrections.read(store, run_uri),
        view=view,
        categories=view.categories(manifest.categories),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What counts in a run, corrections included: masks, most frequent class first, and images that have some."""

    instances: int
    labelled: int
    classes: Mapping[str, int]


def count(labels: Labels) -> Counted:
    """Count what a view shows of a run; all labels are read.

    Raises:
        StoreError: something of it is missing or damaged, or the storage failed.
    """
    categories: Counter[int] = Counter()
    labelled = 0
    for row in labels.all_rows():
        categories.update(row.instances.category_ids.tolist())
        labelled += row.status == "labelled"
    names = {category.id: category.name for category in labels.categories}
    classes = {names.get(id_, f"#{id_}"): number for id_, number in categories.most_common()}
    return Counted(instances=categories.total(), labelled=labelled, classes=classes)


def read_rows(store: Store, run_uri: str) -> Iterator[ImageLabels]:
    """The rows of all committed shards as the model labelled them, in the order of the manifest; see `rows`."""
    for commit in read_commits(store, run_uri, ledger.read_manifest(store, run_uri)):
        yield from rows(store, run_uri, commit)


def rows(store: Store, run_uri: str, commit: Commit) -> Iterator[ImageLabels]:
    """The rows of a committed shard as the model labelled them.

    They are from its Parquet object, else from its COCO object, which lacks the quarantined.

    Raises:
        StoreError: the object is missing, it is not the one that was committed, or it cannot be read.
    """
    for format, read in shards.READERS.items():
        if format in commit.outputs:
            with scratch.folder() as folder:
                path = shards.fetch(store, home(run_uri, commit), commit.outputs[format], folder)
                yield from read(path, commit.shard_id).rows
            return
    raise StoreError(
        f"{redact(run_uri)}: the commit of shard {commit.shard_id} names no output that can be read; known are "
        f"{', '.join(shards.READERS)}."
    )


def home(run_uri: str, commit: Commit) -> str:
    """The run in which the outputs of a commit lie."""
    return run_uri if commit.base is None else commit.base.uri


def batches(rows: Iterable[ImageLabels], size: int) -> Iterator[Sequence[ImageLabels]]:
    """Rows in lists of `size`; the last one may be shorter."""
    rest = iter(rows)
    while batch := list(islice(rest, size)):
        yield batch
