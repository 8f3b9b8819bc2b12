"""Measure masks against a ground truth: `python -m jobs.evaluate --config FILE [--set key=value]...`.

Predictions are a labeling run, whose image keys are matched to the truth's file names, a COCO results json, or a
checkpoint, which labels the images of the truth first; run again, that goes on where it stopped. Figures go to standard
output as one JSON line, and with `output` set to report.json, report.md and report.html there.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from jobs import command, predictions, worst
from jobs.predictions import Predictions
from patchdct import evaluate, upper_bound
from patchdct.errors import DataError
from patchdct.evaluate import cityscapes, lvis
from pipeline import __version__, datasets, reports
from pipeline.config import EvaluateConfig, TruthConfig, load
from pipeline.datasets import Dataset
from pipeline.errors import UserError
from pipeline.founding import check_writable
from pipeline.parallel import ahead
from pipeline.store import Store, join, redact

log = logging.getLogger("jobs.evaluate")

#: The form of the truth that a metric needs.
FORMS = {"lvis": "lvis_v0.5", "cityscapes": "cityscapes"}
_CITY_IMAGE, _CITY_MAP = "_leftImg8bit.png", "_gtFine_instanceIds.png"
_COCO_METRICS = ("coco", "boundary", "pr")
#: What is too long for a line, or no figure.
_NOT_IN_THE_LINE = ("pr", "worst", "notes", "instances_per_class", "provenance")


def run(config: EvaluateConfig, store: Store) -> dict[str, Any]:
    """Evaluate, write the report where one is wanted, and return it.

    Raises:
        UserError, DataError: a config, predictions or truth that cannot be read, or do not fit each other.
        RunError: a checkpoint has not labelled all images.
    """
    kind = check(config, store)
    truth = read_truth(config, kind, store)
    if config.output is not None:
        check_writable("output", config.output, store)
    found = _predictions(config, kind, truth, store)
    report = measure(config, truth, found, store)
    report["notes"] = [*_missing(config, kind, truth), *(found.notes if found else ())]
    for note in report["notes"]:
        log.warning(note)
    report["provenance"] = {
        "predictions": found.provenance if found else None,
        "truth": _provenance(config.truth, store),
        "version": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),  # noqa: TID251 shown, never compared
        "settings": _settings(config, kind),
    }
    if config.output is not None:
        shown = worst.NONE if found is None else worst.judge(truth, found, count=config.worst, store=store)
        report |= shown.figures
        reports.write(store, config.output, report, shown.examples, shown.text)
        log.info("wrote report.json, report.md and report.html at %s", redact(config.output))
    return report


def check(config: EvaluateConfig, store: Store) -> predictions.Kind | None:
    """What the predictions are, after making sure that the keys of the config go together; None without predictions.

    Raises:
        UserError: they do not, or there are no predictions at the place named.
    """
    for metric, form in FORMS.items():
        if metric in config.metrics and config.truth.name != form:
            raise UserError(f"metrics has {metric}, which needs a truth.name {form}; truth.name is {config.truth.name}")
    if set(config.metrics) == {"upper_bound"}:
        return None
    if config.predictions is None:
        raise UserError("predictions is missing; only metrics [upper_bound] does without")
    kind = predictions.kind_of(config.predictions, store)
    if kind == "checkpoint":
        _check_checkpoint(config)
    return kind


def _check_checkpoint(config: EvaluateConfig) -> None:
    named = redact(config.predictions or "")
    for key, value, what in (
        ("output", config.output, "where its run over the images goes"),
        ("truth.images", config.truth.images, "which images it labels"),
    ):
        if value is None:
            raise UserError(f"{key} is missing; predictions is the checkpoint {named}, and {key} says {what}")
    for key, other in (("weights", "predictions"), ("config", "model.config"), ("overrides", "model.overrides")):
        if getattr(config.labeler, key):
            raise UserError(f"labeler.{key} has a value; for the checkpoint to evaluate that is {other}")


def read_truth(config: EvaluateConfig, kind: predictions.Kind | None, store: Store) -> Dataset:
    """The truth, with the places of its images where `truth.images` names them.

    A checkpoint is measured on the images that are there. What others have labelled is measured on all, as images are
    then only to look at.
    """
    truth = datasets.read(config.truth, store, key="truth")
    if not truth.missing or kind == "checkpoint":
        return truth
    whole = datasets.read(dataclasses.replace(config.truth, images=None), store, key="truth")
    return dataclasses.replace(whole, uris=truth.uris, missing=truth.missing)


def measure(config: EvaluateConfig, truth: Dataset, found: Predictions | None, store: Store) -> dict[str, Any]:
    """The figures that `config.metrics` asks for, as the sections of the report."""
    coco, image_ids, most = truth.coco, found.image_ids if found else None, config.max_detections
    report: dict[str, Any] = {}
    if found is not None:
        chosen = [metric for metric in config.metrics if metric in _COCO_METRICS]
        report |= evaluate.evaluate(
            coco, found.results, metrics=chosen, max_detections=most, image_ids=image_ids, engine=config.engine
        )
        report["quarantined"] = found.quarantined
        report["instances_per_class"] = _instances(coco, image_ids)
        if "lvis" in config.metrics:
            report["lvis"] = lvis.evaluate(coco, found.results, max_detections=most, image_ids=image_ids)
        if "cityscapes" in config.metrics:
            maps = _label_maps(config.truth.annotations, coco, image_ids, store)
            kept = [result for result in found.results if result["image_id"] in maps]
            report["cityscapes"] = cityscapes.evaluate(maps, kept)
    if "upper_bound" in config.metrics:
        report["upper_bound"] = upper_bound.measure(coco, max_detections=most, image_ids=image_ids)
    return report


def _predictions(
    config: EvaluateConfig, kind: predictions.Kind | None, truth: Dataset, store: Store
) -> Predictions | None:
    if kind is None or config.predictions is None:
        return None
    if kind == "checkpoint":
        return predictions.from_checkpoint(config, truth, store)
    if kind == "labeling run":
        return predictions.from_run(config.predictions, truth.coco, store)
    return predictions.from_results(config.predictions, store)


def _instances(coco: Mapping[str, Any], image_ids: Sequence[int] | None) -> dict[str, int]:
    """How many objects the truth has of each category; crowd regions are none."""
    chosen = None if image_ids is None else set(image_ids)
    counts = Counter(
        row["category_id"]
        for row in coco["annotations"]
        if not row["iscrowd"] and (chosen is None or row["image_id"] in chosen)
    )
    return {str(row["name"]): counts[row["id"]] for row in coco["categories"]}


def _label_maps(
    annotations: str, coco: Mapping[str, Any], image_ids: Sequence[int] | None, store: Store
) -> dict[int, bytes]:
    """The label maps of Cityscapes' images, by image id."""
    chosen = {row["id"] for row in coco["images"]} if image_ids is None else set(image_ids)
    names = {row["id"]: str(row["file_name"]).removesuffix(_CITY_IMAGE) + _CITY_MAP for row in coco["images"]}
    uris = [join(annotations, names[image_id]) for image_id in sorted(chosen)]
    return dict(zip(sorted(chosen), ahead(store.get, uris, threads=8), strict=True))


def _missing(config: EvaluateConfig, kind: predictions.Kind | None, truth: Dataset) -> list[str]:
    if not truth.missing:
        return []
    first = command.some(truth.missing, most=3)
    end = "they are not measured" if kind == "checkpoint" else "they cannot be shown"
    where = f"truth.images: {redact(config.truth.images or '')}"
    return [f"{where} lacks {len(truth.missing)} images of the truth ({first}); {end}"]


def _provenance(config: TruthConfig, store: Store) -> dict[str, Any]:
    """What the report says of the truth."""
    whole = config.name != "cityscapes"  # whose truth is a folder
    return {
        "uri": redact(config.annotations),
        "form": config.name,
        "images": redact(config.images) if config.images else None,
        "sha256": predictions.checksum(config.annotations, store) if whole else None,
    }


def _settings(config: EvaluateConfig, kind: predictions.Kind | None) -> dict[str, Any]:
    """The keys of the config that the figures depend on."""
    keys = ["metrics", "max_detections", "engine", *(("model", "labeler") if kind == "checkpoint" else ())]
    whole = dataclasses.asdict(config)
    return {key: whole[key] for key in keys}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0 when measured, 1 when images are left, 2 when the input was refused."""
    options = command.parse("jobs.evaluate", "Measure masks against a ground truth.", argv)

    def work() -> int:
        report = run(load(EvaluateConfig, options.config, options.set), Store())
        print(json.dumps({key: value for key, value in report.items() if key not in _NOT_IN_THE_LINE}))
        return command.DONE

    return command.guarded(work, (DataError,))


if __name__ == "__main__":
    sys.exit(main())
