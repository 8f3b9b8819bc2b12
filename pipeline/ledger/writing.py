"""What is written while a run goes on: claims that shards are done, and words on those that are not."""

from __future__ import annotations

from pipeline.ledger.documents import COMMIT, FAILURE, checked_id, commit_uri
from pipeline.records import Commit, Failure
from pipeline.store import Store, join


def commit(store: Store, run_uri: str, commit: Commit) -> bool:
    """Claim that a shard is done, unless someone has.

    Returns:
        Whether the claim is ours. If not, another attempt's stands, and our outputs are of no use.

    Raises:
        UnreachableError: the storage stopped answering. The claim may stand, so our outputs have to stay.
    """
    return store.create(commit_uri(run_uri, commit.shard_id), COMMIT.dump_json(commit, indent=2) + b"\n")


def record_failure(store: Store, run_uri: str, failure: Failure) -> None:
    """Write why a shard is not done, in place of what was written before."""
    uri = join(run_uri, "failures", f"{checked_id(failure.shard_id)}.json")
    store.put(uri, FAILURE.dump_json(failure, indent=2) + b"\n")
