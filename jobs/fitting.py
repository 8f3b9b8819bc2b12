"""What one worker of a training does, from the data sets to the final weights. It knows no Ray.

Every worker runs the same lines. What one of them learns that the others must know too (an error, which checkpoint to
go on from) goes through `patchdct.distributed`.
"""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeVar, cast

from jobs import planning
from jobs.command import some
from jobs.keeping import Keeper, Row, figures, root_of
from jobs.measuring import measure
from jobs.reading import ReadImage
from patchdct import build, checkpoint, data, distributed, train
from patchdct.errors import DataError, ModelError
from patchdct.predict import Predictor
from pipeline import curves, trackers
from pipeline.config import TrainConfig
from pipeline.errors import StoreError, UserError
from pipeline.patchdct_labeler import read_weights
from pipeline.store import Store, redact

T = TypeVar("T")

log = logging.getLogger("jobs.train")

#: The figures of validation that the log shows; all are in the history.
SHOWN = ("mask AP", "mask AP50", "boundary AP", "box AP")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a training ended: `step` of `steps`, in a sentence where it is not done."""

    ended: Literal["done", "interrupted", "diverged", "refused"]
    root: str
    step: int = 0
    steps: int = 0
    sentence: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


def work(
    config: TrainConfig,
    model: str,
    *,
    preempted: Callable[[], bool] = lambda: False,
    interrupted: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train as one worker of a group, from the last checkpoint on.

    Args:
        config: with URIs and paths that mean the same to every worker.
        model: the model config, as YAML.
        preempted: whether a node is about to be taken away, in which case a checkpoint is written; the same on all
            workers, which ask together, each time a line is logged.
        interrupted: whether to write a checkpoint and stop; of a lone worker only.

    Returns:
        The same on every worker. What the user or the data are to blame for is an outcome, as another try would not
        help.

    Raises:
        StoreError, RunError: what another try from the last checkpoint may overcome.
    """
    try:
        worker = _Worker(config, model)
    except UserError as error:
        return Outcome(ended="refused", root=root_of(config), sentence=str(error))
    try:
        return worker.fit(preempted, interrupted)
    except train.DivergedError as error:
        return worker.diverged(error)


def _alike(task: Callable[[], T]) -> T:
    """Do what needs no other worker, and refuse on all of them if one refuses: the others would wait for it in vain.

    Raises:
        UserError: what the first worker that refuses says.
    """
    result, problem = None, ""
    try:
        result = task()
    except (UserError, ModelError, DataError) as error:
        problem = str(error)
    problems = [one for one in distributed.gather(problem) if one]
    if problems:
        raise UserError(problems[0])
    return cast(T, result)


class _Worker:
    def __init__(self, config: TrainConfig, model: str) -> None:
        self._config, self._store = config, Store()
        self._first = distributed.rank() == 0
        train.prepare(seed=config.run.seed, threads=config.run.threads)
        self._plan = _alike(lambda: planning.make(config, model, self._store))
        self._skipped = dict.fromkeys(self._plan.missing, "it is not there")
        self._keeper = Keeper(config, self._store, self._depends_on())
        kept = self._keeper.newest()
        net = _alike(lambda: self._net(None if kept else config.model.weights))
        self._trainer = train.Trainer(net, self._plan.schedule, seed=config.run.seed)
        self._history: list[Row] = []
        if kept is not None:
            self._trainer.load_state(kept.trainer)
            self._history = kept.history
            self._skipped |= kept.skipped
        self._saved = self._trainer.step
        self._trackers = _alike(self._opened_trackers)
        if self._first:
            self._introduce()

    def fit(self, preempted: Callable[[], bool], interrupted: Callable[[], bool]) -> Outcome:
        """Take all steps that are left, and write the final weights.

        Raises:
            DivergedError: see `train.Trainer.run`.
        """
        run, steps = self._config.run, self._plan.schedule.steps
        batches, since = self._batches(), list[_Taken]()
        with self._followers() as follow:
            while self._trainer.step < steps:
                since.append(self._step(batches))
                done, stop = self._trainer.step, interrupted()
                logged = done % run.log_every == 0 or done == steps
                kept = done % run.checkpoint_every == 0 or done == steps or stop or (logged and preempted())
                every = run.evaluate_every or run.checkpoint_every
                measured = self._plan.val is not None and (done % every == 0 or done == steps)
                if logged or kept or measured:
                    row = self._row(since) | (self._measure() if measured else {})
                    since = []
                    self._history.append(row)
                    follow(row)
                if kept:
                    self._save()
                if stop and done < steps:
                    return self.outcome("interrupted", f"stopped at step {done}; run again to go on from there")
        self._keeper.finish()
        return self.outcome("done")

    def outcome(self, ended: Literal["done", "interrupted", "diverged"], sentence: str = "") -> Outcome:
        """The outcome as of now."""
        return Outcome(
            ended=ended,
            root=root_of(self._config),
            step=self._trainer.step,
            steps=self._plan.schedule.steps,
            sentence=sentence,
            figures=figures(self._history),
        )

    def diverged(self, error: train.DivergedError) -> Outcome:
        """The outcome of a step that has no result; what is on storage stays."""
        kept = f"the last checkpoint is that of step {self._saved}" if self._saved else "there is no checkpoint yet"
        return self.outcome("diverged", f"{error}; {kept}")

    def _batches(self) -> Iterator[list[train.Sample]]:
        """This worker's micro-batches, from the step on that comes next."""
        seed = self._config.run.seed
        samples = data.TrainingSet(self._plan.truth, self._plan.cfg, seed=seed, read=ReadImage(self._store))
        batches = data.MicroBatches(
            len(samples),
            batch_size=self._plan.schedule.batch_size,
            seed=seed,
            step=self._trainer.step,
            rank=distributed.rank(),
            world=distributed.world(),
            micro_batch=self._plan.schedule.micro_batch,
        )
        return iter(data.loader(samples, batches, workers=self._config.data.loaders, errors=(DataError, StoreError)))

    def _step(self, batches: Iterator[list[train.Sample]]) -> _Taken:
        start = time.perf_counter()
        micro_batches = list(islice(batches, len(self._plan.shares)))
        waited = time.perf_counter() - start
        for name, reason in (skip for batch in micro_batches for sample in batch for skip in sample["skipped"]):
            if name not in self._skipped:
                log.warning("skipped %s: %s", redact(name), reason)
                self._skipped[name] = reason
        step = self._trainer.run(micro_batches)
        return _Taken(step=step, seconds=time.perf_counter() - start, waited=waited)

    def _row(self, taken: Sequence[_Taken]) -> Row:
        """A row of the history: means over the steps since the last one, of all workers."""
        count, last = len(taken), taken[-1].step
        own = {name: sum(one.step.terms.get(name, math.nan) for one in taken) for name in last.terms}
        workers = distributed.gather((own, sum(one.waited for one in taken), _memory_mb()))
        seconds = sum(one.seconds for one in taken) / count
        return {
            "step": float(last.step + 1),
            "time": time.time(),  # noqa: TID251 shown, never compared
            "epoch": (last.step + 1) * self._plan.schedule.batch_size / len(self._plan.truth.records),
            "loss": sum(one.step.loss for one in taken) / count,
            **{name: sum(terms.get(name, 0.0) for terms, _, _ in workers) / count for name in last.terms},
            "lr": last.lr,
            "grad_norm": sum(one.step.grad_norm for one in taken) / count,
            "seconds": seconds,
            "data_seconds": max(waited for _, waited, _ in workers) / count,
            "images_per_s": self._plan.schedule.batch_size / seconds,
            "memory_mb": max(memory for _, _, memory in workers),
        }

    def _measure(self) -> Row:
        assert self._plan.val is not None
        self._trainer.share_buffers()
        found, unread = measure(
            Predictor(self._trainer.weights.eval(), self._plan.cfg),  # in float32, which is labeling's default, too
            self._plan.val,
            ReadImage(self._store),
            categories=self._plan.truth.categories,
            max_detections=max(100, self._plan.cfg.TEST.DETECTIONS_PER_IMAGE),
        )
        self._skipped |= unread
        return found

    def _save(self) -> None:
        everywhere = distributed.gather(self._skipped)
        self._skipped = {name: reason for one in everywhere for name, reason in one.items()}
        self._keeper.save(
            self._trainer,
            self._history,
            self._skipped,
            {
                "data": [redact(one.annotations or one.run or "") for one in self._config.data.train_sets],
                "images": len(self._plan.truth.records),
                "weights": redact(self._config.model.weights or ""),
                "workers": distributed.world(),
                "device": distributed.device().type,
            },
            categories=self._plan.truth.categories,
            config_text=self._plan.cfg.dump(),
        )
        self._saved = self._trainer.step
        if self._first and self._skipped:
            log.warning("%d images were skipped so far; the checkpoint names them", len(self._skipped))

    def _depends_on(self) -> dict[str, Any]:
        """What the weights depend on, but for how many workers there are, as plain data."""
        sets = [
            {key: redact(value) if isinstance(value, str) else value for key, value in asdict(one).items()}
            for one in self._config.data.train_sets
        ]
        plan = {key: value for key, value in asdict(self._plan.schedule).items() if key != "micro_batch"}
        return {
            "data": {"train": sets},
            "model": {"config": self._plan.cfg.dump(), "weights": redact(self._config.model.weights or "")},
            "schedule": {key: list(value) if isinstance(value, tuple) else value for key, value in plan.items()},
            "run": {"seed": self._config.run.seed},
        }

    def _net(self, uri: str | None) -> Any:
        """The model, from these weights as far as they fit; the log says what does not."""
        net = build.build_model(self._plan.cfg, device=str(distributed.device()))[0]
        if uri is None:
            return net
        weights = read_weights(uri, self._store, key="model.weights")
        ours = [name for _, name in self._plan.truth.categories]
        others = weights.categories is not None and [name for _, name in weights.categories] != ours
        fit = checkpoint.load_weights(net, checkpoint.of_other_classes(weights) if others else weights, strict=False)
        if self._first:
            anew = [*fit.missing, *(name for name, _, _ in fit.misshapen)]
            source = redact(uri) + (", which has other classes" if others else "")
            starts = f"; these start anew: {', '.join(anew)}" if anew else ""
            log.info("%d of %d tensors are from %s%s", fit.total - len(anew), fit.total, source, starts)
        return net

    def _introduce(self) -> None:
        images, classes = len(self._plan.truth.records), len(self._plan.truth.categories)
        log.info(
            "%d images, %d classes, %d steps on %s",
            images,
            classes,
            self._plan.schedule.steps,
            distributed.device().type,
        )
        for note in self._plan.notes:
            log.info("%s", note)
        if self._skipped:
            log.warning("%d images are skipped: %s", len(self._skipped), some(list(self._skipped)))
        if self._trainer.step:
            log.info("going on from step %d", self._trainer.step)

    def _opened_trackers(self) -> trackers.Trackers:
        if not self._first:
            return trackers.Trackers(())
        run = self._config.run
        return trackers.open_trackers(
            run.trackers, run_name=run.name, run_id=root_of(self._config), config=asdict(self._config)
        )

    @contextmanager
    def _followers(self) -> Iterator[Callable[[Row], None]]:
        """Where rows go besides the history: the log, and the trackers that were asked for."""
        if not self._first:
            yield lambda row: None
            return
        opened = self._trackers
        line = partial(curves.line, steps=self._plan.schedule.steps)

        def follow(row: Row) -> None:
            log.info("%s", line({name: value for name, value in row.items() if not name.startswith("val ")}))
            if "val mask AP" in row:
                log.info("validation: %s", ", ".join(f"{name} {row[f'val {name}']:.3f}" for name in SHOWN))
            opened.log(row)

        status: trackers.Status = "failed"
        try:
            yield follow
            # One that was interrupted ends here, too.
            status = "finished" if self._trainer.step == self._plan.schedule.steps else "killed"
        finally:
            opened.close(status)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """A step and the time it took, of which `waited` for data, in seconds."""

    step: train.Step
    seconds: float
    waited: float


def _memory_mb() -> float:
    """The greatest memory that this process held: of its GPU, else its own."""
    return distributed.gpu_memory_mb() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
