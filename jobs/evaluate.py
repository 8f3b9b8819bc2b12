"""Measure masks against a ground truth: `python -m jobs.evaluate --config FILE [--set key=value]...`.

Predictions are a labeling run, whose image keys are matched to the truth's file names, or a COCO results json. Figures
go to standard output as one JSON line, and with `output` set to `report.json` there.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from jobs import coco_json, command
from patchdct import evaluate
from patchdct.errors import DataError
from pipeline import ledger, runs
from pipeline.coco_file import annotations_of
from pipeline.config import EvaluateConfig, load
from pipeline.errors import NotFoundError, UserError
from pipeline.founding import check_writable
from pipeline.store import Store, join, redact

log = logging.getLogger("jobs.evaluate")


def run(config: EvaluateConfig, store: Store) -> dict[str, Any]:
    """Evaluate, write the report where one is wanted, and return it.

    Raises:
        UserError, DataError: predictions or truth that cannot be read, or do not fit each other.
    """
    truth = _json(config.truth.annotations, store, "truth.annotations", "a COCO json")
    coco_json.check_truth(truth, f"truth.annotations: {redact(config.truth.annotations)}")
    if store.exists(join(config.predictions, "manifest.json")):
        results, image_ids = _results_of_run(config.predictions, truth, store)
    else:
        results = _json(config.predictions, store, "predictions", "a labeling run or a COCO results json")
        coco_json.check_results(results, f"predictions: {redact(config.predictions)}")
        image_ids = None
    if config.output is not None:
        check_writable("output", config.output, store)
    report = evaluate.evaluate(
        truth, results, metrics=config.metrics, max_detections=config.max_detections, image_ids=image_ids
    )
    if config.output is not None:
        place = join(config.output, "report.json")
        store.put(place, json.dumps(report, indent=2).encode() + b"\n")
        log.info("wrote %s", place)
    return report


def _results_of_run(uri: str, truth: dict[str, Any], store: Store) -> tuple[list[dict[str, Any]], list[int]]:
    """The masks of a run as COCO results, and the truth's ids of the images that it labelled."""
    keys: list[str] = []
    by_key: list[dict[str, Any]] = []
    for row in runs.read_rows(store, uri):
        keys.append(row.key)
        by_key += [{**annotation, "image_id": row.key} for annotation in annotations_of(row)]
    if not keys:
        raise UserError(f"predictions: {uri} has no committed shard yet")
    left = len(ledger.pending(ledger.read_manifest(store, uri), ledger.committed_ids(store, uri)))
    if left:
        log.warning("%s: %d shards are not committed; their images are not evaluated", uri, left)
    ids = evaluate.match_keys(truth, keys)
    return [{**annotation, "image_id": ids[annotation["image_id"]]} for annotation in by_key], sorted(ids.values())


def _json(uri: str, store: Store, key: str, what: str) -> Any:
    try:
        return json.loads(store.get(uri))
    except NotFoundError as error:
        raise UserError(f"{key}: {str(error).rstrip('.')}; give {what}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{key}: {redact(uri)} is no JSON ({error}); give {what}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{key}: {redact(uri)} is no JSON; give {what}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0 when measured, 2 when the input was refused."""
    options = command.parse("jobs.evaluate", "Measure masks against a ground truth.", argv)

    def work() -> int:
        report = run(load(EvaluateConfig, options.config, options.set), Store())
        print(json.dumps(report))
        return command.DONE

    return command.guarded(work, (DataError,))


if __name__ == "__main__":
    sys.exit(main())
