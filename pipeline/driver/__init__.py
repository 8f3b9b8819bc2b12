"""The run: opened, spread over a pool of Ray actors, and brought to its end.

`verdicts` judges what dies, `pool` leases shards to actors, `outages` says how long storage has been away,
`folding` keeps reading quick, `clusters` speaks with Ray about places.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection

from pipeline import founding, ledger
from pipeline.config import LabelConfig
from pipeline.driver.clusters import RAY_JOB, caught_signals, cluster, cluster_resources
from pipeline.driver.pool import Outcome, Pool, Snapshot
from pipeline.errors import UserError
from pipeline.records import Shard
from pipeline.store import Store, redact

__all__ = ["RAY_JOB", "Outcome", "Snapshot", "caught_signals", "cluster", "cluster_resources", "run"]

log = logging.getLogger("pipeline.run")


def run(config: LabelConfig, report: Callable[[Snapshot], None]) -> Outcome:
    """Label whatever of the run at `config.output.uri` is not committed yet; `report` is called about twice a second.

    Raises:
        UserError: the input, the config, the labeler, or the run that is there, is refused.
        RunError, StoreError: what every shard would meet.
    """
    config = founding.located(config, in_ray_job=RAY_JOB in os.environ)
    uri, store = config.output.uri, Store()
    founding.check_output(config, store)
    manifest, founded = founding.open_run(config, store)
    pending = ledger.pending(manifest, ledger.listing(store, uri).ids)
    shards, done = len(manifest.shards), len(manifest.shards) - len(pending)
    todo: Collection[Shard] = pending
    if config.run.only == "quarantined":
        if not founded:
            raise UserError(f"run.only is 'quarantined', but there is no run at {redact(uri)} yet")
        set_aside = {failure.shard_id for failure in ledger.failures(store, uri)}
        todo = [shard for shard in pending if shard.id in set_aside]
    log.info("%d of %d shards to do, output at %s", len(todo), shards, redact(uri))
    if not todo:
        return Outcome(uri=uri, snapshot=Snapshot(shards=shards, done=done))
    with cluster(config.run.address), caught_signals() as signals:
        pool = Pool(config, manifest, founded=founded, todo=todo, done=done, store=store)
        pool.work(report, signals)
        return pool.outcome(signals[0] if signals else None)
