"""The run: opened, spread over a pool of Ray actors, and brought to its end.

`pool` leases shards to a `workforce`, which is Ray's `actors`; `verdicts` judges what dies, `outages` says how long
storage has been away, `outcomes` tells how it went, `folding` keeps reading quick, `clusters` speaks with Ray about
places.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from dataclasses import replace

from pipeline import founding, ledger, relabel
from pipeline.config import LabelConfig
from pipeline.driver.actors import Actors
from pipeline.driver.clusters import RAY_JOB, caught_signals, cluster, cluster_resources
from pipeline.driver.folding import Folding
from pipeline.driver.metrics import Metrics
from pipeline.driver.outcomes import Outcome, Snapshot
from pipeline.driver.pool import Pool
from pipeline.driver.recording import Recording
from pipeline.errors import LabelingError, UserError
from pipeline.shard_list import ShardList
from pipeline.store import Store, redact

__all__ = ["RAY_JOB", "Outcome", "Snapshot", "caught_signals", "cluster", "cluster_resources", "run"]

log = logging.getLogger("pipeline.run")


def run(config: LabelConfig, report: Callable[[Snapshot], None]) -> Outcome:
    """Label whatever of the run at `config.output.uri` is not committed yet.

    `report` is called after each answer of a worker, and about twice a second.

    Raises:
        UserError: the input, the config, the labeler, or the run that is there, is refused.
        RunError, StoreError: what every shard would meet.
    """
    config = founding.located(config, in_ray_job=RAY_JOB in os.environ)
    uri, store = config.output.uri, Store()
    founding.check_output(config, store)
    manifest, founded = founding.open_run(config, store)
    todo = ShardList.of(ledger.pending(manifest, ledger.listing(store, uri).ids))
    shards, done = len(manifest.shards), len(manifest.shards) - len(todo)
    if config.run.only == "quarantined":
        if not founded:
            raise UserError(f"run.only is 'quarantined', but there is no run at {redact(uri)} yet")
        set_aside = {failure.shard_id for failure in ledger.failures(store, uri)}
        todo = ShardList.of(shard for shard in todo if shard.id in set_aside)
    todo, taken = relabel.divide(config, todo, store)
    log.info("%d of %d shards to do, output at %s", len(todo), shards, redact(uri))
    if taken:
        log.info("%d shards are taken from %s as they are", len(taken), redact(str(config.run.base)))
    if not todo:
        if taken and not founded:
            raise UserError("run.base has all shards of the input already; say with run.relabel what to label anew")
        relabel.carry(config, manifest, store)
        done += relabel.take(config, manifest, taken, store)
        return Outcome(uri=uri, snapshot=Snapshot(shards=shards, done=done))
    todo = todo.large_first(start=random.random())  # not where a driver beside this one begins
    with cluster(config.run.address), caught_signals() as signals, Folding(store, uri) as folding:
        done += len(taken)
        workforce = Actors(config)
        pool = Pool(config, manifest, workforce, founded=founded, todo=todo, done=done, store=store)
        recording, metrics = Recording(store, uri, gpus=workforce.gpus), Metrics(manifest.run_id)

        carried = False

        def step(now: Snapshot) -> None:
            nonlocal carried
            if pool.founded and not carried:  # before any label of it, so that no reader sees one without
                relabel.carry(config, pool.manifest, store)
                carried = True
            folding.consider(pool.manifest, now.done)
            metrics.consider(now)
            if pool.founded:
                recording.consider(now)
            report(now)

        try:
            pool.work(step, signals)
        except LabelingError as error:
            if pool.founded and pool.snapshot().worker_seconds:  # what nobody has worked for leaves no trace
                recording.close(pool.snapshot(), f"stopped: {error}")
            raise
        outcome = pool.outcome(signals[0] if signals else None)
        metrics.consider(outcome.snapshot, last=True)
        if pool.founded:
            recording.close(outcome.snapshot, f"interrupted by {signals[0]}" if signals else "all shards tried")
        if not signals:
            relabel.take(config, pool.manifest, taken, store)
            return outcome
        snapshot = replace(outcome.snapshot, done=outcome.snapshot.done - len(taken))
        return replace(outcome, snapshot=snapshot)
