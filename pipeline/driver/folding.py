"""Folds of commits, made beside a run while it goes on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from pipeline import ledger
from pipeline.records import Manifest
from pipeline.store import Store


class Folding:
    """Copies commits into folds in a thread, whenever that pays. A context manager, whose end does not wait for one.

    Nobody needs them: what is not folded is read commit by commit. So nothing is folded at the end, when GPUs may wait.

    Attributes:
        last: the fold that was begun last.
    """

    def __init__(self, store: Store, run_uri: str) -> None:
        self._store, self._run_uri = store, run_uri
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="folding")
        self.last: Future[int] | None = None
        self._folded, self._over = 0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._executor.shutdown(cancel_futures=True)

    def consider(self, manifest: Manifest, done: int) -> None:
        """Begin a fold, if it pays now that so many shards of the run are done, and if none is under way."""
        if self.last is not None and not self.last.done():
            return
        if ledger.worth_folding(done - self._folded, done):
            self._folded = done
            fold, stopped = ledger.fold, lambda: self._over
            self.last = self._executor.submit(fold, self._store, self._run_uri, manifest, threads=4, stopped=stopped)
