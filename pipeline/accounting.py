"""What a run has done, what it took and what it cost, from its commits and the histories of its drivers.

Counts, stages, workers and cost are of all commits; classes, scores and qualities of a sample of shards, as they take
reading every label.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import numpy as np

from pipeline import __version__, history, runs
from pipeline.errors import UserError
from pipeline.history import History
from pipeline.records import Commit
from pipeline.runs import Labels, Status
from pipeline.stages import STEPS
from pipeline.store import Store, redact
from pipeline.view import PLAIN, View

#: Shards whose labels are read for classes, scores and qualities: those whose ids' hashes are least.
SAMPLED_SHARDS = 40
#: Shards, and workers, that are named because they are slowest.
SLOWEST = 10
BINS = 20

_Entry = TypeVar("_Entry", bound=tuple[Any, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the run took.

    worker_hours: of workers that could label, as the drivers noted; gpu_hours: times the GPUs of each. busy: the part
    of that in which a shard had the model; ceiling: in which the model computed, which is the share of its own speed
    that the run has reached; starved: of `busy`, in which it waited for images. strikes, given_back, copies: see
    `History`. price: of a GPU hour, or of a worker hour without GPUs; cost: of all; per_1000: images that were labelled
    here.
    """

    worker_hours: float
    gpu_hours: float
    busy: float | None
    ceiling: float | None
    starved: float | None
    strikes: int
    given_back: int
    copies: int
    price: float | None
    cost: float | None
    per_1000: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Values in bins of equal width from `low` to `high`."""

    low: float
    high: float
    counts: tuple[int, ...]
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Everything that a report of a run shows.

    status: as `patchlabel status` tells it. view: how classes, scores and qualities were looked at. stages: seconds by
    step, over all workers. throughput: (minute since the first commit, images a minute), by the clocks of the workers.
    workers: the slowest of (worker, images, seconds). slowest: (shard URI, images, seconds), by seconds an image.
    sampled: of how many of the shards classes (instances by name), scores and qualities are. commits_sha256: over all
    commits, in the order of the manifest.
    """

    status: Status
    view: str
    config: Mapping[str, object]
    fingerprints: Mapping[str, int]
    version: str
    commits_sha256: str
    cost: Cost
    stages: Mapping[str, float]
    throughput: tuple[tuple[int, int], ...]
    workers_seen: int
    workers: tuple[tuple[str, int, float], ...]
    slowest: tuple[tuple[str, int, float], ...]
    sampled: tuple[int, int]
    classes: Mapping[str, int]
    scores: Histogram | None
    qualities: Mapping[str, Histogram]
    drivers: tuple[History, ...]

    def document(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def account(store: Store, run_uri: str, view: View = PLAIN, *, price: float | None = None) -> Account:
    """Read what there is to say of a run, while it goes on or afterwards.

    Args:
        store: where it is.
        run_uri: the run.
        view: how its labels are looked at.
        price: of a GPU hour, in any currency.

    Raises:
        UserError: there is no run.
        StoreError: something of it is damaged, or the storage failed.
    """
    labels, sums = runs.opened(store, run_uri, view), _Sums()
    status = runs.status(store, run_uri, passing=sums.adding)
    drivers = history.read(store, run_uri)
    classes, scores, qualities = _values(labels, sums.sample)
    return Account(
        status=status,
        view=str(view),
        config=labels.manifest.config,
        fingerprints=dict(sums.fingerprints),
        version=__version__,
        commits_sha256=sums.digest.hexdigest(),
        cost=_cost(sums, drivers, price),
        stages=dict(sums.stages),
        throughput=tuple(_by_minute(sums.finished)),
        workers_seen=len(sums.workers),
        workers=tuple(_slowest_workers(sums.workers)),
        slowest=tuple(_named(labels, sorted(sums.slowest, reverse=True))),
        sampled=(len(sums.sample), sums.fingerprints.total()),
        classes=classes,
        scores=scores,
        qualities=qualities,
        drivers=drivers,
    )


def digest_of(commit: Commit) -> bytes:
    """What of a commit its run answers for: which attempt counts, and the checksums of its data objects."""
    outputs = "".join(f" {name}:{one.sha256}" for name, one in sorted(commit.outputs.items()))
    return f"{commit.shard_id} {commit.attempt}{outputs}\n".encode()


@dataclass(slots=True)
class _Sums:
    """What is kept of the commits: a little for each worker and each minute, nothing for each shard."""

    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    images: int = 0
    seconds: float = 0.0
    fingerprints: Counter[str] = field(default_factory=Counter)
    stages: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    finished: Counter[int] = field(default_factory=Counter)
    workers: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    slowest: list[tuple[float, str, int, float]] = field(default_factory=list)
    least: list[tuple[int, str, Commit]] = field(default_factory=list)

    def adding(self, commits: Iterable[Commit]) -> Iterator[Commit]:
        """The commits, each added as it passes."""
        for commit in commits:
            self.add(commit)
            yield commit

    def add(self, commit: Commit) -> None:
        """Add one."""
        self.digest.update(digest_of(commit))
        self.fingerprints[commit.fingerprint] += 1
        _keep(self.least, SAMPLED_SHARDS, (-_rank(commit), commit.shard_id, commit))
        if commit.base is not None:
            return
        self.images += commit.images
        self.seconds += commit.seconds
        for step in STEPS:
            self.stages[step] += commit.stages.get(step, 0.0)
        if (minute := _minute(commit.finished)) is not None:
            self.finished[minute] += commit.images
        worker = self.workers[commit.worker]
        worker[0] += commit.images
        worker[1] += commit.seconds
        entry = (commit.seconds / max(1, commit.images), commit.shard_id, commit.images, commit.seconds)
        _keep(self.slowest, SLOWEST, entry)

    @property
    def sample(self) -> list[Commit]:
        """Commits whose shards' labels are to be read, as good as chosen at random, and always the same."""
        return [commit for _, _, commit in sorted(self.least, reverse=True)]


def _keep(heap: list[_Entry], size: int, entry: _Entry) -> None:
    """Keep the `size` greatest."""
    if len(heap) < size:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _rank(commit: Commit) -> int:
    return int.from_bytes(hashlib.sha256(commit.shard_id.encode()).digest()[:8], "big")


def _minute(finished: str) -> int | None:
    """Minutes since 1970; None where a commit does not say when it was made."""
    try:
        return int(datetime.fromisoformat(finished).timestamp() // 60)
    except ValueError:
        return None


def _by_minute(finished: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """Images of each minute from the first to the last, thinned to some thousand points by adding neighbours up."""
    if not finished:
        return
    first, last = min(finished), max(finished)
    width = max(1, -(-(last - first + 1) // 2000))
    for start in range(first, last + 1, width):
        yield start - first, round(sum(finished.get(start + i, 0) for i in range(width)) / width)


def _slowest_workers(workers: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, int, float]]:
    """By seconds an image."""
    paces = ((seconds / images, name, int(images), seconds) for name, (images, seconds) in workers.items() if images)
    for _, name, images, seconds in heapq.nlargest(SLOWEST, paces):
        yield name, images, round(seconds, 3)


def _named(labels: Labels, slowest: Sequence[tuple[float, str, int, float]]) -> Iterator[tuple[str, int, float]]:
    for _, shard_id, images, seconds in slowest:
        yield redact(labels.shard(shard_id).uri), images, seconds


def _values(labels: Labels, sample: Sequence[Commit]) -> tuple[dict[str, int], Histogram | None, dict[str, Histogram]]:
    """Instances by class, most first, and the distributions of scores and quality columns, over some shards."""
    counts: Counter[int] = Counter()
    scores: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = []
    columns: defaultdict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]] = defaultdict(list)
    for commit in sample:
        for row in labels.rows(commit):
            counts.update(row.instances.category_ids.tolist())
            scores.append(row.instances.scores)
            for name, values in row.instances.quality.items():
                columns[name].append(values)
    names = {category.id: category.name for category in labels.categories}
    classes = {names.get(id_, f"#{id_}"): count for id_, count in counts.most_common()}
    found = {name: _histogram(np.concatenate(values)) for name, values in columns.items()}
    return (
        classes,
        _histogram(np.concatenate(scores)) if scores else None,
        {name: one for name, one in found.items() if one is not None},
    )


def _histogram(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Histogram | None:
    """Of those that are finite; None where there are none. Shares are shown from 0 to 1, others as far as they go."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = float(min(0.0, values.min())), float(max(1.0, values.max()))
    counts, _ = np.histogram(values, BINS, (low, high))
    return Histogram(low=low, high=high, counts=tuple(counts.tolist()), mean=float(values.mean(dtype=np.float64)))


def _cost(sums: _Sums, drivers: Sequence[History], price: float | None) -> Cost:
    if price is not None and not price >= 0:
        raise UserError(f"--price is {price}; accepted is 0 or more")
    workers = sum(one.worker_seconds for one in drivers) / 3600
    gpus = sum(one.worker_seconds * one.gpus for one in drivers) / 3600
    cost = None if price is None or not workers else (gpus or workers) * price
    busy, model = sums.seconds / 3600, sums.stages["model"] / 3600
    return Cost(
        worker_hours=workers,
        gpu_hours=gpus,
        busy=busy / workers if workers else None,
        ceiling=model / workers if workers else None,
        starved=max(0.0, 1 - model / busy) if busy else None,
        strikes=sum(one.strikes for one in drivers),
        given_back=sum(one.given_back for one in drivers),
        copies=sum(one.copies for one in drivers),
        price=price,
        cost=cost,
        per_1000=1000 * cost / sums.images if cost is not None and sums.images else None,
    )
