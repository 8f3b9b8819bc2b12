"""One shard, from its bytes to its commit. Knows neither Ray nor torch.

    read -> decode, prepare -> find -> encode, write -> upload -> commit

Each arrow leads to another thread, so that the model, which is `find`, need not wait for the rest. Two shards may be
under way at once: when the last image of one is read, the next one's first is; when the model has seen the last batch
of one, it sees the first of the next, while the one before is written, uploaded and committed.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Self

from pipeline import __version__, dates, ledger, originals, relabel, scratch, sinks, sources, trails
from pipeline.batches import InOrder
from pipeline.config import LabelConfig, OutputFormat
from pipeline.decoding import Decoding
from pipeline.labelers import Labeler, StagedLabeler, batch_size, build, staged, wanted_size
from pipeline.labelling import Rows, label_carefully, label_records
from pipeline.parallel import Behind, Line, Place
from pipeline.records import Commit, ImageLabels, LabelerInfo, Output, Shard
from pipeline.stages import Stages
from pipeline.store import Store, join
from pipeline.trails import Step, Trail

#: Images decoded and prepared at once, unless a worker is given more CPUs than that.
DECODING_THREADS = 4


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
        self._batch_size = batch_size(staged(self._labeler), config.labeler)  # now, if it has to be found out
        self._decoding = Decoding(
            config.limits,
            threads=max(DECODING_THREADS, ceil(config.run.cpus_per_worker or 1)),
            wanted=wanted_size(self._labeler, config.labeler),
        )
        self._joining = threading.Lock()
        self._reading, self._finding = Line(), Line()

    def describe(self) -> LabelerInfo:
        """What the run must know of the labeler."""
        return LabelerInfo(
            fingerprint=self._labeler.fingerprint,
            categories=self._labeler.categories,
            batch_size=self._batch_size,
            device=str(getattr(self._labeler, "device", "CPU")),
        )

    def join(self) -> Turn:
        """A turn behind those of the shards that are under way."""
        with self._joining:
            return Turn(self._reading.join(), self._finding.join())

    def label(self, shard: Shard, run: Run, strikes: int, turn: Turn | None = None) -> Commit:
        """Label one shard; see `label_shard`. Threads may call this at once; without a `turn`, it joins behind them."""
        with turn or self.join() as turn:
            return label_shard(
                shard,
                run=run,
                store=self._store,
                labeler=self._labeler,
                decoding=self._decoding,
                strikes=strikes,
                turn=turn,
            )


class Turn:
    """The places of a shard where several are under way: one is read at a time, and the model sees one at a time."""

    def __init__(self, reading: Place | None = None, finding: Place | None = None) -> None:
        """None: there is no other shard."""
        self.reading, self.finding = reading or Line().join(), finding or Line().join()

    def end(self) -> float:
        """The model has seen the last batch -> for how many seconds it was this shard's, images waited for included."""
        now, since = time.monotonic(), self.finding.first_since
        self.finding.leave()
        return 0.0 if since is None else now - since  # None: it had no batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.reading.leave()
        self.finding.leave()


def label_shard(
    shard: Shard,
    *,
    run: Run,
    store: Store,
    labeler: Labeler,
    decoding: Decoding | None = None,
    strikes: int = 0,
    turn: Turn | None = None,
) -> Commit:
    """Label a shard and commit it; of several attempts at one shard, the first commit stands.

    Memory is bounded by three batches and `run.prefetch_bytes`: rows go to local files as they come, and these are
    uploaded whole. A shard that is committed already, by another driver or by an attempt whose answer was lost, is not
    labelled again.

    Args:
        shard: what to label.
        run: the run that it belongs to.
        store: where the shard is, and the run.
        labeler: what labels it.
        decoding: what decodes its images; None: something for this shard alone.
        strikes: how many workers the shard has cost; if any, each step is noted before it is taken (see `trails`).
        turn: when it is this shard's, where others are under way in this process.

    Returns:
        The commit that stands, whoever wrote it.

    Raises:
        ShardError: the shard cannot be read.
        RunError: the labeler does not keep its promises.
        StoreError: storage failed, after its retries.
    """
    if (standing := ledger.read_commit(store, run.uri, shard.id)) is not None:
        return standing
    attempt = uuid.uuid4().hex[:12]
    header = header_of(shard, run, labeler)
    tally, stages = Tally(), Stages()
    with scratch.folder() as folder:
        part = relabel.part_of(shard, run.config, folder, store)
        if part is not None and not part.needed():
            return _claim(store, run.uri, part.commit, {})
        merge = part.merging(labeler.quality) if part is not None else None
        files = {
            name: folder / f"{shard.id}-{attempt}.{sinks.SINKS[name].suffix}" for name in run.config.output.formats
        }
        with ExitStack() as stack:
            writers = [stack.enter_context(sinks.SINKS[name].open(path, header)) for name, path in files.items()]
            wanted = wanted_size(labeler, run.config.labeler)
            decoder = decoding or stack.enter_context(Decoding(run.config.limits, wanted=wanted))
            turn = turn or stack.enter_context(Turn())
            in_order: InOrder[ImageLabels] = InOrder()
            behind = stack.enter_context(Behind("writing"))

            def write(finish: Callable[[], Rows]) -> None:
                if rows := in_order.add(finish()):
                    if merge is not None:
                        rows = [merge.row(row) for row in rows]
                    with stages("write"):
                        for each in writers:
                            each(rows)
                    tally.add(rows)

            found = _batches(shard, run, store, staged(labeler), decoder, strikes, turn, stages, part)
            for finish in stack.enter_context(closing(found)):
                behind(partial(write, finish))
                del finish  # or what it holds of the batch stays in memory while the next one is found
            seconds = turn.end()
        with stages("upload"):
            outputs = upload(files, run, store)
    commit = Commit(
        shard_id=shard.id,
        attempt=attempt,
        outputs=outputs,
        **tally.counts(),
        fingerprint=labeler.fingerprint,
        seconds=round(seconds, 3),
        version=__version__,
        stages=stages.seconds(),
        worker=f"{socket.gethostname()}:{os.getpid()}",
        finished=dates.now(),
    )
    standing = _claim(store, run.uri, commit, outputs)
    if strikes and standing is commit:
        trails.forget(store, run.uri, shard.id)
    return standing


def _claim(store: Store, run_uri: str, commit: Commit, outputs: Mapping[str, Output]) -> Commit:
    """Commit a shard, or remove these outputs where another attempt was first -> the commit that stands."""
    if ledger.commit(store, run_uri, commit):
        return commit
    for output in outputs.values():
        store.delete(join(run_uri, output.path))
    standing = ledger.read_commit(store, run_uri, commit.shard_id)
    assert standing is not None, "a commit was refused because there is one"
    return standing


def header_of(shard: Shard, run: Run, labeler: Labeler) -> sinks.Header:
    """What the data objects of a shard say of themselves."""
    return sinks.Header(
        run_id=run.id,
        shard_id=shard.id,
        fingerprint=labeler.fingerprint,
        version=__version__,
        categories=labeler.categories,
        quality=labeler.quality,
    )


def upload(files: Mapping[OutputFormat, Path], run: Run, store: Store) -> dict[str, Output]:
    """Put the files of a shard, by format, into the run -> what its commit says of them."""
    outputs: dict[str, Output] = {}
    for name, path in files.items():
        place = f"{sinks.SINKS[name].folder}/{path.name}"
        outputs[name] = Output(path=place, bytes=path.stat().st_size, sha256=_sha256(path))
        store.put(join(run.uri, place), path)
    return outputs


class Tally:
    """Counts rows as a commit accounts for them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def add(self, rows: Sequence[ImageLabels]) -> None:
        """Count rows."""
        for row in rows:
            self._counts[row.status] += 1
            self._counts["instances"] += len(row.instances)
            if row.error is not None:
                self._reasons[row.error.partition(":")[0]] += 1

    def counts(self) -> dict[str, Any]:
        """Fields of `Commit`."""
        names = ("labelled", "empty", "quarantined")
        return {
            "images": sum(self._counts[name] for name in names),
            **{name: self._counts[name] for name in (*names, "instances")},
            "reasons": dict(sorted(self._reasons.items())),
        }


def _batches(
    shard: Shard,
    run: Run,
    store: Store,
    labeler: StagedLabeler,
    decoding: Decoding,
    strikes: int,
    turn: Turn,
    stages: Stages,
    part: relabel.Part | None,
) -> Generator[Callable[[], Rows]]:
    """What is left to do for each batch: carefully if the shard has cost a worker, and image by image where it did."""
    options = originals.options_of(run.config.input, run.config.limits, run.uri)
    turn.reading.wait()
    records = sources.SOURCES[shard.format](shard, store=store, options=options)
    if part is not None:
        records = part.records(records)
    if not strikes:
        yield from label_records(
            shard,
            records,
            labeler=labeler,
            config=run.config,
            decoding=decoding,
            all_read=turn.reading.leave,
            may_find=turn.finding.wait,
            stages=stages,
        )
        return
    turn.finding.wait()
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
