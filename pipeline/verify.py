"""Whether a run keeps its promises: each shard and image accounted for, each byte as committed, each mask sound.

Shards are checked in threads, each row by row; what is kept of a shard are its faults and the ranges of its image ids.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pipeline import checks, corrections, ledger, runs, scratch, shards
from pipeline.corrections import Corrections
from pipeline.errors import AccessError, NotFoundError, StoreError, UnreachableError
from pipeline.parallel import ahead
from pipeline.records import Commit, Manifest, Shard
from pipeline.shard_list import ShardList
from pipeline.store import Store, redact

_BATCH = 64  # rows whose masks are measured together

Progress: TypeAlias = Callable[[int, int], None]
_Read: TypeAlias = tuple[Shard, Commit | StoreError]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong. shard: the URI of the input shard, "" for the whole run. key: the image's, if of one."""

    shard: str
    key: str | None
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.shard, self.key, self.what) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was looked at, and what is wrong with it; the run is sound if nothing is."""

    run_id: str
    shards: int
    committed: int
    images: int
    instances: int
    faults: tuple[Fault, ...]


@dataclass(slots=True, kw_only=True)
class _Checked:
    """What is known of a shard. ranges: int64 [R, 2], first and last of its runs of consecutive image ids."""

    shard: Shard
    committed: bool = False
    images: int = 0
    instances: int = 0
    faults: list[Fault] = field(default_factory=list)
    ranges: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    def fault(self, what: str, key: str | None = None) -> None:
        self.faults.append(Fault(shard=redact(self.shard.uri), key=key, what=what.rstrip(".")))


def verify(store: Store, run_uri: str, *, threads: int = 4, progress: Progress = lambda done, shards: None) -> Report:
    """Check a whole run against its manifest and its commits.

    Args:
        store: where it is.
        run_uri: the run.
        threads: how many shards are checked at once; each has its data objects in a temporary folder meanwhile.
        progress: called after each shard, with how many of how many are checked.

    Raises:
        UserError: there is no run.
        AccessError, UnreachableError: the storage does not let us look.
    """
    manifest = ledger.read_manifest(store, run_uri)
    corrected = corrections.read(store, run_uri)
    check = partial(_check_shard, store, run_uri, manifest, corrected)
    return _report(store, run_uri, manifest, corrected, lambda done: ahead(check, done, threads=threads), progress)


def verify_ledger(store: Store, run_uri: str, *, progress: Progress = lambda done, shards: None) -> Report:
    """The part of `verify` that reads the ledger alone: whether its shards and its commits add up."""
    manifest, corrected = ledger.read_manifest(store, run_uri), corrections.read(store, run_uri)
    return _report(store, run_uri, manifest, corrected, partial(map, _check_commit), progress)


def _report(
    store: Store,
    run_uri: str,
    manifest: Manifest,
    corrected: Corrections,
    checks: Callable[[Iterable[_Read]], Iterator[_Checked]],
    progress: Progress,
) -> Report:
    """The faults of the manifest and the listing, and those that `checks` finds in the shards that are done."""
    listed = ledger.listing(store, run_uri)
    faults = list(_manifest_faults(manifest))
    strangers = ledger.strangers(manifest, listed)
    faults += [Fault(shard="", key=None, what=f"commit {one} is of no shard of the run") for one in strangers]
    faults += _correction_faults(corrected, manifest)
    pending = ledger.pending(manifest, listed.ids)
    if pending:
        faults.append(Fault(shard="", key=None, what=f"{len(pending)} of {len(manifest.shards)} shards are not done"))
    sums: Counter[str] = Counter()
    ranges = array("q")  # in threes; see `_shared_ids`
    for checked in checks(ledger.read(store, run_uri, manifest, listed=listed)):
        faults += checked.faults
        ranges.frombytes(np.insert(checked.ranges, 2, sums["shards"], axis=1).tobytes())
        sums.update(shards=1, committed=int(checked.committed), images=checked.images, instances=checked.instances)
        progress(sums["shards"], len(manifest.shards) - len(pending))
    done = ShardList.of(manifest.shards).without(pending.ids)
    faults += _shared_ids(np.frombuffer(ranges, np.int64).reshape(-1, 3), done)
    return Report(
        run_id=manifest.run_id,
        shards=len(manifest.shards),
        committed=sums["committed"],
        images=sums["images"],
        instances=sums["instances"],
        faults=tuple(faults),
    )


def _correction_faults(corrected: Corrections, manifest: Manifest) -> Iterator[Fault]:
    """Corrections that lie over nothing."""
    for version in corrected.versions:
        known = ShardList.of(manifest.shards).known(version.outputs)
        for shard_id in sorted(set(version.outputs) - known):
            what = f"corrections {version.number} are of {shard_id}, which is no shard of the run"
            yield Fault(shard="", key=None, what=what)


def _manifest_faults(manifest: Manifest) -> Iterator[Fault]:
    shards = ShardList.of(manifest.shards)
    for name, values in (("id", shards.ids), ("number", shards.numbers)):
        counted = pc.value_counts(values)
        for one in counted.filter(pc.greater(counted.field("counts"), 1)).to_pylist():
            what = f"the list of shards has {one['counts']} shards of the {name} {one['values']}"
            yield Fault(shard="", key=None, what=what)
    ids = Counter(category.id for category in manifest.categories)
    for category_id in (one for one, count in ids.items() if count > 1):
        yield Fault(shard="", key=None, what=f"manifest.json has {ids[category_id]} categories of the id {category_id}")


def _check_commit(read: _Read) -> _Checked:
    """All checks of a shard that need its commit alone."""
    shard, commit = read
    checked = _Checked(shard=shard)
    if isinstance(commit, StoreError):
        checked.fault("its commit has vanished" if isinstance(commit, NotFoundError) else str(commit))
        return checked
    checked.committed, checked.images, checked.instances = True, commit.images, commit.instances
    for fault in checks.commit_faults(commit):
        checked.fault(fault)
    return checked


def _check_shard(store: Store, run_uri: str, manifest: Manifest, corrected: Corrections, read: _Read) -> _Checked:
    """All checks of a shard that need no other."""
    checked, commit = _check_commit(read), read[1]
    if isinstance(commit, StoreError):
        return checked
    with scratch.folder() as folder:
        found: dict[str, Path] = {}
        for format, output in commit.outputs.items():
            if checks.output_fault(commit, format):
                continue
            try:
                found[format] = shards.fetch(store, runs.home(run_uri, commit), output, folder)
            except (AccessError, UnreachableError):
                raise
            except StoreError as error:
                checked.fault(str(error))
        for format in shards.READERS:
            if format in found:
                try:
                    _check_rows(checked, commit, manifest, format, found[format])
                    _check_corrections(checked, commit, manifest, corrected, store, format, found[format])
                    if format != "coco" and "coco" in found:
                        _compare(checked, found[format], found["coco"])
                except StoreError as error:
                    checked.fault(str(error))
                break
    return checked


def _check_rows(checked: _Checked, commit: Commit, manifest: Manifest, format: str, path: Path) -> None:
    """Check the rows of a data object, and what it says of itself, against the commit and the manifest.

    Raises:
        StoreError: it cannot be read to its end.
    """
    data = shards.READERS[format](path, commit.shard_id)
    categories = [asdict(category) for category in manifest.categories]
    run_id = manifest.run_id if commit.base is None else commit.base.run_id
    said = {"run_id": run_id, "fingerprint": commit.fingerprint, "categories": categories}
    for name, value in said.items():
        if data.about.get(name) != value:
            checked.fault(
                f"{path.name} speaks of another {name} than the {'commit' if name == 'fingerprint' else 'manifest'}"
            )
    tally: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    keys: set[str] = set()
    ids: list[int] = []
    for batch in runs.batches(data.rows, _BATCH):
        for row in batch:
            tally.update({row.status: 1, "instances": len(row.instances)})
            reasons.update([] if row.error is None else [row.error.partition(":")[0]])
            ids.append(row.image_id)
            if row.key in keys:
                checked.fault("a second row has this key", row.key)
            keys.add(row.key)
            for fault in checks.row_faults(row):
                checked.fault(fault, row.key)
        for key, fault in checks.instance_faults(batch, {category.id for category in manifest.categories}):
            checked.fault(fault, key)
    checked.ranges, twice = checks.id_ranges(np.array(ids, np.int64))
    if len(twice):
        checked.fault(f"{len(twice)} image ids are those of more than one row, {twice[0]} for instance")
    counted = ["labelled", "empty", "instances"] + ["quarantined"] * (format != "coco")
    for name in counted:
        if tally[name] != getattr(commit, name):
            checked.fault(f"{path.name} has {tally[name]} {name}, its commit says {getattr(commit, name)}")
    if format != "coco" and reasons != Counter(commit.reasons):
        checked.fault(f"{path.name} gives other reasons for quarantine than its commit")


def _check_corrections(
    checked: _Checked,
    commit: Commit,
    manifest: Manifest,
    corrected: Corrections,
    store: Store,
    format: str,
    path: Path,
) -> None:
    """Check that all corrections of a shard are there as they were written, sound, and of images that it has.

    Raises:
        StoreError: one of them, or the shard, cannot be read to its end.
    """
    versions = corrected.of(commit.shard_id)
    if not versions:
        return
    there = {
        row.key: (row.image_id, row.height, row.width) for row in shards.READERS[format](path, commit.shard_id).rows
    }
    for number, output in versions:
        with scratch.folder() as folder:
            file = shards.fetch(store, corrected.run_uri, output, folder)
            for batch in runs.batches(shards.read_parquet(file, commit.shard_id).rows, _BATCH):
                where = f"corrections {number}: "
                for row in batch:
                    if there.get(row.key) != (row.image_id, row.height, row.width):
                        checked.fault(f"{where}the shard has no such image of this size", row.key)
                    for fault in checks.row_faults(row):
                        checked.fault(where + fault, row.key)
                for key, fault in checks.instance_faults(batch, {category.id for category in manifest.categories}):
                    checked.fault(where + fault, key)


def _compare(checked: _Checked, parquet: Path, coco: Path) -> None:
    """Check that the COCO shard has the images and annotations of the Parquet shard, in the same order.

    Raises:
        StoreError: one of them cannot be read to its end.
    """
    first, second = shards.read_parquet(parquet, checked.shard.id), shards.read_coco(coco, checked.shard.id)
    for name in ("run_id", "fingerprint", "categories"):
        if first.about.get(name) != second.about.get(name):
            checked.fault(f"{coco.name} speaks of another {name} than {parquet.name}")
    sized = (row for row in first.rows if row.status != "quarantined")
    for ours, theirs in zip_longest(sized, second.rows):
        if ours is None or theirs is None or (ours.key, ours.image_id) != (theirs.key, theirs.image_id):
            here, there = (row.key if row is not None else "nothing" for row in (ours, theirs))
            checked.fault(f"{coco.name} goes on with {there} where {parquet.name} has {here}")
            return
        if fault := checks.difference(ours, theirs):
            checked.fault(f"{coco.name} has {fault} than {parquet.name}", ours.key)


def _shared_ids(ranges: npt.NDArray[np.int64], shards: Sequence[Shard]) -> Iterator[Fault]:
    """Where two shards have image ids in common: the first of them, once for a pair.

    Args:
        ranges: int64 [R, 3], the first and last id of each range, and the position in `shards` of its shard; those of
            a shard have nothing in common.
        shards: those that were checked.
    """
    first, last, owners = ranges[np.argsort(ranges[:, 0], kind="stable")].T
    reach = np.maximum.accumulate(last)  # the largest id so far, and the row that brought it
    brought = np.maximum.accumulate(np.where(np.diff(reach, prepend=-1) > 0, np.arange(len(reach)), 0))
    pairs: set[tuple[int, int]] = set()
    for row in (np.flatnonzero(first[1:] <= reach[:-1]) + 1).tolist():
        pair = int(owners[row]), int(owners[brought[row - 1]])
        if pair not in pairs:
            pairs.add(pair)
            shard, other = (shards[position] for position in pair)
            what = f"its image id {first[row]} is also one of {redact(other.uri)}"
            yield Fault(shard=redact(shard.uri), key=None, what=what)
