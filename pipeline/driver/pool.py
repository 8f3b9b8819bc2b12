"""A pool of workers that lease shards, and what is done when one of them fails, hangs or dies.

It knows its workers only as a `Workforce`, which is Ray's actors, or a simulation. Whatever goes through all workers is
done once a tick, so that an answer costs the same, however many there are.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ray import exceptions as ray_errors

from pipeline import founding, relabel
from pipeline.config import LabelConfig
from pipeline.driver.outages import Outage, Series
from pipeline.driver.outcomes import Outcome, SetAside, Snapshot
from pipeline.driver.verdicts import Verdict, verdict
from pipeline.driver.workforce import Answer, Workforce
from pipeline.errors import RunError, UserError
from pipeline.leases import Lease, Leases
from pipeline.records import Commit, LabelerInfo, Manifest, Shard
from pipeline.store import Store, redact
from pipeline.worker import Run

log = logging.getLogger("pipeline.run")

TICK_S = 0.5
PLACE_NOTICE_S = 60.0
#: How long a worker rests, or none is started, after storage did not answer.
REST_S = 5.0


@dataclass(slots=True)
class Member:
    """A worker of the pool.

    node: None until it has a place. starting: the time by which it must have started, None before and after.
    rests_until: it gets no shard before. turns: how many it has got.
    """

    node: str | None = None
    starting: float | None = None
    started: bool = False
    rests_until: float = 0.0
    turns: int = 0


class Pool:
    """As many workers as the config, the workforce and the shards that are left allow, each with one shard or two."""

    def __init__(
        self,
        config: LabelConfig,
        manifest: Manifest,
        workforce: Workforce,
        *,
        founded: bool,
        todo: Collection[Shard],
        done: int,
        store: Store,
    ) -> None:
        """`founded`: the manifest is written already; otherwise the first worker's labeler completes it.

        `todo` are the shards to label, in this order; `done` counts those of the run that are committed.
        """
        self.manifest = manifest
        self._config, self._workforce, self.founded, self._store = config, workforce, founded, store
        attempts, timeout_s = config.run.max_attempts, config.run.shard_timeout_s
        self._leases: Leases[int] = Leases(todo, max_attempts=attempts, timeout_s=timeout_s)
        self._done = done
        self._set_aside = SetAside(store, config.output.uri)
        self._members: dict[int, Member] = {}
        self._started = 0
        self._open: dict[int, Member] = {}  # those that have started and may have room, in the order of their answers
        self._draining: Collection[str] = ()
        self._in_a_row = Series()
        self._counts: Counter[str] = Counter()
        self._worker_seconds, self._device = 0.0, ""
        self._stages: defaultdict[str, float] = defaultdict(float)
        self._start = self._notice = self._workforce.now()
        self._ticked = -TICK_S
        self._hires_from = 0.0
        self._outage = Outage()

    def work(self, report: Callable[[Snapshot], None], signals: Collection[str]) -> None:
        """Label until every shard is done or set aside, or until a signal comes in.

        Raises:
            UserError, RunError: see `driver.run`.
        """
        try:
            while self._leases.unfinished and not signals:
                now = self._workforce.now()
                if now >= self._ticked + TICK_S:
                    self._worker_seconds += self._started * (now - max(self._ticked, self._start))
                    self._ticked = now
                    self._tick(now)
                    report(self.snapshot())
                self._hire(now)
                self._assign(now)
                for answer in self._workforce.answers(TICK_S):
                    self._take(answer)
                    report(self.snapshot())
        finally:
            self._set_aside.close()

    def snapshot(self) -> Snapshot:
        """Where the run stands."""
        return Snapshot(
            shards=len(self.manifest.shards),
            done=self._done,
            failed=len(self._set_aside.failures),
            workers=self._started,
            images=self._counts["images"],
            labelled=self._counts["labelled"],
            empty=self._counts["empty"],
            quarantined=self._counts["quarantined"],
            instances=self._counts["instances"],
            seconds=self._workforce.now() - self._start,
            done_here=self._counts["shards"],
            worker_seconds=self._worker_seconds,
            strikes=self._counts["strikes"],
            given_back=self._counts["given back"],
            copies=self._counts["copies"],
            device=self._device,
            stages=dict(self._stages),
        )

    def outcome(self, interrupted: str | None) -> Outcome:
        """How the run ended."""
        return Outcome(
            uri=self._config.output.uri,
            snapshot=self.snapshot(),
            failures=tuple(self._set_aside.failures),
            interrupted=interrupted,
        )

    def _hire(self, now: float) -> None:
        """Hire up to what is needed; workers without a place yet tell an autoscaler so."""
        while now >= self._hires_from and len(self._members) < min(self._workforce.limit, self._leases.unfinished):
            self._members[self._workforce.hire()] = Member()

    def _assign(self, now: float) -> None:
        """Give a shard to each worker that has none, and a second one where enough of them wait."""
        if not self._leases.waiting:
            return
        for held in (0, 1):  # nobody has two of the largest while others have none
            for worker, member in list(self._open.items()):
                if member.node in self._draining or now < member.rests_until or len(self._leases.of(worker)) != held:
                    continue
                if lease := self._leases.take(worker, now, others=len(self._members) - 1):
                    self._label(worker, lease)
                if held:
                    del self._open[worker]

    def _label(self, worker: int, lease: Lease) -> None:
        member = self._members[worker]
        run = Run(id=self.manifest.run_id, uri=self._config.output.uri, config=self._config)
        self._workforce.label(worker, lease.shard, run, strikes=lease.strikes, turn=member.turns)
        member.turns += 1

    def _tick(self, now: float) -> None:
        """Look at all workers: who must be parted with, who has nothing to do, and whether enough have started."""
        self._part_with_the_overdue(now)
        self._draining = frozenset(self._workforce.draining())
        self._let_go()
        self._copy_the_slow(now)
        if self._started >= min(self._workforce.least, len(self._members)):
            self._notice = now
        elif now - self._notice > PLACE_NOTICE_S:
            self._notice = now
            force = self._workforce
            log.warning("%d of at least %d workers have started: %s", self._started, force.least, force.shortage())

    def _let_go(self) -> None:
        """Dismiss whom nobody needs: beyond a worker for each shard, and another one that might copy it."""
        for worker in [*self._leases.in_vain, *self._idle()]:
            if worker in self._leases.in_vain or self._members[worker].node in self._draining:
                self._dismiss(worker)
        surplus = len(self._members) - min(self._workforce.limit, self._leases.unfinished + self._leases.held)
        if surplus > 0:
            idle = [] if self._leases.waiting else self._leases.ranked(self._idle())
            without_place = [worker for worker, member in self._members.items() if member.node is None]
            for worker in [*idle, *without_place][-surplus:]:
                self._dismiss(worker)

    def _idle(self) -> list[int]:
        return [worker for worker in self._open if not self._leases.of(worker)]

    def _copy_the_slow(self, now: float) -> None:
        """Give what is slow at the end of a run to idle workers, too: its own worker or node may be what is slow."""
        copies = self._leases.copy_the_slow(self._idle(), now)
        for worker, lease in copies:
            self._label(worker, lease)
        self._counts["copies"] += len(copies)
        if copies:
            log.info("shards that take long and are labelled by another worker, too: %d", len(copies))

    def _part_with_the_overdue(self, now: float) -> None:
        """Kill what has taken too long over a shard, or over its start; a second shard is not to blame."""
        reason = f"no result within run.shard_timeout_s = {self._config.run.shard_timeout_s}"
        for worker in self._leases.overdue(now):
            first, *others = self._leases.of(worker)
            self._strike(worker, first, reason)
            for lease in others:
                self._give_back(worker, lease, "its worker had to be killed")
            self._dismiss(worker)
        for worker, member in list(self._members.items()):
            if member.starting is not None and now >= member.starting:
                self._dismiss(worker)
                self._in_a_row.goes_on("workers hung while they started", reason)

    def _take(self, answer: Answer) -> None:
        """Take the result of a call, or judge its failure."""
        worker, result, shard = answer.worker, answer.result, answer.shard
        if (member := self._members.get(worker)) is None:  # dismissed for an answer that came with this one
            return
        if answer.error is not None:
            judged = verdict(answer.error)
            if shard is not None:
                self._label_failed(worker, shard, judged)
            else:
                self._start_failed(worker, answer.error, judged)
        elif isinstance(result, Commit):
            assert shard is not None
            self._open[worker] = member
            self._committed(worker, shard, result)
        elif isinstance(result, LabelerInfo):
            self._welcome(result)
            member.started, member.starting, self._open[worker] = True, None, member
            self._started += 1
            self._in_a_row.ends()
        else:
            member.node, member.starting = result, self._workforce.now() + self._config.run.shard_timeout_s
            self._workforce.start(worker)

    def _committed(self, worker: int, shard: Shard, commit: Commit) -> None:
        self._in_a_row.ends()
        self._outage.over()
        if self._leases.done(worker, shard, self._workforce.now()):
            self._done += 1
            self._counts["shards"] += 1
            for step, seconds in commit.stages.items():
                self._stages[step] += seconds
            for name in ("images", "labelled", "empty", "quarantined", "instances"):
                self._counts[name] += getattr(commit, name)

    def _welcome(self, labeler: LabelerInfo) -> None:
        """The first worker's labeler founds the run, or is checked against it; the others must be the same."""
        if self._config.labeler.batch_size == "auto" and not self._started:
            log.info("labeler.batch_size: auto is %s on the first worker", labeler.batch_size)
        self._device = self._device or labeler.device
        if not self._started:
            relabel.check(self._config, labeler, self._store)
        if not self.founded:
            self.manifest = founding.found(self._config, self.manifest, labeler, self._store)
            self.founded = True
        founding.check_labeler(self._config, self.manifest, labeler)

    def _start_failed(self, worker: int, error: ray_errors.RayError, judged: Verdict) -> None:
        self._dismiss(worker)
        if judged.blame == "storage" and self.founded:
            self._wait_for_storage(judged.reason)
        elif isinstance(error, ray_errors.RayTaskError):
            if isinstance(error.cause, UserError):
                raise UserError(judged.reason) from None
            raise RunError(f"a worker cannot start: {judged.reason}") from None
        elif judged.blame != "nobody":
            self._in_a_row.goes_on("workers died while they started", judged.reason)

    def _label_failed(self, worker: int, shard: Shard, judged: Verdict) -> None:
        """A shard failed, or all that the worker held, as nobody can tell of which of them it died."""
        for lease in self._leases.of(worker):
            if judged.alive and lease.shard.id != shard.id:
                continue
            if judged.blame in ("nobody", "storage"):
                self._give_back(worker, lease, judged.reason)
            else:
                self._strike(worker, lease, judged.reason, final=judged.blame == "shard for good")
        if judged.alive:
            self._open[worker] = self._members[worker]
        else:
            self._dismiss(worker)
        if judged.blame == "storage":
            self._members[worker].rests_until = self._workforce.now() + REST_S
            self._wait_for_storage(judged.reason)
        if judged.recurring:
            self._in_a_row.goes_on(judged.recurring, judged.reason)

    def _give_back(self, worker: int, lease: Lease, reason: str) -> None:
        self._counts["given back"] += 1
        if self._leases.give_back(worker, lease.shard, self._workforce.now()) == "again":
            log.warning("%s; %s is labelled again", reason, redact(lease.shard.uri))

    def _strike(self, worker: int, lease: Lease, reason: str, *, final: bool = False) -> None:
        self._counts["strikes"] += 1
        fate = self._leases.strike(worker, lease.shard, self._workforce.now(), final=final)
        if fate == "aside":
            self._set_aside.add(lease, reason)
        elif fate == "again":
            log.warning("%s; the shard is tried again", reason)
        else:
            log.warning("%s; another worker has the shard, too", reason)

    def _wait_for_storage(self, reason: str) -> None:
        """Start no worker for a while, and stop the run where nothing was committed for too long."""
        now, patience = self._workforce.now(), self._config.run.storage_patience_s
        self._hires_from = now + REST_S
        if self._outage.reported(now) > patience:
            raise RunError(f"storage has not answered for run.storage_patience_s = {patience}: {reason}")

    def _dismiss(self, worker: int) -> None:
        """Kill a worker's process; shards that it holds must be settled before."""
        self._leases.part(worker)
        self._started -= self._members.pop(worker).started
        self._open.pop(worker, None)
        self._workforce.dismiss(worker)
