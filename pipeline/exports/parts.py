"""Files of bounded size, written to the local disk one after the other and uploaded when they are full."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exports.common import Folder

_GROUP_BYTES = 8 << 20  # of a row group of Parquet, before compression
_SMALL = 256  # batches of a row or two that are held before they are made one, as each takes far more than its rows


class TextParts:
    """Text files `name-00000`, ... of entries between a head and a tail. Leaving the context ends the last one.

    Args:
        folder: where they go.
        scratch: a local folder for the one that is being written.
        path: with `{}` for the number.
        head: what a file begins with.
        tail: what it ends with.
        between: what stands between two entries.
        entries: the most that a file holds.
        size: in bytes; the entry with which a file reaches it is its last.
    """

    def __init__(
        self,
        folder: Folder,
        scratch: Path,
        path: str,
        *,
        head: str,
        tail: str,
        between: str = "",
        entries: int,
        size: int = 128 << 20,
    ) -> None:
        self._folder, self._local, self._path = folder, scratch / "part", path
        self._head, self._tail, self._between = head, tail, between
        self._most, self._size = entries, size
        self._file: TextIO | None = None
        self._entries = self._parts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None and (self._file is not None or not self._parts):
            self._finish(self._opened())
        elif self._file is not None:
            self._file.close()

    def write(self, entry: str) -> None:
        """Add an entry."""
        file = self._opened()
        if self._entries:
            file.write(self._between)
        file.write(entry)
        self._entries += 1
        if self._entries >= self._most or file.tell() >= self._size:
            self._finish(file)

    def _opened(self) -> TextIO:
        if self._file is None:
            self._file = self._local.open("w", encoding="utf-8")
            self._file.write(self._head)
        return self._file

    def _finish(self, file: TextIO) -> None:
        file.write(self._tail)
        file.close()
        self._folder.put_file(self._path.format(f"{self._parts:05d}"), self._local)
        self._file, self._entries = None, 0
        self._parts += 1


class TableParts:
    """Parquet files `name-00000`, `name-00001`, ... of one schema. Leaving the context ends the last.

    Args:
        folder: where they go.
        scratch: a local folder for the one that is being written.
        path: with `{}` for the number.
        schema: of all files.
        size: in bytes; the row group with which a file reaches it is its last.
    """

    def __init__(self, folder: Folder, scratch: Path, path: str, schema: pa.Schema, *, size: int = 256 << 20) -> None:
        self._folder, self._path, self._schema, self._size = folder, path, schema, size
        self._local = scratch / path.replace("/", "-").format("part")
        self._writer: pq.ParquetWriter | None = None
        self._small: list[pa.RecordBatch] = []
        self._batches: list[pa.RecordBatch] = []
        self._held = self._parts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            if self._small or self._batches or not self._parts:
                self._write()
            self._finish()
        elif self._writer is not None:
            self._writer.close()

    def add(self, columns: Mapping[str, object]) -> None:
        """Add rows, given as columns of equal length."""
        arrays = [pa.array(columns[field.name], field.type) for field in self._schema]
        self._small.append(pa.record_batch(arrays, schema=self._schema))
        self._held += self._small[-1].nbytes
        if self._held >= _GROUP_BYTES:
            self._write()
        elif len(self._small) >= _SMALL:
            self._gather()

    def _gather(self) -> None:
        self._batches += pa.Table.from_batches(self._small, self._schema).combine_chunks().to_batches()
        self._small = []

    def _write(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._local, self._schema, compression="zstd")
        self._gather()
        self._writer.write_table(pa.Table.from_batches(self._batches, self._schema))
        self._batches, self._held = [], 0
        if self._local.stat().st_size >= self._size:
            self._finish()

    def _finish(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        self._folder.put_file(self._path.format(f"{self._parts:05d}"), self._local)
        self._parts += 1
