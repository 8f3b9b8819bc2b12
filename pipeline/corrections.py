"""What people have corrected of a run: versions that lie over its labels, and change none of them.

    <run>/corrections/000001.json                   a version: who, when, from what; created only if absent
    <run>/corrections/<shard>-<attempt>.parquet     its rows of a shard, in the schema of labels

A version holds whole rows: all that counts in an image from then on. Of several versions of an image the last counts,
so its history is in the versions before. A version is claimed as a shard is: data first, then one small object.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from pipeline import __version__, dates, scratch, shards, sinks
from pipeline.errors import StoreError, UserError
from pipeline.records import ImageLabels, Instances, Manifest, Output
from pipeline.store import Store, join, name, redact

FOLDER = "corrections"
_LIMIT = 64 << 20  # bytes of a version's document: about 200 a shard
_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """The corrections that one file brought.

    number: from 1. created: for people, never compared. by: who answers for it. source, source_sha256: the file that it
    was read from. counts: what was done, in masks (`kept`, `changed`, `added`, `removed`) and in images (`images`).
    outputs: by shard, the file with its rows. undoes: the version that this one takes back; 0 where it brings rows.
    """

    number: int
    created: str
    by: str
    source: str
    source_sha256: str
    version: str
    counts: Mapping[str, int]
    outputs: Mapping[str, Output]
    undoes: int = 0


_VERSION: TypeAdapter[Version] = TypeAdapter(Version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrections:
    """All versions of a run, oldest first."""

    run_uri: str
    versions: tuple[Version, ...] = ()

    @property
    def counting(self) -> tuple[Version, ...]:
        """Those that nobody has taken back, oldest first; what takes another one back can be taken back, too."""
        undone: set[int] = set()
        for one in reversed(self.versions):
            if one.undoes and one.number not in undone:
                undone.add(one.undoes)
        return tuple(one for one in self.versions if one.number not in undone)

    def of(self, shard_id: str) -> list[tuple[int, Output]]:
        """The files with rows of a shard, of all versions, oldest first, each with the number of its version."""
        return [(one.number, one.outputs[shard_id]) for one in self.versions if shard_id in one.outputs]

    def rows(self, store: Store, shard_id: str) -> dict[str, ImageLabels]:
        """The rows of a shard that count in the place of the model's, by key.

        Raises:
            StoreError: a file is missing, damaged, or not the one that was written.
        """
        found: dict[str, ImageLabels] = {}
        counting = {one.number for one in self.counting}
        for number, output in (pair for pair in self.of(shard_id) if pair[0] in counting):
            with scratch.folder() as folder:
                path = shards.fetch(store, self.run_uri, output, folder)
                for row in shards.read_parquet(path, shard_id).rows:
                    found[row.key] = replace(row, corrected=number)
        return found


def read(store: Store, run_uri: str) -> Corrections:
    """The versions of a run; none where nothing was corrected.

    Raises:
        StoreError: one of them is damaged.
    """
    found = store.list(join(run_uri, FOLDER, ""), literal=True)
    uris = sorted(info.uri for info in found if info.uri.endswith(".json"))
    return Corrections(run_uri=run_uri, versions=tuple(_load(store, uri) for uri in uris))


def write(
    store: Store,
    run_uri: str,
    manifest: Manifest,
    rows: Mapping[str, Sequence[ImageLabels]],
    *,
    by: str,
    source: str,
    source_sha256: str,
    counts: Mapping[str, int],
) -> Version:
    """Lay rows over those of a run, as a new version. Whoever writes at the same time has another number.

    Args:
        store: where the run is.
        run_uri: the run.
        manifest: what `ledger.read_manifest` gives for it.
        rows: by shard id, the whole rows of the images that were corrected.
        by: who answers for it.
        source: the file that the rows come from, as the user named it.
        source_sha256: its checksum.
        counts: see `Version`.

    Raises:
        StoreError: the storage failed; nothing counts then.
    """
    attempt = _attempt()
    version = Version(
        number=0,
        created=dates.now(),
        by=by,
        source=source,
        source_sha256=source_sha256,
        version=__version__,
        counts=dict(counts),
        outputs={id_: _put(store, run_uri, manifest, id_, of, attempt) for id_, of in sorted(rows.items())},
    )
    return _claim(store, run_uri, version)


def undo(store: Store, run_uri: str, number: int, *, by: str) -> Version:
    """Take a version back, as a new version; both stay in the history.

    Raises:
        UserError: there is no such version, or it was taken back already.
        StoreError: the storage failed.
    """
    corrections = read(store, run_uri)
    known = {one.number: one for one in corrections.versions}
    if number not in known:
        names = ", ".join(map(str, known)) or "none"
        raise UserError(f"--undo {number}: {redact(run_uri)} has no such corrections; it has {names}")
    if number not in {one.number for one in corrections.counting}:
        raise UserError(f"--undo {number}: these corrections were taken back already")
    version = Version(
        number=0,
        created=dates.now(),
        by=by,
        source=f"undo of version {number}",
        source_sha256=hashlib.sha256(f"undo {_attempt()}".encode()).hexdigest(),
        version=__version__,
        counts={},
        outputs={},
        undoes=number,
    )
    return _claim(store, run_uri, version)


def copy(
    store: Store, from_uri: str, to_uri: str, version: Version, shard_ids: Collection[str], *, undoes: int = 0
) -> Version:
    """Lay a version of one run over another one that has the same images, but for shards that are not named.

    `undoes`: the number that the version which it takes back has there.

    Raises:
        StoreError: a file of it is missing or damaged, or the storage failed; nothing counts then.
    """
    attempt, outputs = _attempt(), {}
    for shard_id in sorted(shard_ids):
        with scratch.folder() as folder:
            path = shards.fetch(store, from_uri, version.outputs[shard_id], folder)
            outputs[shard_id] = replace(version.outputs[shard_id], path=f"{FOLDER}/{shard_id}-{attempt}.parquet")
            store.put(join(to_uri, outputs[shard_id].path), path)
    return _claim(store, to_uri, replace(version, outputs=outputs, undoes=undoes))


def _attempt() -> str:
    return uuid.uuid4().hex[:12]


def _claim(store: Store, run_uri: str, version: Version) -> Version:
    """Write a version under the next number."""
    number = max((one.number for one in read(store, run_uri).versions), default=0)
    while True:
        number += 1
        claimed = replace(version, number=number)
        uri = join(run_uri, FOLDER, f"{number:0{_DIGITS}d}.json")
        if store.create(uri, _VERSION.dump_json(claimed, indent=2) + b"\n"):
            return claimed


def _put(
    store: Store, run_uri: str, manifest: Manifest, shard_id: str, rows: Sequence[ImageLabels], attempt: str
) -> Output:
    """Write the corrected rows of a shard."""
    quality = tuple(sorted({name for row in rows for name in row.instances.quality}))
    header = sinks.Header(
        run_id=manifest.run_id,
        shard_id=shard_id,
        fingerprint=manifest.fingerprint,
        version=__version__,
        categories=manifest.categories,
        quality=quality,
    )
    with scratch.folder() as folder:
        path = folder / f"{shard_id}-{attempt}.parquet"
        with sinks.parquet(path, header) as writer:
            writer([replace(row, instances=_completed(row.instances, quality)) for row in rows])
        output = Output(
            path=f"{FOLDER}/{path.name}",
            bytes=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        store.put(join(run_uri, output.path), path)
    return output


def _completed(instances: Instances, quality: Sequence[str]) -> Instances:
    """Instances with all these columns, NaN where they had none."""
    unknown = instances.unknown()
    return replace(instances, quality={name: instances.quality.get(name, unknown) for name in quality})


def _load(store: Store, uri: str) -> Version:
    try:
        version = _VERSION.validate_json(store.get(uri, limit=_LIMIT), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = "".join(f"{part}: " for part in first["loc"])
        raise StoreError(f"{redact(uri)} is damaged: {place}{first['msg']}.") from None
    if name(uri) != f"{version.number:0{_DIGITS}d}.json":
        raise StoreError(f"{redact(uri)} is damaged: it says that it is number {version.number}.")
    return version
