"""Ray actors as a workforce."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Condition
from typing import Any, TypeAlias

import ray
from ray import exceptions as ray_errors
from ray._private.state import state as cluster_state

from pipeline.config import LabelConfig
from pipeline.driver.clusters import cluster_resources, pool_size
from pipeline.driver.workforce import Answer
from pipeline.records import Commit, LabelerInfo, Shard
from pipeline.worker import Run, Worker

_Asked: TypeAlias = "tuple[int, Shard | None, Future[Any]]"


class Actor:
    """A worker's process. A task builds the labeler, not `__init__`, so that its error arrives as it was raised."""

    def __init__(self) -> None:
        """Nothing that can fail."""
        self._turn, self._turns = 0, Condition()

    def place(self) -> str:
        """The node that the process is on."""
        return str(ray.get_runtime_context().get_node_id())

    def start(self, config: LabelConfig, folder: str) -> LabelerInfo:
        """Build the worker -> what it is. Relative paths are the driver's, where its folder is here."""
        if Path(folder).is_dir():
            os.chdir(folder)
        self._worker = Worker(config)
        return self._worker.describe()

    def label(self, shard: Shard, run: Run, strikes: int, turn: int) -> Commit:
        """Label one shard; see `worker.label_shard`. Ray may swap calls, so each one says when its turn is."""
        with self._turns:
            self._turns.wait_for(lambda: self._turn == turn)
            self._turn += 1
            place = self._worker.join()
            self._turns.notify_all()
        return self._worker.label(shard, run, strikes, place)


class Actors:
    """The workforce of a run: an actor for each worker, on the connected cluster. See `workforce.Workforce`.

    Answers are put into a queue as they come in, by Ray's threads: `ray.wait` would go through everything that is under
    way each time.
    """

    def __init__(self, config: LabelConfig, actor: type[Actor] = Actor) -> None:
        """Nobody is hired yet.

        Raises:
            UserError: a worker for which this machine has no room.
        """
        self._config = config
        self.least, self.limit, self._resources = pool_size(config)
        self.gpus = self._resources["num_gpus"]
        # Two shards at once; whatever dies is told, not started again by Ray. Made once, as Ray ships each class anew.
        how = {"max_concurrency": 2, "max_restarts": 0, "max_task_retries": 0, **self._resources}
        self._actor = ray.remote(actor).options(**how)
        self._hired = 0
        self._handles: dict[int, Any] = {}
        self._answers: SimpleQueue[_Asked] = SimpleQueue()

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()

    def hire(self) -> int:
        """Ask for a place; an actor without one tells an autoscaler so."""
        worker, self._hired = self._hired, self._hired + 1
        handle: Any = self._actor.remote()
        self._handles[worker] = handle
        self._await(worker, None, handle.place.remote())
        return worker

    def start(self, worker: int) -> None:
        """Have the labeler built."""
        self._await(worker, None, self._handles[worker].start.remote(self._config, str(Path.cwd())))

    def label(self, worker: int, shard: Shard, run: Run, *, strikes: int, turn: int) -> None:
        """Have a shard labelled."""
        self._await(worker, shard, self._handles[worker].label.remote(shard, run, strikes, turn))

    def _await(self, worker: int, shard: Shard | None, task: ray.ObjectRef[Any]) -> None:
        task.future().add_done_callback(lambda future: self._answers.put((worker, shard, future)))

    def answers(self, timeout_s: float) -> list[Answer]:
        """What has come in."""
        found: list[Answer] = []
        try:
            found += self._answer(self._answers.get(timeout=timeout_s))
            while True:
                found += self._answer(self._answers.get_nowait())
        except Empty:
            return found

    def _answer(self, asked: _Asked) -> list[Answer]:
        """What came of a call; nothing where the worker has been dismissed since."""
        worker, shard, future = asked
        if worker not in self._handles:
            return []
        try:
            return [Answer(worker=worker, shard=shard, result=future.result())]
        except ray_errors.RayError as error:
            return [Answer(worker=worker, shard=shard, error=error)]

    def dismiss(self, worker: int) -> None:
        """Kill the process."""
        ray.kill(self._handles.pop(worker))

    def draining(self) -> Collection[str]:
        """The nodes that will go."""
        nodes: Collection[str] = cluster_state.get_draining_nodes()
        return nodes

    def shortage(self) -> str:
        """In words."""
        there = {name: cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
        return f"each asks for {self._resources}, and the cluster has {there}"
