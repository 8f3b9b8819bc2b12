"""How long the steps of a shard take, measured where they are taken."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, TypeVar, cast

T = TypeVar("T")

_END = object()

#: In the order of the way of an image. `model` is the thread of the model; on a GPU it may run ahead of its results,
#: and waits for them in `encode`.
STEPS = ("read", "decode", "prepare", "model", "encode", "write", "upload")
Step: TypeAlias = Literal["read", "decode", "prepare", "model", "encode", "write", "upload"]


class Stages:
    """Sums seconds by step, over threads: steps overlap, so that together they may take longer than the clock shows."""

    def __init__(self) -> None:
        """Nothing was measured yet."""
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, step: Step) -> Iterator[None]:
        """Measure what is done within."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._add(step, time.monotonic() - start)

    def drawing(self, step: Step, items: Iterable[T]) -> Iterator[T]:
        """The items; what it takes to draw them counts. Left early, it closes a generator that gives them."""
        rest = iter(items)
        try:
            while True:
                with self(step):
                    item = next(rest, _END)
                if item is _END:
                    return
                yield cast(T, item)
                del item  # or it stays in memory while the next one is drawn
        finally:
            if isinstance(rest, Generator):
                rest.close()

    def seconds(self) -> dict[str, float]:
        """By step, in the order of STEPS; those that took no time at all are left out."""
        with self._lock:
            return {step: round(self._seconds[step], 3) for step in STEPS if self._seconds[step] > 0}

    def _add(self, step: str, seconds: float) -> None:
        with self._lock:
            self._seconds[step] += seconds
