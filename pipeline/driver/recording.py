"""The notes of a driver on its run, written beside it while it goes on."""

from __future__ import annotations

import logging
import socket
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from pipeline import __version__, dates, history
from pipeline.driver.outcomes import Snapshot
from pipeline.errors import LabelingError
from pipeline.history import History, Point
from pipeline.store import Store

log = logging.getLogger("pipeline.run")

WRITE_EVERY_S = 60.0
#: Points are taken so often at first, and half as often whenever there are MOST_POINTS.
POINT_EVERY_S, MOST_POINTS = 5.0, 720


class Recording:
    """Notes where a run stands, and writes that in a thread, as storage may take its time."""

    def __init__(self, store: Store, run_uri: str, *, gpus: float) -> None:
        """Nothing is written before the first minute, or the end. `gpus`: of each worker."""
        self._store, self._run_uri = store, run_uri
        self._history = History(
            driver=uuid.uuid4().hex[:12],
            started=dates.now(),
            host=socket.gethostname(),
            version=__version__,
            device="",
            gpus=gpus,
            seconds=0.0,
            worker_seconds=0.0,
            strikes=0,
            given_back=0,
            copies=0,
            end="",
            points=(),
        )
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="recording")
        self._writing: Future[None] | None = None
        self._every_s, self._written = POINT_EVERY_S, 0.0

    def consider(self, now: Snapshot) -> None:
        """Note where the run stands, if it is time for that."""
        last = self._history.points[-1].seconds if self._history.points else -self._every_s
        if now.seconds - last >= self._every_s:
            self._note(now)
        idle = self._writing is None or self._writing.done()
        if now.seconds - self._written >= WRITE_EVERY_S and idle:
            self._written = now.seconds
            self._writing = self._executor.submit(self._write, self._history)

    def close(self, now: Snapshot, end: str) -> None:
        """Note how it ended, and write that."""
        self._note(now)
        self._history = replace(self._history, end=end)
        self._executor.shutdown()
        self._write(self._history)

    def _note(self, now: Snapshot) -> None:
        point = Point(
            seconds=round(now.seconds, 1),
            workers=now.workers,
            shards=now.done_here,
            images=now.images,
            instances=now.instances,
        )
        points = (*self._history.points, point)
        if len(points) > MOST_POINTS:
            points, self._every_s = points[::2], 2 * self._every_s
        self._history = replace(
            self._history,
            device=now.device,
            seconds=round(now.seconds, 3),
            worker_seconds=round(now.worker_seconds, 3),
            strikes=now.strikes,
            given_back=now.given_back,
            copies=now.copies,
            points=points,
        )

    def _write(self, what: History) -> None:
        try:
            history.write(self._store, self._run_uri, what)
        except LabelingError as error:
            log.warning("the history of the run was not written, which only its report misses: %s", error)
