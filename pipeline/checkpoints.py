"""The ledger of a training: the checkpoints that a training left at `root` = <run.storage>/<run.name>.

    <root>/checkpoints/<step>-<attempt>/model.pth, state.pth, history.json, ...    data, under names of its own
    <root>/checkpoints/<step>.json                   the marker, created only if absent, when all data is in place

Only what a marker names is a checkpoint. A writer that dies before its marker leaves an orphan, which `prune` removes;
of two that write the same step one wins, and the other one is told so. A training only goes forward: who finds a marker
of a later step than its own is not alone, and gives way.
"""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipeline import __version__, dates
from pipeline.errors import AccessError, NotFoundError, RunError, StoreError
from pipeline.store import Store, join, local_path, redact, scheme

log = logging.getLogger(__name__)

#: The curve up to a checkpoint: a list of rows, see `pipeline.curves`.
HISTORY = "history.json"

_MARKER = re.compile(r"(\d{8,})\.json")
_DATA = re.compile(r"(\d{8,})-[0-9a-f]{12}")
_CHUNK = 1 << 20
_LIMIT = 16 << 20  # bytes of a marker; it has about a thousand
_NUMBERS = ConfigDict(ser_json_inf_nan="strings")  # a metric may be NaN, for which JSON has no number


class TakenError(RunError):
    """Another training writes to the same place."""


class DamagedError(StoreError):
    """A part of a checkpoint is missing, or is not what was saved. The checkpoint before may do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of a checkpoint: its size in bytes and its checksum."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint, as its marker has it.

    step: how many steps were taken. attempt: unique to the `save` that wrote it. metrics: figures by name, as those of
    validation. files: by name. created: in UTC, ISO 8601. version: of this package. provenance: what else the
    training says of itself, as far as JSON goes.
    """

    __pydantic_config__ = _NUMBERS
    step: int
    attempt: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    metrics: Mapping[str, float]
    files: Mapping[str, File]
    created: str
    version: str
    provenance: Mapping[str, object]


_saved: TypeAdapter[Saved] = TypeAdapter(Saved)
_rows: TypeAdapter[list[dict[str, float]]] = TypeAdapter(list[dict[str, float]], config=_NUMBERS)


def saved(store: Store, root: str) -> tuple[Saved, ...]:
    """The checkpoints of a training, by step; none where nothing is. A marker that is damaged is left out, and logged.

    Raises:
        StoreError: the storage failed.
    """
    return _read_all(store, root, _marked(store, root))


def best(checkpoints: Iterable[Saved], metric: str) -> Saved | None:
    """The one with the greatest figure, the later of equals; None where none has it, or not as a number."""
    measured = [one for one in checkpoints if one.metrics.get(metric, float("nan")) > float("-inf")]
    return max(measured, key=lambda one: (one.metrics[metric], one.step), default=None)


def save(
    store: Store,
    root: str,
    *,
    step: int,
    files: Mapping[str, bytes | Path],
    history: Sequence[Mapping[str, float]] = (),
    metrics: Mapping[str, float] | None = None,
    provenance: Mapping[str, object] | None = None,
) -> Saved:
    """Write a checkpoint: the data, then the marker, which counts.

    Args:
        store: the storage.
        root: where the training lives.
        step: how many steps were taken.
        files: content by name; a path is streamed and never held in memory.
        history: the rows of the curve so far, which become `history.json`.
        metrics: see `Saved`.
        provenance: see `Saved`.

    Raises:
        TakenError: another training has written this step, or a later one. Nothing of ours stays.
        UnreachableError: the storage stopped answering. The checkpoint may stand; its data stays.
    """
    assert all(re.fullmatch(r"\w[\w.-]*", file_name) for file_name in files), "names of files, without a folder"
    files = {**files, HISTORY: _rows.dump_json([dict(row) for row in history])}
    mine = Saved(
        step=step,
        attempt=uuid.uuid4().hex[:12],
        metrics=dict(metrics or {}),
        files={file_name: _described(content) for file_name, content in files.items()},
        created=dates.now(),
        version=__version__,
        provenance=dict(provenance or {}),
    )
    for file_name, content in files.items():
        store.put(_data_uri(root, mine, file_name), content)
    marker = _saved.dump_json(mine, indent=2) + b"\n"
    won = store.create(_marker_uri(root, step), marker)
    latest = max(_marked(store, root), default=step)
    # Looked at after the marker is there, so that of two trainings the one behind notices, whoever comes first; and so
    # that the data which `prune` takes for orphans can never be marked for good.
    if won and latest <= step:
        return mine
    with suppress(AccessError):  # all stays where nothing may be deleted
        if won:
            _withdraw(store, _marker_uri(root, step), marker)
        _remove(store, [_data_uri(root, mine, file_name) for file_name in files])
    when = "at the same time" if latest <= step else f"while this one was at {step}"
    raise TakenError(f"checkpoint {max(step, latest)} of {redact(root)} was written by another training {when}")


def fetch(store: Store, root: str, checkpoint: Saved, file_name: str, folder: Path) -> Path:
    """Copy a file of a checkpoint to `folder`/`file_name`, which appears when it is whole and its sha256 is right.

    Raises:
        DamagedError: the checkpoint has no such file, it is missing, or it is not what was saved.
        StoreError: the storage failed, or the folder cannot be written.
    """
    uri, wanted = _data_uri(root, checkpoint, file_name), checkpoint.files.get(file_name)
    if wanted is None:
        raise DamagedError(f"checkpoint {checkpoint.step} of {redact(root)} has no {file_name}.")
    part = folder / f"{file_name}.{uuid.uuid4().hex}.part"
    checksum, size = hashlib.sha256(), 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with store.open(uri) as stream, part.open("wb") as file:
            while size <= wanted.size and (chunk := stream.read(_CHUNK)):
                size += len(chunk)
                checksum.update(chunk)
                file.write(chunk)
        if size != wanted.size:
            has = f"{size}" if size < wanted.size else "more"
            raise DamagedError(f"{redact(uri)} is not what was saved: it has {has} bytes instead of {wanted.size}.")
        if checksum.hexdigest() != wanted.sha256:
            raise DamagedError(f"{redact(uri)} is not what was saved: its sha256 differs.")
        return part.replace(folder / file_name)
    except NotFoundError:
        raise DamagedError(f"{redact(uri)} is missing, though its checkpoint was saved.") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StoreError(f"{redact(uri)} could not be copied to {folder}: {reason}.") from None
    finally:
        with suppress(OSError):
            part.unlink()


def read_history(store: Store, root: str, checkpoint: Saved) -> list[dict[str, float]]:
    """The rows of the curve up to a checkpoint.

    Raises:
        DamagedError: see `fetch`.
    """
    with tempfile.TemporaryDirectory(prefix="patchlabel-") as folder:
        data = fetch(store, root, checkpoint, HISTORY, Path(folder)).read_bytes()
    try:
        return _rows.validate_json(data)
    except ValidationError:
        raise DamagedError(f"{redact(_data_uri(root, checkpoint, HISTORY))} is no list of rows.") from None


def restore(store: Store, root: str, file_names: Collection[str], folder: Path) -> tuple[Saved, dict[str, Path]] | None:
    """Fetch files of the newest checkpoint that is whole; None where there is no checkpoint.

    This is for the one process that is going to write the next checkpoints. Those found damaged on the way lose their
    markers, so that the training can write their steps again; their data is left to `prune`.

    Raises:
        DamagedError: there are checkpoints, but none is whole. They stay as they are.
        StoreError: the storage failed.
    """
    unsound: dict[int, bytes] = {}
    for step in sorted(_marked(store, root), reverse=True):
        try:
            marker = store.get(_marker_uri(root, step), limit=_LIMIT)
        except NotFoundError:  # pruned since it was listed
            continue
        try:
            checkpoint = _parsed(root, step, marker)
            paths = {file_name: fetch(store, root, checkpoint, file_name, folder) for file_name in file_names}
        except DamagedError as error:
            log.warning("checkpoint %d cannot be used: %s", step, error)
            unsound[step] = marker
            continue
        for later, its_marker in unsound.items():
            _withdraw(store, _marker_uri(root, later), its_marker)
        return checkpoint, paths
    if unsound:
        raise DamagedError(
            f"{join(redact(root), 'checkpoints')} holds no checkpoint that is whole; "
            "remove the folder to train from the beginning, or train under another name."
        )
    return None


def prune(store: Store, root: str, *, keep: int, best_metric: str | None = None) -> None:
    """Remove all but the last `keep` checkpoints and the best one, and the orphans of dead writers.

    An orphan is data that no marker names, of a step that is not above the newest marker's: `save` never marks such
    data for good. A marker goes before its data, so whatever interrupts this, no checkpoint is left incomplete. What
    else lies in the folder stays. Where the credentials do not allow to delete, all stays, with a warning.

    Args:
        store: the storage.
        root: where the training lives.
        keep: how many of the last checkpoints stay; at least 1.
        best_metric: the best by this figure stays, too.
    """
    assert keep > 0, "the newest checkpoint always stays"
    data = _data(store, root)  # before the markers: what is marked meanwhile is then found among them
    marked = _marked(store, root)
    checkpoints = _read_all(store, root, marked)
    if not checkpoints:
        return
    newest, top = checkpoints[-1].step, best(checkpoints, best_metric) if best_metric is not None else None
    stay = {_folder(one): one.step for one in (*checkpoints[-keep:], *([top] if top else []))}
    try:
        for step in marked - {*stay.values()}:
            if step < newest:  # a later one is damaged, which is for `restore` to judge
                store.delete(_marker_uri(root, step))
        for folder, uris in data.items():
            if folder not in stay and _step(folder) <= newest:
                _remove(store, uris)
    except AccessError as error:
        log.warning("old checkpoints stay: %s", error)


def _folder(checkpoint: Saved) -> str:
    return f"{checkpoint.step:08d}-{checkpoint.attempt}"


def _step(text: str) -> int:
    """The step that the name of a marker or of a data folder begins with."""
    return int(re.split("[-.]", text)[0])


def _data_uri(root: str, checkpoint: Saved, file_name: str) -> str:
    return join(root, "checkpoints", _folder(checkpoint), file_name)


def _marker_uri(root: str, step: int) -> str:
    return join(root, "checkpoints", f"{step:08d}.json")


def _listed(store: Store, root: str) -> Iterator[tuple[list[str], str]]:
    """What lies in the folder: the parts of the path below it, and the URI."""
    place = join(root, "checkpoints", "")
    base = local_path(place) if scheme(place) == "file" else place  # as listings have it
    for info in store.list(place, literal=True):
        yield info.uri.removeprefix(base).split("/"), info.uri


def _marked(store: Store, root: str) -> set[int]:
    """The steps that have a marker, good or damaged."""
    return {_step(parts[0]) for parts, _ in _listed(store, root) if len(parts) == 1 and _MARKER.fullmatch(parts[0])}


def _data(store: Store, root: str) -> dict[str, list[str]]:
    """The URIs of all data, marked or not, by folder."""
    found: dict[str, list[str]] = {}
    for parts, uri in _listed(store, root):
        if len(parts) > 1 and _DATA.fullmatch(parts[0]):
            found.setdefault(parts[0], []).append(uri)
    return found


def _read_all(store: Store, root: str, steps: Iterable[int]) -> tuple[Saved, ...]:
    """The checkpoints of these steps, in order; without those that cannot be read."""
    with ThreadPoolExecutor(16) as pool:
        return tuple(filter(None, pool.map(partial(_read_or_none, store, root), sorted(steps))))


def _read_or_none(store: Store, root: str, step: int) -> Saved | None:
    try:
        return _parsed(root, step, store.get(_marker_uri(root, step), limit=_LIMIT))
    except NotFoundError:  # pruned since it was listed
        return None
    except DamagedError as error:
        log.warning("checkpoint %d is left out: %s", step, error)
        return None


def _parsed(root: str, step: int, marker: bytes) -> Saved:
    uri = redact(_marker_uri(root, step))
    try:
        checkpoint = _saved.validate_json(marker)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedError(f"{uri} is damaged: {f'{place}: ' if place else ''}{first['msg']}.") from None
    if checkpoint.step != step:
        raise DamagedError(f"{uri} is damaged: it speaks of another step, {checkpoint.step}.")
    return checkpoint


def _described(content: bytes | Path) -> File:
    if isinstance(content, bytes):
        return File(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    with content.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        return File(size=file.tell(), sha256=checksum)


def _withdraw(store: Store, uri: str, marker: bytes) -> None:
    """Remove a marker, unless it was replaced since it was read."""
    with suppress(NotFoundError):
        if store.get(uri, limit=_LIMIT) == marker:
            store.delete(uri)


def _remove(store: Store, uris: Sequence[str]) -> None:
    """Remove the data of one folder; on a disk the folder, too."""
    for uri in uris:
        store.delete(uri)
    if uris and scheme(uris[0]) in ("", "file"):
        with suppress(OSError):  # something else is in it
            Path(local_path(uris[0])).parent.rmdir()
