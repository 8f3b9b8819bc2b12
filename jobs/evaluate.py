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
from typing import Any

from jobs import command, predictions, worst
from jobs.predictions import Predictions
from jobs.worst import Worst
from patchdct import evaluate, upper_bound
from patchdct.errors import DataError
from patchdct.evaluate import cityscapes, lvis
from pipeline import __version__, datasets, dates, reports
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
    report, shown = measure(config, truth, found, store)
    report["notes"] = [*_missing(config, kind, truth), *(_notes(found, report["quarantined"]) if found else ())]
    for note in report["notes"]:
        log.warning(note)
    report["provenance"] = {
        "predictions": found.provenance if found else None,
        "truth": _provenance(config.truth, store),
        "version": __version__,
        "date": dates.now(),
        "settings": _settings(config, kind),
    }
    if config.output is not None:
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


def measure(
    config: EvaluateConfig, truth: Dataset, found: Predictions | None, store: Store
) -> tuple[dict[str, Any], Worst]:
    """The figures that `config.metrics` asks for, as the sections of the report, and the worst images.

    The predictions come and go some images at a time; `lvis` and `cityscapes`, and pycocotools, need them all at once.
    """
    coco, most = truth.coco, config.max_detections
    report: dict[str, Any] = {}
    shown, image_ids = worst.NONE, None
    if found is not None:
        index = evaluate.Truth(coco)
        chosen = [metric for metric in config.metrics if metric in _COCO_METRICS]
        evaluation = evaluate.Evaluation(index, metrics=chosen, max_detections=most, engine=config.engine)
        judge = worst.Judge(config.worst)
        image_ids, objects, quarantined = list[int](), Counter[int](), 0
        results: list[Mapping[str, Any]] = []
        for block in found.blocks:
            rows = index.rows(block.results, block.image_ids)
            evaluation.add(rows)
            if config.output is not None:
                judge.add(block, rows)
            image_ids += block.image_ids
            objects.update(row["category_id"] for row in rows.annotations if not row["iscrowd"])
            quarantined += block.quarantined
            if not FORMS.keys().isdisjoint(config.metrics):
                results += block.results
        report |= evaluation.report()
        report["quarantined"] = quarantined
        report["instances_per_class"] = {str(row["name"]): objects[row["id"]] for row in coco["categories"]}
        if "lvis" in config.metrics:
            report["lvis"] = lvis.evaluate(coco, results, max_detections=most, image_ids=image_ids)
        if "cityscapes" in config.metrics:
            maps = _label_maps(config.truth.annotations, coco, image_ids, store)
            kept = [result for result in results if result["image_id"] in maps]
            report["cityscapes"] = cityscapes.evaluate(maps, kept)
        if config.output is not None:
            shown = judge.worst(truth, index, store)
    if "upper_bound" in config.metrics:
        report["upper_bound"] = upper_bound.measure(coco, max_detections=most, image_ids=image_ids)
    return report, shown


def _predictions(
    config: EvaluateConfig, kind: predictions.Kind | None, truth: Dataset, store: Store
) -> Predictions | None:
    if kind is None or config.predictions is None:
        return None
    if kind == "checkpoint":
        return predictions.from_checkpoint(config, truth, store)
    if kind == "labeling run":
        return predictions.from_run(config.predictions, truth.coco, store)
    return predictions.from_results(config.predictions, truth.coco, store)


def _label_maps(annotations: str, coco: Mapping[str, Any], image_ids: Sequence[int], store: Store) -> dict[int, bytes]:
    """The label maps of Cityscapes' images, by image id."""
    names = {row["id"]: str(row["file_name"]).removesuffix(_CITY_IMAGE) + _CITY_MAP for row in coco["images"]}
    uris = [join(annotations, names[image_id]) for image_id in sorted(image_ids)]
    return dict(zip(sorted(image_ids), ahead(store.get, uris, threads=8), strict=True))


def _notes(found: Predictions, quarantined: int) -> list[str]:
    if not quarantined:
        return list(found.notes)
    how = "they are measured as images without a mask"
    return [*found.notes, f"{found.run}: {quarantined} images are quarantined; {how}"]


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
