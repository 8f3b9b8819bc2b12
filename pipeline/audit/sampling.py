"""A stratified random sample of the masks of a run: one pass, memory by the sample alone.

Each mask draws a lot, a hash of the seed, its shard, its image and its place, and those with the least lots of each
stratum are the sample: a simple random one without replacement, the same for the same seed, in whatever order the
shards come.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import UserError
from pipeline.records import ImageLabels, Instances

#: Of a slice; they are columns of an instance, and not of its quality.
_OWN = ("area", "score")
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slices:
    """Masks by the bands of a column: score, area in pixels, or a quality column. edges: between them, ascending."""

    column: str
    edges: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The bands in words, and the one for masks without a value.

        >>> Slices(column="score", edges=(0.7, 0.9)).names
        ('score below 0.7', 'score 0.7 to 0.9', 'score 0.9 and more', 'score unknown')
        """
        edges = [f"{edge:g}" for edge in self.edges]
        between = [f"{low} to {high}" for low, high in pairwise(edges)]
        return tuple(
            f"{self.column} {band}" for band in (f"below {edges[0]}", *between, f"{edges[-1]} and more", _UNKNOWN)
        )

    def bands(self, instances: Instances) -> npt.NDArray[np.int64]:
        """The band of each mask, int64 [N]."""
        own: dict[str, npt.NDArray[Any]] = {"score": instances.scores, "area": instances.areas}
        values = own[self.column] if self.column in _OWN else instances.quality.get(self.column, instances.unknown())
        found = np.searchsorted(np.array(self.edges), values.astype(np.float64), side="right")
        return np.where(np.isnan(values), len(self.edges) + 1, found).astype(np.int64)


def slices(text: str) -> Slices:
    """What `--slice` gives: a column and the edges of its bands.

    >>> slices("predicted_iou=0.5,0.8")
    Slices(column='predicted_iou', edges=(0.5, 0.8))

    Raises:
        UserError: it is no such thing.
    """
    column, _, numbers = text.partition("=")
    try:
        edges = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        edges = ()
    if not column or not edges or not np.isfinite(edges).all() or any(np.diff(edges) <= 0):
        raise UserError(
            f"--slice {text}: accepted is a column (score, area or a quality column) and ascending edges, as in "
            "score=0.7,0.9"
        )
    return Slices(column=column, edges=edges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A mask of the sample. lot: its order. index: its place among the masks of its image, as the view shows them."""

    lot: int
    shard_id: str
    key: str
    image_id: int
    index: int
    category_id: int
    band: int
    score: float
    height: int
    width: int
    counts: str

    @property
    def name(self) -> str:
        """What it is called in the files of the audit; no spreadsheet takes it for a date."""
        return f"m{self.image_id}-{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """An image of the sample of images, in which missed objects are counted. masks: how many the view shows in it."""

    lot: int
    shard_id: str
    key: str
    image_id: int
    masks: int

    @property
    def name(self) -> str:
        """What it is called in the files of the audit."""
        return f"i{self.image_id}"


class Sampler:
    """Takes the rows of a run, and keeps `per_class` masks of each stratum, and `scenes` images."""

    def __init__(self, per_class: int, seed: int, bands: Slices | None = None, *, scenes: int = 0) -> None:
        """`bands`: strata within a class."""
        self._per_class, self._seed, self._bands, self._most = per_class, seed, bands, scenes
        self._scenes: list[tuple[int, Scene]] = []
        self._kept: defaultdict[tuple[int, int], list[tuple[int, Drawn]]] = defaultdict(list)
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.images = 0

    def add(self, shard_id: str, row: ImageLabels) -> None:
        """Take a row; of a quarantined one there is nothing."""
        found = row.instances
        lot, *lots = _lots(self._seed, shard_id, row.key, len(found) + 1).tolist()
        if row.status != "quarantined":
            self.images += 1
            scene = Scene(lot=lot, shard_id=shard_id, key=row.key, image_id=row.image_id, masks=len(found))
            heapq.heappush(self._scenes, (-lot, scene))
            if len(self._scenes) > self._most:
                heapq.heappop(self._scenes)
        bands = [0] * len(found) if self._bands is None else self._bands.bands(found).tolist()
        for index, (category, band, lot) in enumerate(zip(found.category_ids.tolist(), bands, lots, strict=True)):
            stratum = category, band
            self.sizes[stratum] += 1
            heap = self._kept[stratum]
            if len(heap) < self._per_class or -heap[0][0] > lot:
                heapq.heappush(heap, (-lot, _drawn(shard_id, row, index, band, lot)))
                if len(heap) > self._per_class:
                    heapq.heappop(heap)

    def scenes(self) -> list[Scene]:
        """The sample of images, in the order of its lots."""
        return sorted((scene for _, scene in self._scenes), key=lambda one: (one.lot, one.name))

    def drawn(self) -> list[Drawn]:
        """The sample, in the order of its lots, so that who stops early has judged a random part of each stratum."""
        found: list[Drawn] = []
        for category in {category for category, _ in self.sizes}:
            strata = sorted(stratum for stratum in self.sizes if stratum[0] == category)
            numbers = allot([self.sizes[stratum] for stratum in strata], self._per_class)
            for stratum, number in zip(strata, numbers, strict=True):
                best = sorted(self._kept[stratum], key=lambda entry: -entry[0])
                found += [one for _, one in best[:number]]
        return sorted(found, key=lambda one: (one.lot, one.name))


def allot(sizes: Sequence[int], total: int) -> list[int]:
    """`total` in equal parts, of which none is larger than its group: what a small one leaves, the others get.

    >>> allot([100, 3, 100], 20), allot([2, 1], 20)
    ([9, 3, 8], [2, 1])
    """
    given = [0] * len(sizes)
    while (left := total - sum(given)) > 0 and (open_ := [i for i, size in enumerate(sizes) if given[i] < size]):
        for place, i in enumerate(open_):
            given[i] += min(sizes[i] - given[i], left // len(open_) + (place < left % len(open_)))
    return given


def _drawn(shard_id: str, row: ImageLabels, index: int, band: int, lot: int) -> Drawn:
    return Drawn(
        lot=lot,
        shard_id=shard_id,
        key=row.key,
        image_id=row.image_id,
        index=index,
        category_id=int(row.instances.category_ids[index]),
        band=band,
        score=round(float(row.instances.scores[index]), 6),
        height=row.height,
        width=row.width,
        counts=row.instances.counts[index],
    )


def _lots(seed: int, shard_id: str, key: str, number: int) -> npt.NDArray[np.uint64]:
    """Numbers below 2^53 that are as good as random and always the same, one a mask; a step of splitmix64 each."""
    text = f"{seed}\0{shard_id}\0{key}".encode("utf-8", "surrogatepass")
    start = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    with np.errstate(over="ignore"):
        z = np.uint64(start) + np.arange(1, number + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))) >> np.uint64(11)
