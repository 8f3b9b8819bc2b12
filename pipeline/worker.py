"""One shard, from its bytes to its commit. Knows neither Ray nor torch.

read (streamed) -> decode (threads, a bounded number ahead) -> label (batches) -> write (local files) -> upload ->
commit
"""

from __future__ import annotations

import hashlib
import tempfile
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import __version__, images, ledger, sinks, sources
from pipeline.config import LabelConfig
from pipeline.errors import ImageError, RunError
from pipeline.labelers import Labeler, build
from pipeline.records import (
    NO_INSTANCES,
    ROW_BITS,
    Commit,
    ImageLabels,
    ImageRecord,
    Instances,
    LabelerInfo,
    Output,
    Pixels,
    Shard,
)
from pipeline.store import Store, join

#: Images decoded ahead of the labeler, as a multiple of its batch.
BATCHES_AHEAD = 2
DECODING_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a worker needs to know of the run that it works for."""

    id: str
    uri: str
    config: LabelConfig


class Worker:
    """A labeler with a store, which lives in one process and labels shard after shard."""

    def __init__(self, config: LabelConfig) -> None:
        """Build the labeler.

        Raises:
            UserError: see `labelers.build`.
        """
        self._store = Store()
        self._labeler = build(config.labeler, self._store)

    def describe(self) -> LabelerInfo:
        """What the manifest says of the labeler."""
        return LabelerInfo(fingerprint=self._labeler.fingerprint, categories=self._labeler.categories)

    def label(self, shard: Shard, run: Run) -> Commit:
        """Label one shard; see `label_shard`."""
        return label_shard(shard, run=run, store=self._store, labeler=self._labeler)


def label_shard(shard: Shard, *, run: Run, store: Store, labeler: Labeler) -> Commit:
    """Label a shard and commit it; of several attempts at one shard, the first commit stands.

    Memory is bounded by the batch: rows go to local files as they come, and these are uploaded whole.

    Returns:
        The commit that stands, whoever wrote it.

    Raises:
        ShardError: the shard cannot be read.
        StoreError: storage failed, after its retries.
    """
    start = time.monotonic()
    attempt = uuid.uuid4().hex[:12]
    header = sinks.Header(
        run_id=run.id,
        shard_id=shard.id,
        fingerprint=labeler.fingerprint,
        version=__version__,
        categories=labeler.categories,
        quality=labeler.quality,
    )
    options = sources.ReadOptions(
        max_image_bytes=run.config.limits.max_image_bytes,
        run_uri=run.uri,
        image_column=run.config.input.image_column,
        key_column=run.config.input.key_column,
    )
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="patchlabel-") as folder:
        files = {
            name: Path(folder) / f"{shard.id}-{attempt}.{sinks.SINKS[name].suffix}"
            for name in run.config.output.formats
        }
        with ExitStack() as stack:
            writers = [stack.enter_context(sinks.SINKS[name].open(path, header)) for name, path in files.items()]
            records = sources.SOURCES[shard.format](shard, store=store, options=options)
            for rows in label_records(shard, records, labeler=labeler, config=run.config):
                for write in writers:
                    write(rows)
                for row in rows:
                    counts[row.status] += 1
                    counts["instances"] += len(row.instances)
                    if row.error is not None:
                        reasons[row.error.partition(":")[0]] += 1
        outputs: dict[str, Output] = {}
        for name, path in files.items():
            place = f"{sinks.SINKS[name].folder}/{path.name}"
            outputs[name] = Output(path=place, bytes=path.stat().st_size, sha256=_sha256(path))
            store.put(join(run.uri, place), path)
    commit = Commit(
        shard_id=shard.id,
        attempt=attempt,
        outputs=outputs,
        images=counts["labelled"] + counts["empty"] + counts["quarantined"],
        labelled=counts["labelled"],
        empty=counts["empty"],
        quarantined=counts["quarantined"],
        instances=counts["instances"],
        reasons=dict(sorted(reasons.items())),
        fingerprint=labeler.fingerprint,
        seconds=round(time.monotonic() - start, 3),
        version=__version__,
    )
    if ledger.commit(store, run.uri, commit):
        return commit
    for output in outputs.values():
        store.delete(join(run.uri, output.path))
    standing = ledger.read_commit(store, run.uri, shard.id)
    assert standing is not None, "a commit was refused because there is one"
    return standing


def label_records(
    shard: Shard, records: Iterable[ImageRecord], *, labeler: Labeler, config: LabelConfig
) -> Iterator[list[ImageLabels]]:
    """Image records -> rows of the output, batch after batch, in the order of the records."""
    batch: list[tuple[int, ImageRecord, Pixels | str]] = []
    for row, (record, decoded) in enumerate(_decoded(records, config)):
        batch.append((row, record, decoded))
        if len(batch) == config.labeler.batch_size:
            yield _label(shard, batch, labeler)
            batch = []
    if batch:
        yield _label(shard, batch, labeler)


def _decoded(records: Iterable[ImageRecord], config: LabelConfig) -> Iterator[tuple[ImageRecord, Pixels | str]]:
    """Each record with its pixels, or with the reason why there are none; decoded in threads, a few ahead."""

    def decode(record: ImageRecord) -> Pixels | str:
        if record.error is not None:
            return record.error
        try:
            return images.decode(
                record.data, max_bytes=config.limits.max_image_bytes, max_pixels=config.limits.max_image_pixels
            )
        except ImageError as error:
            return str(error)

    ahead: deque[tuple[ImageRecord, Future[Pixels | str]]] = deque()
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        try:
            for record in records:
                ahead.append((record, pool.submit(decode, record)))
                if len(ahead) > BATCHES_AHEAD * config.labeler.batch_size:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _label(shard: Shard, batch: Sequence[tuple[int, ImageRecord, Pixels | str]], labeler: Labeler) -> list[ImageLabels]:
    """Label the images of a batch that could be decoded, and account for the others."""
    good = [pixels for _, _, pixels in batch if not isinstance(pixels, str)]
    found = iter(_checked(labeler, good) if good else ())
    rows = []
    for row, record, pixels in batch:
        image_id = record.image_id if record.image_id is not None else shard.number << ROW_BITS | row
        if isinstance(pixels, str):
            rows.append(_row(record, image_id, (0, 0), NO_INSTANCES, error=pixels))
        else:
            height, width, _ = pixels.shape
            rows.append(_row(record, image_id, (height, width), next(found)))
    return rows


def _checked(labeler: Labeler, images: Sequence[Pixels]) -> list[Instances]:
    """What the labeler makes of the images, if it keeps its promises; a class of the user's own might not.

    Raises:
        RunError: it does not.
    """
    found = labeler.label(images)
    name = type(labeler).__name__
    if len(found) != len(images):
        raise RunError(f"the labeler {name} gave {len(found)} results for {len(images)} images; it must give one each")
    for x in found:
        columns: dict[str, npt.NDArray[Any]] = {
            "category_ids": x.category_ids,
            "scores": x.scores,
            "boxes": x.boxes,
            "areas": x.areas,
            **x.quality,
        }
        wrong = [column for column, values in columns.items() if len(values) != len(x)]
        wrong += [column for column in labeler.quality if column not in x.quality and len(x)]
        wrong += [column for column in ("scores", "boxes") if not np.isfinite(columns[column]).all()]
        if wrong:
            raise RunError(
                f"the labeler {name} gave instances whose {wrong[0]} is missing, not finite, or not as long as counts"
            )
    return found


def _row(
    record: ImageRecord, image_id: int, size: tuple[int, int], instances: Instances, error: str | None = None
) -> ImageLabels:
    return ImageLabels(
        key=record.key,
        image_id=image_id,
        uri=record.uri,
        height=size[0],
        width=size[1],
        instances=instances,
        status="quarantined" if error is not None else "labelled" if len(instances) else "empty",
        error=error,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
