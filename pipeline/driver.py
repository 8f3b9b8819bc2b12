"""The run: a pool of Ray actors that lease shards, and what is done when one of them fails or dies.

Each actor is made with max_restarts=0 and max_task_retries=0, so that every death arrives here with its cause and a new
actor takes the place. What counts against a shard, and what does not, is `verdict`.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias

# Of what workers print, only our own lines, which begin with the time, are to be seen; it is read at import.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"^(?!\d\d:\d\d:\d\d )")

import ray
from ray import exceptions as ray_errors
from ray._private.state import state as cluster_state

from pipeline import founding, ledger
from pipeline.config import LabelConfig, WorkersRange
from pipeline.errors import LabelingError, RunError, ShardError, StoreError, UnreachableError, UserError
from pipeline.leases import Leases
from pipeline.records import Commit, Failure, LabelerInfo, Manifest, Shard
from pipeline.store import Store, redact
from pipeline.worker import Run, Worker

log = logging.getLogger("pipeline.run")

#: So many workers that die while they start, or shards that storage refuses, one after another, stop the run.
FAILURES_IN_A_ROW = 3
TICK_S = 0.5
PLACE_NOTICE_S = 60.0
#: Set by Ray in the process that `ray job submit` starts.
RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Where a run stands. Shards count for the whole run, the rest for what this driver has seen, in `seconds`."""

    shards: int
    done: int
    failed: int = 0
    workers: int = 0
    images: int = 0
    labelled: int = 0
    empty: int = 0
    quarantined: int = 0
    instances: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended, and why which shards are not done. `interrupted` names the signal that stopped it."""

    uri: str
    snapshot: Snapshot
    failures: tuple[Failure, ...] = ()
    interrupted: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every shard is committed."""
        return self.snapshot.done == self.snapshot.shards


Blame: TypeAlias = Literal["shard", "shard for good", "storage", "nobody", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Who is to blame for a failed task, in a sentence; and whether the worker can go on.

    shard: a strike. shard for good: set aside at once. storage: a strike that stops the run if it recurs. nobody: the
    shard is leased again. run: every shard would meet it.
    """

    blame: Blame
    reason: str
    alive: bool = False


def verdict(error: ray_errors.RayError) -> Verdict:
    """Judge what Ray says of a task that failed."""
    text = " ".join(str(error).split())
    if isinstance(error, ray_errors.RayTaskError):
        cause = error.cause
        reason = str(cause) if isinstance(cause, LabelingError) else f"{type(cause).__name__}: {cause}"
        if isinstance(cause, ShardError | UserError):
            return Verdict(blame="shard for good", reason=reason, alive=True)
        if isinstance(cause, UnreachableError | RunError):
            return Verdict(blame="run", reason=reason, alive=True)
        if isinstance(cause, StoreError):
            return Verdict(blame="storage", reason=reason, alive=True)
        return Verdict(blame="shard", reason=reason)  # the process may be spoilt, such as by a CUDA error
    if isinstance(error, ray_errors.ActorUnavailableError):
        return Verdict(blame="nobody", reason="the worker could not be reached")
    if isinstance(error, ray_errors.RayActorError) and (
        error.preempted or "node has died" in text or "node was" in text
    ):
        return Verdict(blame="nobody", reason="the worker's node is gone")
    if isinstance(error, ray_errors.OutOfMemoryError):
        return Verdict(blame="shard", reason="the worker was killed because its node ran out of memory")
    detail = text.partition("Worker exit detail: ")[2] or text
    return Verdict(blame="shard", reason=f"the worker process died: {detail.partition(' Some common causes')[0]}")


class Actor:
    """A worker's process. A task builds the labeler, not `__init__`, so that its error arrives as it was raised."""

    def start(self, config: LabelConfig, folder: str) -> tuple[LabelerInfo, str]:
        """Build the worker -> what it is, and its node. Relative paths are the driver's, where its folder is here."""
        if Path(folder).is_dir():
            os.chdir(folder)
        self._worker = Worker(config)
        return self._worker.describe(), ray.get_runtime_context().get_node_id()

    def label(self, shard: Shard, run: Run) -> Commit:
        """Label one shard; see `worker.label_shard`."""
        return self._worker.label(shard, run)


@dataclass(slots=True)
class Member:
    """An actor of the pool: `node` is None until it has started, `idle` is False while it has a task."""

    handle: Any
    node: str | None = None
    idle: bool = False


class Pool:
    """As many actors as the config, the cluster and the shards that are left allow, each with one shard."""

    def __init__(
        self, config: LabelConfig, manifest: Manifest, *, founded: bool, pending: tuple[Shard, ...], store: Store
    ) -> None:
        """`founded`: the manifest is written already; otherwise the first worker's labeler completes it."""
        self._config, self._manifest, self._founded, self._store = config, manifest, founded, store
        self._leases: Leases[int] = Leases(
            pending, max_attempts=config.run.max_attempts, timeout_s=config.run.shard_timeout_s
        )
        self._done = len(manifest.shards) - len(pending)
        self._failures: list[Failure] = []
        self._members: dict[int, Member] = {}
        self._tasks: dict[ray.ObjectRef[Any], int] = {}
        self._hired = 0
        self._in_a_row: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._start = self._notice = time.monotonic()
        self._least, self._limit, self._resources = _size(config)

    def work(self, report: Callable[[Snapshot], None], signals: list[str]) -> None:
        """Label until every shard is done or set aside, or until a signal comes in.

        Raises:
            UserError, RunError: see `run`.
        """
        while self._leases.unfinished and not signals:
            self._resize()
            self._assign()
            ready, _ = ray.wait(list(self._tasks), num_returns=1, timeout=TICK_S, fetch_local=False)
            for task in ready:
                self._finish(task)
            self._part_with_the_overdue()
            report(self.snapshot())

    def snapshot(self) -> Snapshot:
        """Where the run stands."""
        return Snapshot(
            shards=len(self._manifest.shards),
            done=self._done,
            failed=len(self._failures),
            workers=sum(member.node is not None for member in self._members.values()),
            images=self._counts["images"],
            labelled=self._counts["labelled"],
            empty=self._counts["empty"],
            quarantined=self._counts["quarantined"],
            instances=self._counts["instances"],
            seconds=time.monotonic() - self._start,
        )

    def outcome(self, interrupted: str | None) -> Outcome:
        """How the run ended."""
        return Outcome(
            uri=self._config.output.uri,
            snapshot=self.snapshot(),
            failures=tuple(self._failures),
            interrupted=interrupted,
        )

    def _resize(self) -> None:
        """Hire up to what is needed (actors without a place yet tell an autoscaler so), let idle ones go beyond it."""
        draining = cluster_state.get_draining_nodes()
        for worker, member in list(self._members.items()):
            too_many = len(self._members) > min(self._limit, self._leases.unfinished)
            if member.idle and (too_many or member.node in draining):
                self._dismiss(worker)
        while len(self._members) < min(self._limit, self._leases.unfinished):
            handle: Any = ray.remote(Actor).options(max_restarts=0, max_task_retries=0, **self._resources).remote()
            self._members[self._hired] = Member(handle)
            self._tasks[handle.start.remote(self._config, str(Path.cwd()))] = self._hired
            self._hired += 1
        started = sum(member.node is not None for member in self._members.values())
        if started >= min(self._least, len(self._members)):
            self._notice = time.monotonic()
        elif time.monotonic() - self._notice > PLACE_NOTICE_S:
            self._notice = time.monotonic()
            log.warning(
                "%d of at least %d workers have started: each asks for %s, and the cluster has %s",
                started,
                self._least,
                self._resources,
                {name: cluster_resources().get(name, 0) for name in ("CPU", "GPU")},
            )

    def _assign(self) -> None:
        """Give each idle worker a shard."""
        run = Run(id=self._manifest.run_id, uri=self._config.output.uri, config=self._config)
        for worker, member in self._members.items():
            if member.idle and (shard := self._leases.take(worker, time.monotonic())):
                self._tasks[member.handle.label.remote(shard, run)] = worker
                member.idle = False

    def _finish(self, task: ray.ObjectRef[Any]) -> None:
        """Take the result of a task, or judge its failure."""
        worker = self._tasks.pop(task)
        member = self._members[worker]
        try:
            result = ray.get(task)
        except ray_errors.RayError as error:
            judged = verdict(error)
            if member.node is None:
                self._start_failed(worker, error, judged)
            else:
                self._label_failed(worker, judged)
            return
        member.idle = True
        if isinstance(result, Commit):
            self._leases.done(worker)
            self._done += 1
            self._in_a_row.clear()
            for name in ("images", "labelled", "empty", "quarantined", "instances"):
                self._counts[name] += getattr(result, name)
        else:
            labeler, member.node = result
            self._welcome(labeler)

    def _welcome(self, labeler: LabelerInfo) -> None:
        """The first worker's labeler founds the run, or is checked against it; the others must be the same."""
        if not self._founded:
            self._manifest = founding.found(self._config, self._manifest, labeler, self._store)
            self._founded = True
        founding.check_labeler(self._config, self._manifest, labeler)

    def _start_failed(self, worker: int, error: ray_errors.RayError, judged: Verdict) -> None:
        self._dismiss(worker)
        if isinstance(error, ray_errors.RayTaskError):
            if isinstance(error.cause, UserError):
                raise UserError(judged.reason) from None
            raise RunError(f"a worker cannot start: {judged.reason}") from None
        if judged.blame != "nobody":
            self._stop_if_it_recurs("workers died while they started", judged.reason)

    def _label_failed(self, worker: int, judged: Verdict) -> None:
        if judged.blame == "run":
            raise RunError(judged.reason)
        if judged.blame == "nobody":
            shard = self._leases.give_back(worker)
            log.warning("%s; %s is labelled again", judged.reason, shard.uri if shard else "nothing")
        else:
            self._strike(worker, judged.reason, final=judged.blame == "shard for good")
        if judged.alive:
            self._members[worker].idle = True
        else:
            self._dismiss(worker)
        if judged.blame == "storage":
            self._stop_if_it_recurs("shards failed for storage", judged.reason)

    def _strike(self, worker: int, reason: str, *, final: bool = False) -> None:
        failure = self._leases.strike(worker, reason, final=final)
        if failure is None:
            log.warning("%s; the shard is tried again", reason)
            return
        log.error("set aside: %s: %s", redact(failure.uri), failure.error)
        self._failures.append(failure)
        ledger.record_failure(self._store, self._config.output.uri, failure)

    def _stop_if_it_recurs(self, what: str, reason: str) -> None:
        self._in_a_row[what] += 1
        if self._in_a_row[what] >= FAILURES_IN_A_ROW:
            raise RunError(f"{FAILURES_IN_A_ROW} {what}, one after another: {reason}")

    def _part_with_the_overdue(self) -> None:
        for worker in self._leases.overdue(time.monotonic()):
            self._strike(worker, f"no result within run.shard_timeout_s = {self._config.run.shard_timeout_s}")
            self._dismiss(worker)

    def _dismiss(self, worker: int) -> None:
        """Kill a worker's process; a shard that it holds must be settled before."""
        member = self._members.pop(worker)
        self._tasks = {task: of for task, of in self._tasks.items() if of != worker}
        ray.kill(member.handle)


def run(config: LabelConfig, report: Callable[[Snapshot], None]) -> Outcome:
    """Label whatever of the run at `config.output.uri` is not committed yet; `report` is called about twice a second.

    Raises:
        UserError: the input, the config, the labeler, or the run that is there, is refused.
        RunError, StoreError: what every shard would meet.
    """
    config = founding.located(config, in_ray_job=RAY_JOB in os.environ)
    store = Store()
    founding.check_output(config, store)
    manifest, founded = founding.open_run(config, store)
    pending = ledger.pending(manifest, ledger.committed_ids(store, config.output.uri))
    log.info("%d of %d shards to do, output at %s", len(pending), len(manifest.shards), redact(config.output.uri))
    if not pending:
        shards = len(manifest.shards)
        return Outcome(uri=config.output.uri, snapshot=Snapshot(shards=shards, done=shards))
    with cluster(config.run.address), caught_signals() as signals:
        pool = Pool(config, manifest, founded=founded, pending=pending, store=store)
        pool.work(report, signals)
        return pool.outcome(signals[0] if signals else None)


def _size(config: LabelConfig) -> tuple[int, int, dict[str, float]]:
    """How many workers at least (else the user is told) and at most, and what each one asks of Ray.

    Raises:
        UserError: a worker that fits no cluster such as this.
    """
    there = cluster_resources()
    gpus = there.get("GPU", 0)
    per_worker = config.run.gpus_per_worker
    if per_worker is None:
        per_worker = 1.0 if gpus else 0.0
    cpus = config.run.cpus_per_worker or 1.0
    if config.run.address is None and RAY_JOB not in os.environ:  # a cluster of its own does not grow
        for name, asked in (("GPU", per_worker), ("CPU", cpus)):
            if asked > there.get(name, 0):
                raise UserError(
                    f"run.{name.lower()}s_per_worker is {asked:g}, but this machine has {there.get(name, 0):g}"
                )
    workers = config.run.workers
    if workers is None:
        workers = max(1, int(gpus / per_worker)) if per_worker else 1
    least, most = (workers.min, workers.max) if isinstance(workers, WorkersRange) else (1, workers)
    return least, most, {"num_gpus": per_worker, "num_cpus": cpus}


def cluster_resources() -> dict[str, float]:
    """What the connected cluster has of each resource, such as CPU and GPU."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's own
    return resources


@contextmanager
def cluster(address: str | None, *, show_workers: bool = False) -> Iterator[None]:
    """A connection to Ray: to the address, to the cluster of the Ray job that this is, or to a local one of its own.

    What workers print is shown where `show_workers` says so.

    Raises:
        UserError: no cluster answers.
    """
    target = address or ("auto" if RAY_JOB in os.environ else "local")
    try:
        local: dict[str, Any] = {"include_dashboard": False} if target == "local" else {}
        ray.init(address=target, log_to_driver=show_workers, logging_level=logging.ERROR, **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"run.address is {target!r}, where no Ray cluster answers: {' '.join(str(error).split())}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def caught_signals() -> Iterator[list[str]]:
    """The names of SIGINT and SIGTERM as they come in, instead of an exception in the middle of anything."""
    caught: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        caught.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
