"""A pool of Ray actors that lease shards, and what is done when one of them fails, hangs or dies."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray._private.state import state as cluster_state

from pipeline import founding, ledger, trails
from pipeline.config import LabelConfig
from pipeline.driver.clusters import cluster_resources, pool_size
from pipeline.driver.folding import Folding
from pipeline.driver.outages import Outage
from pipeline.driver.verdicts import Verdict, verdict
from pipeline.errors import RunError, StoreError, UserError
from pipeline.leases import Lease, Leases
from pipeline.records import Commit, Failure, LabelerInfo, Manifest, Shard
from pipeline.store import Store, redact
from pipeline.worker import Run, Worker

log = logging.getLogger("pipeline.run")

#: So many failures that every shard might meet, one after another, stop the run.
FAILURES_IN_A_ROW = 3
TICK_S = 0.5
PLACE_NOTICE_S = 60.0
#: How long a worker rests, or none is started, after storage did not answer.
REST_S = 5.0


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


class Actor:
    """A worker's process. A task builds the labeler, not `__init__`, so that its error arrives as it was raised."""

    def place(self) -> str:
        """The node that the process is on."""
        return str(ray.get_runtime_context().get_node_id())

    def start(self, config: LabelConfig, folder: str) -> LabelerInfo:
        """Build the worker -> what it is. Relative paths are the driver's, where its folder is here."""
        if Path(folder).is_dir():
            os.chdir(folder)
        self._worker = Worker(config)
        return self._worker.describe()

    def label(self, shard: Shard, run: Run, strikes: int) -> Commit:
        """Label one shard; see `worker.label_shard`."""
        return self._worker.label(shard, run, strikes)


@dataclass(slots=True)
class Member:
    """An actor of the pool.

    node: None until it has a place. starting: the time by which it must have started, None before and after. idle: it
    has started and has no task. rests_until: it gets none before.
    """

    handle: Any
    node: str | None = None
    starting: float | None = None
    started: bool = False
    idle: bool = False
    rests_until: float = 0.0


class Pool:
    """As many actors as the config, the cluster and the shards that are left allow, each with one shard."""

    def __init__(
        self,
        config: LabelConfig,
        manifest: Manifest,
        *,
        founded: bool,
        todo: Collection[Shard],
        done: int,
        store: Store,
    ) -> None:
        """`founded`: the manifest is written already; otherwise the first worker's labeler completes it.

        `todo` are the shards to label, `done` counts those of the run that are committed.
        """
        self._config, self._manifest, self._founded, self._store = config, manifest, founded, store
        self._leases: Leases[int] = Leases(
            todo, max_attempts=config.run.max_attempts, timeout_s=config.run.shard_timeout_s
        )
        self._done = done
        self._failures: list[Failure] = []
        self._unwritten: list[Failure] = []
        self._members: dict[int, Member] = {}
        self._tasks: dict[ray.ObjectRef[Any], int] = {}
        self._hired = 0
        self._in_a_row: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._start = self._notice = time.monotonic()
        self._hires_from = 0.0
        self._outage = Outage()
        self._least, self._limit, self._resources = pool_size(config)

    def work(self, report: Callable[[Snapshot], None], signals: list[str]) -> None:
        """Label until every shard is done or set aside, or until a signal comes in.

        Raises:
            UserError, RunError: see `driver.run`.
        """
        try:
            with Folding(self._store, self._config.output.uri) as folding:
                while self._leases.unfinished and not signals:
                    self._resize()
                    self._assign()
                    ready, _ = ray.wait(list(self._tasks), num_returns=1, timeout=TICK_S, fetch_local=False)
                    for task in ready:
                        self._finish(task)
                    self._part_with_the_overdue()
                    folding.consider(self._manifest, self._done)
                    report(self.snapshot())
        finally:
            self._write_failures()
            for failure in self._unwritten:
                log.error("could not be written down: %s was set aside: %s", redact(failure.uri), failure.error)

    def snapshot(self) -> Snapshot:
        """Where the run stands."""
        return Snapshot(
            shards=len(self._manifest.shards),
            done=self._done,
            failed=len(self._failures),
            workers=sum(member.started for member in self._members.values()),
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
        now = time.monotonic()
        while now >= self._hires_from and len(self._members) < min(self._limit, self._leases.unfinished):
            handle: Any = ray.remote(Actor).options(max_restarts=0, max_task_retries=0, **self._resources).remote()
            self._members[self._hired] = Member(handle)
            self._tasks[handle.place.remote()] = self._hired
            self._hired += 1
        started = sum(member.started for member in self._members.values())
        if started >= min(self._least, len(self._members)):
            self._notice = now
        elif now - self._notice > PLACE_NOTICE_S:
            self._notice = now
            log.warning(
                "%d of at least %d workers have started: each asks for %s, and the cluster has %s",
                started,
                self._least,
                self._resources,
                {name: cluster_resources().get(name, 0) for name in ("CPU", "GPU")},
            )

    def _assign(self) -> None:
        """Give each idle worker a shard."""
        run, now = Run(id=self._manifest.run_id, uri=self._config.output.uri, config=self._config), time.monotonic()
        for worker, member in self._members.items():
            if member.idle and now >= member.rests_until and (lease := self._leases.take(worker, now)):
                self._tasks[member.handle.label.remote(lease.shard, run, lease.strikes)] = worker
                member.idle = False

    def _finish(self, task: ray.ObjectRef[Any]) -> None:
        """Take the result of a task, or judge its failure."""
        worker = self._tasks.pop(task)
        member = self._members[worker]
        try:
            result = ray.get(task)
        except ray_errors.RayError as error:
            judged = verdict(error)
            if member.started:
                self._label_failed(worker, judged)
            else:
                self._start_failed(worker, error, judged)
            return
        match result:
            case Commit():
                self._committed(worker, result)
            case LabelerInfo():
                self._welcome(result)
                member.started, member.idle, member.starting = True, True, None
                self._in_a_row.clear()
            case _:
                member.node, member.starting = result, time.monotonic() + self._config.run.shard_timeout_s
                self._tasks[member.handle.start.remote(self._config, str(Path.cwd()))] = worker

    def _committed(self, worker: int, commit: Commit) -> None:
        self._members[worker].idle = True
        self._leases.done(worker)
        self._done += 1
        self._in_a_row.clear()
        self._outage.over()
        for name in ("images", "labelled", "empty", "quarantined", "instances"):
            self._counts[name] += getattr(commit, name)

    def _welcome(self, labeler: LabelerInfo) -> None:
        """The first worker's labeler founds the run, or is checked against it; the others must be the same."""
        if not self._founded:
            self._manifest = founding.found(self._config, self._manifest, labeler, self._store)
            self._founded = True
        founding.check_labeler(self._config, self._manifest, labeler)

    def _start_failed(self, worker: int, error: ray_errors.RayError, judged: Verdict) -> None:
        self._dismiss(worker)
        if judged.blame == "storage" and self._founded:
            self._wait_for_storage(judged.reason)
        elif isinstance(error, ray_errors.RayTaskError):
            if isinstance(error.cause, UserError):
                raise UserError(judged.reason) from None
            raise RunError(f"a worker cannot start: {judged.reason}") from None
        elif judged.blame != "nobody":
            self._stop_if_it_recurs("workers died while they started", judged.reason)

    def _label_failed(self, worker: int, judged: Verdict) -> None:
        if judged.blame in ("nobody", "storage"):
            shard = self._leases.give_back(worker)
            log.warning("%s; %s is labelled again", judged.reason, redact(shard.uri) if shard else "nothing")
        else:
            self._strike(worker, judged.reason, final=judged.blame == "shard for good")
        if judged.alive:
            self._members[worker].idle = True
        else:
            self._dismiss(worker)
        if judged.blame == "storage":
            self._members[worker].rests_until = time.monotonic() + REST_S
            self._wait_for_storage(judged.reason)
        if judged.recurring:
            self._stop_if_it_recurs(judged.recurring, judged.reason)

    def _strike(self, worker: int, reason: str, *, final: bool = False) -> None:
        lease = self._leases.strike(worker, final=final)
        if lease is None:
            log.warning("%s; the shard is tried again", reason)
            return
        failure = self._failure(lease, reason)
        log.error("set aside: %s: %s", redact(failure.uri), failure.error)
        self._failures.append(failure)
        self._unwritten.append(failure)
        self._write_failures()

    def _failure(self, lease: Lease, reason: str) -> Failure:
        """Why a shard is set aside, and at which image it was, where its trail tells."""
        trail = trails.read(self._store, self._config.output.uri, lease.shard.id, strikes=lease.strikes)
        return Failure(
            shard_id=lease.shard.id,
            uri=lease.shard.uri,
            attempts=lease.strikes + 1,
            error=reason if trail is None else f"{reason.removesuffix('.')}, while {trail}",
            images=() if trail is None else trail.keys,
        )

    def _write_failures(self) -> None:
        """Put down what was set aside; kept for later while storage does not answer."""
        try:
            while self._unwritten:
                ledger.record_failure(self._store, self._config.output.uri, self._unwritten[0])
                del self._unwritten[0]
        except StoreError as error:
            log.warning("%s", error)

    def _wait_for_storage(self, reason: str) -> None:
        """Start no worker for a while, and stop the run where nothing was committed for too long."""
        now, patience = time.monotonic(), self._config.run.storage_patience_s
        self._hires_from = now + REST_S
        if self._outage.reported(now) > patience:
            raise RunError(f"storage has not answered for run.storage_patience_s = {patience}: {reason}")

    def _stop_if_it_recurs(self, what: str, reason: str) -> None:
        self._in_a_row[what] += 1
        if self._in_a_row[what] >= FAILURES_IN_A_ROW:
            raise RunError(f"{FAILURES_IN_A_ROW} {what}, one after another: {reason}")

    def _part_with_the_overdue(self) -> None:
        """Kill what has taken too long over a shard, or over its start."""
        now, reason = time.monotonic(), f"no result within run.shard_timeout_s = {self._config.run.shard_timeout_s}"
        for worker in self._leases.overdue(now):
            self._strike(worker, reason)
            self._dismiss(worker)
        for worker, member in list(self._members.items()):
            if member.starting is not None and now >= member.starting:
                self._dismiss(worker)
                self._stop_if_it_recurs("workers hung while they started", reason)

    def _dismiss(self, worker: int) -> None:
        """Kill a worker's process; a shard that it holds must be settled before."""
        member = self._members.pop(worker)
        self._tasks = {task: of for task, of in self._tasks.items() if of != worker}
        ray.kill(member.handle)
