"""The shards of a run as columns: some 200 bytes a shard, where objects would take several times as much."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import islice
from operator import attrgetter, eq
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.records import Shard

#: The columns, in memory and in the file: the fields of `Shard`.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("format", pa.string()),
        ("bytes", pa.int64()),
        ("etag", pa.string()),
        ("number", pa.int32()),
    ]
)
_COLUMNS = attrgetter(*SCHEMA.names)
_GROUP, _BATCH = 1 << 16, 1 << 12  # shards that are columns at once when they are written; objects when they are read

assert SCHEMA.names == [field.name for field in fields(Shard)]


class ShardList(Sequence[Shard]):
    """An immutable list of shards. Each `Shard` is made when it is asked for, and not kept."""

    __slots__ = ("_table",)

    def __init__(self, table: pa.Table) -> None:
        """`table` has the columns of SCHEMA; see also `of` and `read`."""
        self._table = table

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> ShardList:
        """The list of some shards, which are drawn one by one."""
        if isinstance(shards, ShardList):
            return shards
        rest, batches = iter(shards), []
        while group := list(map(_COLUMNS, islice(rest, _GROUP))):
            columns = zip(zip(*group, strict=True), SCHEMA.types, strict=True)
            batches.append(pa.record_batch([pa.array(values, type) for values, type in columns], schema=SCHEMA))
        return cls(pa.Table.from_batches(batches, SCHEMA))

    @classmethod
    def read(cls, path: Path) -> ShardList:
        """What `write` has written.

        Raises:
            ValueError: the file holds other columns.
            pyarrow.ArrowException, OSError: it is damaged.
        """
        table = pq.read_table(path, memory_map=False)
        if not table.schema.equals(SCHEMA) or any(column.null_count for column in table.columns):
            raise ValueError("it holds other columns than a list of shards")
        return cls(table)

    def write(self, path: Path) -> None:
        """Write a Parquet file, the same one each time."""
        pq.write_table(self._table, path, compression="zstd", row_group_size=_GROUP)

    @property
    def ids(self) -> pa.ChunkedArray:
        """The ids, as strings."""
        return self._table["id"]

    @property
    def numbers(self) -> pa.ChunkedArray:
        """The numbers, as int32."""
        return self._table["number"]

    def take(self, positions: npt.NDArray[np.int64]) -> ShardList:
        """The shards at these positions, in this order."""
        return ShardList(self._table.take(pa.array(positions)))

    def without(self, ids: Collection[str] | pa.Array | pa.ChunkedArray) -> ShardList:
        """The shards whose ids are not among these."""
        kept = pc.invert(pc.is_in(self.ids, value_set=_strings(ids)))
        return self if pc.all(kept).as_py() else ShardList(self._table.filter(kept))

    def known(self, ids: Collection[str]) -> set[str]:
        """Which of these ids are those of shards in the list."""
        candidates = _strings(ids)
        return set(candidates.filter(pc.is_in(candidates, value_set=_strings(self.ids))).to_pylist())

    def find(self, shard_id: str) -> Shard:
        """The shard of an id.

        Raises:
            KeyError: there is none.
        """
        position: int = pc.index(self.ids, shard_id).as_py()
        if position < 0:
            raise KeyError(shard_id)
        return self[position]

    def large_first(self, *, start: float = 0.0) -> ShardList:
        """The shards by size, so that none that takes long is begun last.

        Sizes are alike within powers of two. Shards of like size keep their order, but begin at `start`, a part of them
        in [0, 1), and go round: who begins elsewhere has the same ones at another time. Those of unknown size, 0, are
        taken for usual ones.
        """
        sizes = self._table["bytes"].to_numpy()
        known = sizes > 0
        usual = np.median(sizes[known]) if known.any() else 1
        _, magnitudes = np.frexp(np.where(known, sizes, usual))
        order = np.argsort(-magnitudes, kind="stable")
        alike = np.split(order, np.flatnonzero(np.diff(magnitudes[order])) + 1)
        return self.take(np.concatenate([np.roll(part, -int(start * len(part))) for part in alike]))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[Shard]:
        for batch in self._table.to_batches(max_chunksize=_BATCH):
            columns = (column.to_pylist() for column in batch.columns)
            for id, uri, format, bytes, etag, number in zip(*columns, strict=True):
                yield Shard(id=id, uri=uri, format=format, bytes=bytes, etag=etag, number=number)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> ShardList: ...
    def __getitem__(self, index: int | slice) -> Shard | ShardList:
        chosen = range(len(self))[index]
        if isinstance(chosen, int):
            return next(iter(ShardList(self._table.slice(chosen, 1))))
        if chosen.step == 1:
            return ShardList(self._table.slice(chosen.start, len(chosen)))
        return self.take(np.array(chosen, np.int64))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ShardList):
            return bool(self._table.equals(other._table))
        return isinstance(other, Sequence) and len(other) == len(self) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"<{len(self)} shards>"


def _strings(values: Collection[str] | pa.Array | pa.ChunkedArray) -> pa.Array:
    """As one array, which `is_in` needs."""
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    return pa.array(values if isinstance(values, Sequence) else list(values), pa.string())
