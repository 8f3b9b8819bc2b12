"""What a run has set aside, and why: shards that are not done, and images that are a row without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline import ledger, runs
from pipeline.records import Failure, ImageLabels
from pipeline.store import Store, redact


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """What was set aside.

    shards: those whose last attempt failed and that are not committed since. images: how many are quarantined in the
    shards that are committed, reasons: how many for which reason.
    """

    uri: str
    run_id: str
    shards: tuple[Failure, ...]
    images: int
    reasons: Mapping[str, int]


def read(store: Store, run_uri: str) -> Quarantine:
    """What a run has set aside, from its ledger alone.

    Raises:
        UserError: there is no run.
        StoreError: a commit or a failure is damaged, or the storage failed.
    """
    manifest = ledger.read_manifest(store, run_uri)
    failures = {failure.shard_id: failure for failure in ledger.failures(store, run_uri)}
    reasons: Counter[str] = Counter()
    for commit in runs.read_commits(store, run_uri, manifest):
        failures.pop(commit.shard_id, None)
        reasons.update(commit.reasons)
    return Quarantine(
        uri=redact(run_uri),
        run_id=manifest.run_id,
        shards=tuple(failures.values()),
        images=reasons.total(),
        reasons=dict(reasons.most_common()),
    )


def images(store: Store, run_uri: str) -> Iterator[ImageLabels]:
    """The rows of the quarantined images, in the order of the manifest. Only shards that have some are read.

    Raises:
        UserError: there is no run.
        StoreError: a commit or a data object is damaged, or the storage failed.
    """
    for commit in runs.read_commits(store, run_uri, ledger.read_manifest(store, run_uri)):
        if commit.quarantined:
            yield from (row for row in runs.rows(store, run_uri, commit) if row.status == "quarantined")
