"""Labeling a part of a run anew: `run.base` names the old run, from which everything else is taken by reference.

A shard that is not asked for gets a commit that names the data objects of the old run; nothing is copied. Where only
some classes are asked for, an image keeps the other instances that it had. What people corrected in the old run goes on
to lie over the new one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from pipeline import corrections, ledger, runs, shards
from pipeline.config import LabelConfig
from pipeline.errors import StoreError, UserError
from pipeline.parallel import ahead
from pipeline.records import Base, Commit, ImageLabels, ImageRecord, Instances, LabelerInfo, Manifest, Shard
from pipeline.shard_list import ShardList
from pipeline.store import Store, absolute, join, redact

log = logging.getLogger("pipeline.run")

_THREADS = 16
#: The error of a record that is not looked at, as its old row stays.
_KEPT = "kept"


def divide(config: LabelConfig, todo: ShardList, store: Store) -> tuple[ShardList, ShardList]:
    """Which of the shards to do are labelled, and which are taken from the base.

    Raises:
        UserError: there is no other run at `run.base`, none of these shards is done there, or the request fits nothing.
    """
    if config.run.base is None:
        return todo, ShardList.of(())
    if join(absolute(config.run.base), "") == join(config.output.uri, ""):
        raise UserError(f"run.base: {redact(config.run.base)} is output.uri itself; give another output.uri")
    asked, where = config.run.relabel, f"run.base: {redact(config.run.base)}"
    base = _manifest(config.run.base, store)
    _category_ids(config, base)
    there = ShardList.of(base.shards)
    done = ledger.pending(base, ledger.listing(store, config.run.base).ids).ids
    positions = pc.index_in(todo.ids, value_set=there.ids.combine_chunks())
    same = pc.fill_null(pc.equal(there.numbers.take(positions), todo.numbers), False)
    known = pc.and_(same, pc.invert(pc.is_in(todo.ids, value_set=done.combine_chunks()))).combine_chunks()
    if len(todo) and not pc.any(known).as_py():
        raise UserError(f"{where} has none of the {len(todo)} shards to do; it must have labelled the same input")
    wanted = _wanted(todo, asked.shards) if asked.shards else np.full(len(todo), bool(asked.classes))
    if asked.shards and not wanted.any():
        raise UserError(
            f"run.relabel.shards matches none of the {len(todo)} shards to do; accepted are ids and URIs of shards, "
            "with * for any characters"
        )
    taken = known.to_numpy(zero_copy_only=False) & ~wanted
    return todo.take(np.flatnonzero(~taken)), todo.take(np.flatnonzero(taken))


def check(config: LabelConfig, labeler: LabelerInfo, store: Store) -> None:
    """Make sure that a labeler speaks of the classes of the base.

    Raises:
        UserError: it does not.
    """
    if config.run.base is not None and _manifest(config.run.base, store).categories != labeler.categories:
        raise UserError(
            f"run.base: {redact(config.run.base)} has other classes than the labeler; both must have the same, with "
            "the same ids"
        )


def take(config: LabelConfig, manifest: Manifest, taken: ShardList, store: Store) -> int:
    """Commit shards as they are in the base -> how many.

    Raises:
        UserError: the base has shards from a third run, which is no more.
        StoreError: a commit of the base has vanished or is damaged, or the storage failed.
    """
    if config.run.base is None:
        return 0
    base = _manifest(config.run.base, store)
    ids = set(taken.ids.to_pylist())
    wanted = (found for shard, found in ledger.read(store, config.run.base, base) if shard.id in ids)
    homes = {config.run.base}

    def commit(found: Commit | StoreError) -> bool:
        if isinstance(found, StoreError):
            raise found
        assert config.run.base is not None
        if (home := runs.home(config.run.base, found)) not in homes:
            _manifest(home, store)
            homes.add(home)
        return ledger.commit(store, config.output.uri, _referring(found, config.run.base, base))

    return sum(1 for _ in ahead(commit, wanted, threads=_THREADS)) if ids else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What of a shard is labelled anew, where that is not all: the instances of some classes.

    path: a local copy of the old rows, read by `format`. classes: category ids. containing: whether only images are
    looked at that had one of them.
    """

    commit: Commit
    path: Path
    format: str
    classes: frozenset[int]
    containing: bool

    def needed(self) -> bool:
        """Whether there is anything to look at."""
        return not self.containing or any(self._looked_at(row) for row in self._rows())

    def records(self, records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
        """The records of the shard, those that are not looked at without their bytes."""
        if not self.containing:
            yield from records
            return
        old = _InOrder(self._rows())
        for record in records:
            row = old.of(record.key)
            looked_at = row is None or self._looked_at(row)
            yield record if looked_at else replace(record, data=b"", error=_KEPT)

    def merging(self, quality: tuple[str, ...]) -> Merge:
        """What puts new rows and old ones together, with these quality columns."""
        return Merge(_InOrder(self._rows()), self.classes, quality)

    def _rows(self) -> Iterator[ImageLabels]:
        return shards.READERS[self.format](self.path, self.commit.shard_id).rows

    def _looked_at(self, row: ImageLabels) -> bool:
        return row.status == "quarantined" or bool(self.classes & set(row.instances.category_ids.tolist()))


class Merge:
    """Puts the rows of a shard together with those that it had, in the order of the shard."""

    def __init__(self, old: _InOrder, classes: frozenset[int], quality: tuple[str, ...]) -> None:
        """Instances of `classes` are from the new rows, the others from the `old`."""
        self._old, self._classes, self._quality = old, classes, quality

    def row(self, new: ImageLabels) -> ImageLabels:
        """The row of an image: the old one, but for what was looked for. An image that has become unreadable stays."""
        old = self._old.of(new.key)
        if old is None or old.status == "quarantined":
            return new
        kept = old.instances if new.status == "quarantined" else self._of(old, chosen=False)
        found = self._of(new, chosen=True)
        instances = _together(kept, found, self._quality)
        if new.status == "quarantined":
            return replace(old, image_id=new.image_id, uri=new.uri, instances=instances)
        return replace(new, instances=instances, status="labelled" if len(instances) else "empty")

    def _of(self, row: ImageLabels, *, chosen: bool) -> Instances:
        found = np.isin(row.instances.category_ids, list(self._classes))
        return row.instances.where(found if chosen else ~found)


def part_of(shard: Shard, config: LabelConfig, folder: Path, store: Store) -> Part | None:
    """What of a shard is labelled anew; None: all.

    Raises:
        UserError: there is no run at `run.base`.
        StoreError: its labels of the shard are missing or damaged.
    """
    asked = config.run.relabel
    if config.run.base is None or not asked.classes:
        return None
    commit = ledger.read_commit(store, config.run.base, shard.id)
    if commit is None:
        return None
    format = next(name for name in shards.READERS if name in commit.outputs)
    base = _manifest(config.run.base, store)
    return Part(
        commit=_referring(commit, config.run.base, base),
        path=shards.fetch(store, runs.home(config.run.base, commit), commit.outputs[format], folder),
        format=format,
        classes=_category_ids(config, base),
        containing=asked.containing,
    )


class _InOrder:
    """Rows by key, asked for in their order; some may be missing."""

    def __init__(self, rows: Iterator[ImageLabels]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def of(self, key: str) -> ImageLabels | None:
        found = self._next
        if found is None or found.key != key:
            return None
        self._next = next(self._rows, None)
        return found


def _manifest(base: str, store: Store) -> Manifest:
    try:
        return ledger.read_manifest(store, base)
    except UserError as error:
        raise UserError(f"run.base: {error}") from error


def _category_ids(config: LabelConfig, base: Manifest) -> frozenset[int]:
    ids = {category.name: category.id for category in base.categories}
    if strangers := [name for name in config.run.relabel.classes if name not in ids]:
        raise UserError(
            f"run.relabel.classes names {strangers[0]!r}, which is no class of run.base; it has "
            f"{', '.join(sorted(ids)[:10])}{', ...' if len(ids) > 10 else ''}"
        )
    return frozenset(ids[name] for name in config.run.relabel.classes)


def _wanted(todo: ShardList, patterns: Iterable[str]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which shards are asked for by id or by URI."""
    given = tuple(patterns)
    return np.array(
        [any(fnmatchcase(text, one) for one in given for text in (shard.id, shard.uri)) for shard in todo], bool
    )


def _referring(commit: Commit, base_uri: str, base: Manifest) -> Commit:
    """A commit of the base as one of the new run; one that refers to a third run goes on to."""
    return commit if commit.base is not None else replace(commit, base=Base(uri=base_uri, run_id=base.run_id))


def _together(old: Instances, new: Instances, quality: tuple[str, ...]) -> Instances:
    """Instances of both, best score first, with these quality columns."""
    order = np.argsort(-np.concatenate([old.scores, new.scores]), kind="stable")
    counts = (*old.counts, *new.counts)
    columns = {
        name: np.concatenate([old.quality.get(name, old.unknown()), new.quality.get(name, new.unknown())])[order]
        for name in quality
    }
    return Instances(
        category_ids=np.concatenate([old.category_ids, new.category_ids])[order],
        scores=np.concatenate([old.scores, new.scores])[order],
        boxes=np.concatenate([old.boxes, new.boxes])[order],
        areas=np.concatenate([old.areas, new.areas])[order],
        counts=tuple(counts[i] for i in order.tolist()),
        quality=columns,
    )


def carry(config: LabelConfig, manifest: Manifest, store: Store) -> None:
    """Let the corrections of the base lie over the run, too; those that do already are left.

    Raises:
        StoreError: one of them is missing or damaged, or the storage failed.
    """
    if config.run.base is None:
        return
    base_uri, run_uri = config.run.base, config.output.uri
    there = {(one.source_sha256, one.created): one.number for one in corrections.read(store, run_uri).versions}
    known, numbers = ShardList.of(manifest.shards), dict[int, int]()
    for version in corrections.read(store, base_uri).versions:
        if (number := there.get((version.source_sha256, version.created))) is not None:
            numbers[version.number] = number
            continue
        kept = known.known(version.outputs)
        if lost := len(version.outputs) - len(kept):
            log.warning("corrections %d of run.base: %d shards are not in this run", version.number, lost)
        undoes = numbers.get(version.undoes, 0)
        numbers[version.number] = corrections.copy(store, base_uri, run_uri, version, kept, undoes=undoes).number
        log.info("corrections %d of run.base, by %s, lie over this run, too", version.number, version.by)
