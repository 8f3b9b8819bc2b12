"""What the formats share: what is asked for, what was written, and where labels and images come from."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__, originals, outputs, runs
from pipeline.errors import StoreError, UserError
from pipeline.exports.names import Names
from pipeline.records import SCHEMA_VERSION, Commit, ImageLabels, ImageRecord, Shard
from pipeline.runs import Labels
from pipeline.store import Store, join, redact

#: What XML 1.0 cannot hold, escaped or not.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: Threads that upload the files of a folder; how many files wait for them, and with how many bytes.
_THREADS, _AHEAD, _AHEAD_BYTES = 16, 64, 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is exported, and how.

    out: the URI of a file or a folder. images: with the images themselves. polygons: not as masks, where a format knows
    both. quality: the quality columns, in order.
    """

    labels: Labels
    out: str
    images: bool = False
    polygons: bool = False
    quality: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What an export has written. missing: the shards of the run that are not done, and so not in it."""

    uri: str
    images: int
    quarantined: int
    instances: int
    bytes: int
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An image of the run.

    name: a relative path for its file, unlike any other's. packed: whether it lies in an archive or a table, so that
    its URI is not its own. image: where images are asked for.
    """

    row: ImageLabels
    shard_id: str
    name: str
    packed: bool
    image: ImageRecord | None


class Tally:
    """Counts what an export takes."""

    def __init__(self) -> None:
        self.images = self.quarantined = self.instances = 0

    def sized(self, request: Request) -> Iterator[Item]:
        """The images of a run that have a size, and so not the quarantined; all are counted."""
        return (item for item in self.all(request) if item.row.status != "quarantined")

    def all(self, request: Request) -> Iterator[Item]:
        """The images of a run, counted."""
        for item in items(request):
            quarantined = item.row.status == "quarantined"
            self.images += not quarantined
            self.quarantined += quarantined
            self.instances += len(item.row.instances)
            yield item

    def written(self, request: Request, size: int) -> Written:
        """The account, once all are taken; size: of what was written, in bytes."""
        return Written(
            uri=redact(request.out),
            images=self.images,
            quarantined=self.quarantined,
            instances=self.instances,
            bytes=size,
            missing=len(request.labels.manifest.shards) - request.labels.done.total(),
        )


def items(request: Request) -> Iterator[Item]:
    """All images of a run, in its order, quarantined ones included.

    Raises:
        ShardError, StoreError: labels cannot be read, or an image is no longer where it was.
    """
    names = Names(request.labels.manifest.config)
    for shard, commit in request.labels.shards():
        names.begin(shard)
        for row, image in _with_images(request, shard, commit):
            head = None if image is None else image.data
            name, packed = names.of(row, head), shard.format != "listing"
            yield Item(row=row, shard_id=shard.id, name=name, packed=packed, image=image)


def _with_images(request: Request, shard: Shard, commit: Commit) -> Iterator[tuple[ImageLabels, ImageRecord | None]]:
    """The rows of a shard, with the images where they are asked for."""
    if not request.images:
        yield from ((row, None) for row in request.labels.rows(commit))
        return
    for row, record in originals.rows_with_images(request.labels, shard, commit):
        if record.error is not None and row.status != "quarantined":
            raise StoreError(f"{redact(row.uri)}: the image {row.key} cannot be exported: {record.error}.")
        yield row, record


def quality_columns(labels: Labels) -> tuple[str, ...]:
    """The quality columns of a run, by its first mask."""
    for commit in runs.read_commits(labels.store, labels.uri, labels.manifest):
        if commit.instances:
            for row in labels.rows(commit):
                if len(row.instances):
                    return tuple(row.instances.quality)
    return ()


def provenance(labels: Labels) -> dict[str, Any]:
    """Where labels come from, once all rows are taken."""
    shards, done = len(labels.manifest.shards), labels.done.total()
    return {
        "description": f"instance masks of the labeling run {labels.manifest.run_id}",
        "version": __version__,
        "schema_version": SCHEMA_VERSION,
        "run": redact(labels.uri),
        "run_id": labels.manifest.run_id,
        "run_created": labels.manifest.created,
        "run_version": labels.manifest.version,
        "fingerprint": ", ".join(sorted(labels.done)) or labels.manifest.fingerprint,
        "shards": shards,
        "shards_done": done,
        "complete": done == shards,
        "corrections": len(labels.corrections.counting),
        "min_score": labels.view.min_score,
        "thresholds": labels.view.calibration is not None,
        "taxonomy": labels.view.taxonomy is not None,
    }


class Folder:
    """Files that go to a folder of the store, many at once."""

    def __init__(self, store: Store, uri: str, pool: ThreadPoolExecutor) -> None:
        """Nothing is looked at or made."""
        self._store, self._uri, self._pool = store, uri, pool
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._held = self.bytes = 0

    def put(self, path: str, data: bytes) -> None:
        """Write a file, now or later."""
        self.bytes += len(data)
        while self._waiting and (len(self._waiting) >= _AHEAD or self._held + len(data) > _AHEAD_BYTES):
            self._wait()
        self._held += len(data)
        self._waiting.append((self._pool.submit(self._store.put, join(self._uri, path), data), len(data)))

    def put_file(self, path: str, file: Path) -> None:
        """Move a local file there, now."""
        self.bytes += file.stat().st_size
        self._store.put(join(self._uri, path), file)
        file.unlink()

    def put_last(self, path: str, data: bytes) -> None:
        """Write a file once all others are there."""
        while self._waiting:
            self._wait()
        self.bytes += len(data)
        self._store.put(join(self._uri, path), data)

    def _wait(self) -> None:
        """For the file that waits longest."""
        upload, size = self._waiting.popleft()
        upload.result()
        self._held -= size


def check_new(store: Store, out: str) -> None:
    """Make sure that a folder can be written, and that nothing is there: it would pass as a part of what is written.

    Raises:
        UserError: something is there already, or nothing can be written there.
    """
    outputs.check_folder(store, out, key="--out")
    if next(store.list(join(out, ""), literal=True), None) is not None:
        raise UserError(f"--out is {redact(out)}, where something is already; name a new folder.")


@contextmanager
def folder(request: Request) -> Iterator[Folder]:
    """The folder to export to.

    Raises:
        UserError: as `check_new`.
    """
    store, uri = request.labels.store, join(request.out, "")
    check_new(store, request.out)
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="export")
    try:
        yield Folder(store, uri, pool)
    finally:
        pool.shutdown(cancel_futures=True)


def for_xml(text: str) -> str:
    """A text with a replacement character for each that XML cannot hold."""
    return _NO_XML.sub("\ufffd", text)


def attributes(row: ImageLabels, index: int, quality: Iterable[str]) -> dict[str, float | None]:
    """Score and quality columns of an instance, rounded to six decimals; None for what is not known."""
    columns = {"score": row.instances.scores, **{name: row.instances.quality.get(name) for name in quality}}
    values = {name: math.nan if column is None else float(column[index]) for name, column in columns.items()}
    return {name: round(value, 6) if math.isfinite(value) else None for name, value in values.items()}
