"""One shard, from its bytes to its commit. Knows neither Ray nor torch.

read (streamed) -> decode (threads, a bounded number ahead) -> label (batches) -> write (local files) -> upload ->
commit
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipeline import __version__, ledger, scratch, sinks, sources, trails
from pipeline.config import LabelConfig
from pipeline.decoding import Decoding
from pipeline.labelers import Labeler, build
from pipeline.labelling import label_carefully, label_records
from pipeline.records import Commit, ImageLabels, LabelerInfo, Output, Shard
from pipeline.store import Store, join
from pipeline.trails import Step, Trail


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a worker needs to know of the run that it works for."""

    id: str
    uri: str
    config: LabelConfig


class Worker:
    """A labeler, a store and a decoder, which live in one process and label shard after shard."""

    def __init__(self, config: LabelConfig) -> None:
        """Build the labeler.

        Raises:
            UserError: see `labelers.build`.
        """
        scratch.sweep()
        self._store = Store()
        self._labeler = build(config.labeler, self._store)
        self._decoding = Decoding(config.limits)

    def describe(self) -> LabelerInfo:
        """What the manifest says of the labeler."""
        return LabelerInfo(fingerprint=self._labeler.fingerprint, categories=self._labeler.categories)

    def label(self, shard: Shard, run: Run, strikes: int) -> Commit:
        """Label one shard; see `label_shard`."""
        return label_shard(
            shard, run=run, store=self._store, labeler=self._labeler, decoding=self._decoding, strikes=strikes
        )


def label_shard(
    shard: Shard, *, run: Run, store: Store, labeler: Labeler, decoding: Decoding | None = None, strikes: int = 0
) -> Commit:
    """Label a shard and commit it; of several attempts at one shard, the first commit stands.

    Memory is bounded by the batch and `run.prefetch_bytes`: rows go to local files as they come, and these are uploaded
    whole. A shard that is committed already, by another driver or by an attempt whose answer was lost, is not labelled
    again.

    Args:
        shard: what to label.
        run: the run that it belongs to.
        store: where the shard is, and the run.
        labeler: what labels it.
        decoding: what decodes its images; None: something for this shard alone.
        strikes: how many workers the shard has cost; if any, each step is noted before it is taken (see `trails`).

    Returns:
        The commit that stands, whoever wrote it.

    Raises:
        ShardError: the shard cannot be read.
        RunError: the labeler does not keep its promises.
        StoreError: storage failed, after its retries.
    """
    start = time.monotonic()
    if (standing := ledger.read_commit(store, run.uri, shard.id)) is not None:
        return standing
    attempt = uuid.uuid4().hex[:12]
    header = sinks.Header(
        run_id=run.id,
        shard_id=shard.id,
        fingerprint=labeler.fingerprint,
        version=__version__,
        categories=labeler.categories,
        quality=labeler.quality,
    )
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    with scratch.folder() as folder:
        files = {
            name: folder / f"{shard.id}-{attempt}.{sinks.SINKS[name].suffix}" for name in run.config.output.formats
        }
        with ExitStack() as stack:
            writers = [stack.enter_context(sinks.SINKS[name].open(path, header)) for name, path in files.items()]
            decoder = decoding or stack.enter_context(Decoding(run.config.limits))
            for rows in _rows(shard, run, store, labeler, decoder, strikes):
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
        if strikes:
            trails.forget(store, run.uri, shard.id)
        return commit
    for output in outputs.values():
        store.delete(join(run.uri, output.path))
    standing = ledger.read_commit(store, run.uri, shard.id)
    assert standing is not None, "a commit was refused because there is one"
    return standing


def _rows(
    shard: Shard, run: Run, store: Store, labeler: Labeler, decoding: Decoding, strikes: int
) -> Iterator[list[ImageLabels]]:
    """The rows of a shard, batch after batch: carefully if it has cost a worker, and image by image where it did."""
    options = sources.ReadOptions(
        max_image_bytes=run.config.limits.max_image_bytes,
        run_uri=run.uri,
        image_column=run.config.input.image_column,
        key_column=run.config.input.key_column,
    )
    records = sources.SOURCES[shard.format](shard, store=store, options=options)
    if not strikes:
        yield from label_records(shard, records, labeler=labeler, config=run.config, decoding=decoding)
        return
    before = trails.read(store, run.uri, shard.id, strikes=strikes - 1)

    def note(step: Step, first: int, keys: Sequence[str], count: int) -> None:
        trails.note(
            store,
            run.uri,
            shard.id,
            Trail(strikes=strikes, step=step, first=first, count=count, keys=tuple(keys)),
        )

    yield from label_carefully(
        shard,
        records,
        labeler=labeler,
        config=run.config,
        decoding=decoding,
        suspects=before.rows if before else range(0),
        note=note,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
