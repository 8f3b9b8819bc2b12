"""The ledger of a run: what it is (the manifest), what is done (commits), what went wrong (failures).

    <run>/manifest.json                      written once, before the first shard; names the list of shards
    <run>/shards/<sha256>.parquet            the list of shards, under the beginning of its checksum
    <run>/commits/<2 hex>/<shard-id>.json    created only if absent: the first attempt wins, for good
    <run>/failures/<shard-id>.json           the last word on a shard that is not done; a commit overrides it
    <run>/folds/<sha256>.parquet             copies of many commits in one object, for quick reading

Manifest, commits and failures are JSON for people to read. Nothing here is ever renamed or changed, failures aside. The
commits alone say what is done: a fold can be lost, doubled or removed without harm, see `folds`.
"""

from pipeline.ledger.folds import fold, worth_folding
from pipeline.ledger.listings import Listing, committed_ids, listing, pending, strangers
from pipeline.ledger.manifests import differences, read_manifest, write_manifest
from pipeline.ledger.reading import Totals, commits, failures, read, read_commit, totals
from pipeline.ledger.writing import commit, record_failure

__all__ = [
    "Listing",
    "Totals",
    "commit",
    "commits",
    "committed_ids",
    "differences",
    "failures",
    "fold",
    "listing",
    "pending",
    "read",
    "read_commit",
    "read_manifest",
    "record_failure",
    "strangers",
    "totals",
    "worth_folding",
    "write_manifest",
]
