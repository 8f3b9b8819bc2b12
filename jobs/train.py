"""Train a model: `python -m jobs.train --config FILE [--set key=value]...`. Run again, it goes on where it stopped.

With `run.workers: 0` it trains in this process; otherwise Ray Train starts the workers, and starts them again from the
last checkpoint when one of them or a node dies. Exit status: 0 all steps are done; 1 they are not; 2 refused input.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jobs import command, fitting, keeping
from patchdct.config import check_config, load_config
from patchdct.errors import DataError, ModelError
from pipeline import driver, logs
from pipeline.config import DatasetConfig, TrainConfig, WorkersRange, load
from pipeline.errors import RunError, UserError
from pipeline.founding import check_address, check_outlives_job, check_writable, worker_needs
from pipeline.store import Store, absolute, join, redact

log = logging.getLogger("jobs.train")

#: Ray Train's defaults would change the working directory, print twice, and wait long for nodes that are gone.
_RAY_TRAIN = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
}


def run(config: TrainConfig) -> fitting.Outcome:
    """Train until all steps are done, or until it cannot go on.

    Raises:
        UserError, ModelError: the input is refused.
        RunError, StoreError: workers died too often, or storage does not work.
    """
    config = located(config, in_ray_job=driver.RAY_JOB in os.environ)
    cfg = load_config(config.model.config, config.model.overrides)
    check_config(cfg)
    check_address(config.run.address)
    check_writable("run.storage", keeping.root_of(config), Store())
    if config.run.workers == 0:
        with driver.caught_signals() as signals:
            return fitting.work(config, cfg.dump(), interrupted=lambda: bool(signals))
    return _on_ray(config, cfg.dump())


def located(config: TrainConfig, *, in_ray_job: bool) -> TrainConfig:
    """The config with absolute URIs, so that they mean the same to every worker.

    Raises:
        UserError: a relative path for the storage of a Ray job, whose working directory is removed after it.
    """
    if in_ray_job:
        check_outlives_job("run.storage", config.run.storage)

    def placed(one: DatasetConfig) -> DatasetConfig:
        return replace(
            one,
            annotations=one.annotations and absolute(one.annotations),
            images=one.images and absolute(one.images),
            run=one.run and absolute(one.run),
        )

    weights = config.model.weights
    data = config.data
    return replace(
        config,
        data=replace(
            data,
            train=tuple(placed(one) for one in data.train_sets),
            val=tuple(placed(one) for one in data.val_sets) or None,
        ),
        model=replace(config.model, weights=weights and absolute(weights)),
        run=replace(config.run, storage=absolute(config.run.storage)),
    )


def _on_ray(config: TrainConfig, model: str) -> fitting.Outcome:
    os.environ.update({name: os.environ.get(name, value) for name, value in _RAY_TRAIN.items()})
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    with driver.cluster(config.run.address, show_workers=True), tempfile.TemporaryDirectory() as scratch:
        workers = config.run.workers
        least = workers.min if isinstance(workers, WorkersRange) else workers
        there = driver.cluster_resources()
        gpus, cpus = worker_needs(config.run, there, in_ray_job=driver.RAY_JOB in os.environ, together=least)
        trainer = TorchTrainer(
            _work_on_ray,  # type: ignore[arg-type]  # what it returns, Ray hands back
            train_loop_config={"config": config, "model": model},
            scaling_config=ScalingConfig(
                num_workers=(workers.min, workers.max) if isinstance(workers, WorkersRange) else workers,  # type: ignore[arg-type]
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": cpus} | ({"GPU": gpus} if gpus else {}),
            ),
            # Checkpoints are the ledger's. All that Ray writes here are marks that nobody reads.
            run_config=RunConfig(
                name=os.path.basename(config.run.name),  # noqa: PTH119
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=config.run.max_failures),
            ),
        )
        log.info(
            "asking Ray for %s workers, each with %g CPUs and %g GPUs; the cluster has %g and %g",
            *(_said(workers), cpus, gpus, there.get("CPU", 0), there.get("GPU", 0)),
        )
        try:
            outcome: fitting.Outcome = trainer.fit().return_value  # type: ignore[attr-defined]
        except TrainingFailedError as error:
            raise RunError(_cause(error)) from error
        return outcome


def _work_on_ray(job: dict[str, Any]) -> fitting.Outcome:
    """What each worker of Ray Train runs."""
    logs.set_up(force=True)  # Ray Train has set up its own, whose lines have no time
    return fitting.work(job["config"], job["model"], preempted=_preemptions())


def _preemptions() -> Callable[[], bool]:
    """Whether nodes are to be taken away that were not known to be before; a question that all workers ask together."""
    from ray.train import get_preemption_info

    known: set[str] = set()

    def preempted() -> bool:
        info = get_preemption_info()
        fresh = set(info.preempted_node_ids) - known if info else set()
        known.update(fresh)
        return bool(fresh)

    return preempted


def _said(workers: int | WorkersRange) -> str:
    return f"{workers.min} to {workers.max}" if isinstance(workers, WorkersRange) else str(workers)


def _cause(error: Exception) -> str:
    """Why workers failed in the end, without tracebacks."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = {rank: " ".join(str(getattr(one, "cause", one)).split()) for rank, one in failures.items()}
    named = "; ".join(f"worker {rank}: {cause[:300]}" for rank, cause in sorted(causes.items()))
    return f"training stopped after run.max_failures deaths of workers: {named or ' '.join(str(error).split())[:600]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    options = command.parse("jobs.train", "Train a model; also resumes.", argv)

    def work() -> int:
        outcome = run(load(TrainConfig, options.config, options.set))
        if outcome.ended == "refused":
            raise UserError(outcome.sentence)
        if outcome.ended != "done":
            raise RunError(outcome.sentence)
        figures = ", ".join(f"{name} {value:.3f}" for name, value in outcome.figures.items())
        print(f"trained {outcome.step} steps: {redact(join(outcome.root, 'model.pth'))} ({figures})")
        return command.DONE

    return command.guarded(work, (ModelError, DataError))


if __name__ == "__main__":
    sys.exit(main())
