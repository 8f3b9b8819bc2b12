"""A labeling run and the true objects of some of its images -> a calibration, with a report of what it is worth.

Memory is bounded by the truth: of the run, the rows of other images are passed over as they are read.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipeline import __version__, datasets, dates, ledger, runs
from pipeline.calibration import Calibration
from pipeline.calibration import write as write_calibration
from pipeline.calibration.fitting import FOLDS, Figures, Sample, fit, fold_of, measure
from pipeline.calibration.matching import judge
from pipeline.calibration.record import PREDICTED_IOU, PROBABILITY, Source, Target, features
from pipeline.config import TruthConfig
from pipeline.errors import UserError
from pipeline.keys import Keys
from pipeline.records import Category, ImageLabels, Manifest
from pipeline.reports import calibration as pages
from pipeline.store import Store, join, redact

#: How sure the least precision of a threshold is, one-sided.
CONFIDENCE = 0.9
_AT_ONCE = 256
_NO_MASK = "no image of the truth has a mask"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """The masks of a run on images of a truth. images: how many; others: images of the run that the truth lacks."""

    manifest: Manifest
    sample: Sample
    images: int
    objects: int
    others: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A calibration, and what it is worth on images that it was not fitted to.

    run, truth: what it was measured on, without secrets. images, others: as in `Gathered`. fitted: whether it was
    fitted to these, and measured by cross-fitting.
    """

    run: str
    truth: str
    calibration: Calibration
    figures: Figures
    images: int
    others: int
    fitted: bool


def calibrate(store: Store, run: str, truth: str, *, precision: float, iou: float) -> Result:
    """Fit a calibration to a run, and measure it by cross-fitting.

    Args:
        store: where both are.
        run: the URI of the run.
        truth: the URI of a COCO json with the true objects of images of the run; the run may have more of them.
        precision: the share of what the thresholds keep that is to be right.
        iou: from which mask IoU on a mask is right.

    Raises:
        UserError: either cannot be read, they do not fit each other, or there is too little to fit to.
        StoreError: the storage failed, or a data object of the run is damaged.
    """
    found = gather(store, run, truth, iou=iou)
    source = Source(
        run=redact(run),
        run_id=found.manifest.run_id,
        fingerprint=found.manifest.fingerprint,
        truth=redact(truth),
        images=found.images,
        masks=len(found.sample.iou),
        objects=found.objects,
        date=dates.now(),
        version=__version__,
    )
    target = Target(precision=precision, iou=iou, confidence=CONFIDENCE)
    calibration, worth = fit(found.sample, found.manifest.categories, target=target, source=source)
    return _result(found, source.run, source.truth, calibration, worth, fitted=True)


def check(store: Store, run: str, truth: str, calibration: Calibration) -> Result:
    """Measure a calibration that there is on a run, whose images it should not have been fitted to.

    Raises:
        UserError, StoreError: as for `calibrate`; or the run lacks columns that the calibration goes by.
    """
    found = gather(store, run, truth, iou=calibration.target.iou)
    calibration.check(found.manifest.categories, redact(run))
    if missing := [name for name in calibration.columns if name not in found.sample.columns]:
        raise UserError(f"{redact(run)} does not have the column {missing[0]}, which the calibration goes by")
    worth, classes = measure(found.sample, calibration)
    measured = replace(calibration, classes=classes)
    return _result(found, redact(run), redact(truth), measured, worth, fitted=False)


def _result(found: Gathered, run: str, truth: str, calibration: Calibration, worth: Figures, *, fitted: bool) -> Result:
    return Result(
        run=run,
        truth=truth,
        calibration=calibration,
        figures=worth,
        images=found.images,
        others=found.others,
        fitted=fitted,
    )


def gather(store: Store, run: str, truth: str, *, iou: float) -> Gathered:
    """What became of the masks of a run, as the model labelled them, on the images of a truth.

    Quarantined images are left out, and so are masks in crowd regions that match nothing, and those of classes that the
    truth does not name: nobody has looked for their objects.
    """
    manifest = ledger.read_manifest(store, run)
    try:
        known = datasets.read(TruthConfig(annotations=truth), store, key="--truth").coco
    except UserError as error:
        raise UserError(str(error).replace("--truth.annotations", "--truth")) from error
    _check_categories(manifest.categories, known["categories"], redact(truth))
    annotations: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for one in known["annotations"]:
        annotations[one["image_id"]].append(one)
    matcher = Keys(known, more=True)
    parts: dict[str, list[Any]] = defaultdict(list)
    objects: Counter[int] = Counter()
    images = others = 0
    sizes = {image["id"]: (image["height"], image["width"]) for image in known["images"]}
    judged = [one["id"] for one in known["categories"]]
    for rows in runs.batches(runs.read_rows(store, run), _AT_ONCE):
        ids = matcher.match(row.key for row in rows)
        others += len(rows) - len(ids)
        for row in rows:
            if row.key not in ids or row.status == "quarantined":
                continue
            of_image = annotations.get(ids[row.key], [])
            images += 1
            objects.update(one["category_id"] for one in of_image if not one["iscrowd"])
            of_truth = row.instances.where(np.isin(row.instances.category_ids, judged))
            _add(parts, replace(row, instances=of_truth), of_image, sizes[ids[row.key]], iou)
    if not images:
        raise UserError(
            f"--truth: none of the images of {redact(run)} is one of {redact(truth)}, whose file names are like "
            f"{', '.join(repr(str(image['file_name'])) for image in known['images'][:2]) or 'none'}"
        )
    return Gathered(
        manifest=manifest, sample=_sample(parts, objects), images=images, objects=objects.total(), others=others
    )


def _add(
    parts: dict[str, list[Any]], row: ImageLabels, objects: list[Mapping[str, Any]], size: tuple[int, int], iou: float
) -> None:
    """Append the masks of an image, column by column."""
    if not len(row.instances):
        return
    if (row.height, row.width) != size:
        raise UserError(
            f"{row.key} is {row.width} x {row.height} pixels in the run, and {size[1]} x {size[0]} in the truth"
        )
    try:
        judged = judge(row.instances, objects, size, least=iou)
    except ValueError as error:
        raise UserError(f"{row.key}: {error}") from error
    kept = ~judged.excused
    names = [name for name in row.instances.quality if name not in (PREDICTED_IOU, PROBABILITY)]
    for name, values in features(row.instances, names).items():
        parts[f"column {name}"].append(values[kept].astype(np.float64))
    parts["iou"].append(judged.iou[kept])
    parts["right"].append(judged.right[kept])
    parts["classes"].append(row.instances.category_ids[kept].astype(np.int64))
    parts["folds"].append(np.full(int(kept.sum()), fold_of(row.key)))


def _sample(parts: Mapping[str, list[Any]], objects: Counter[int]) -> Sample:
    if not parts:
        raise UserError(f"--truth: {_NO_MASK} in the run")
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    columns = {name.removeprefix("column "): whole[name] for name in whole if name.startswith("column ")}
    if odd := [name for name, values in columns.items() if len(values) != len(whole["iou"])]:
        raise UserError(f"only a part of the run has the quality column {odd[0]}; label it with one version")
    return Sample(
        folds=whole["folds"],
        classes=whole["classes"],
        columns=columns,
        iou=whole["iou"],
        right=whole["right"],
        objects=dict(objects),
    )


def _check_categories(ours: Iterable[Category], theirs: Iterable[Mapping[str, Any]], truth: str) -> None:
    """Refuse a truth that means something else by a category id, or has no category in common."""
    names = {one.id: one.name for one in ours}
    shared = {one["id"]: str(one["name"]) for one in theirs if one["id"] in names}
    for id_, name in shared.items():
        if names[id_] != name:
            raise UserError(f"--truth {truth}: category {id_} is {name!r}, and in the run {names[id_]!r}")
    if not shared:
        raise UserError(f"--truth {truth} has no category of the run")


def write(store: Store, result: Result, *, out: str | None, report: str | None) -> None:
    """Write the calibration to `out`, and calibration.html, calibration.json and reliability.png into `report`."""
    if report is not None:
        png = pages.diagram(result.figures)
        for name, data in (
            ("reliability.png", png),
            ("calibration.json", (json.dumps(summary(result), indent=1, allow_nan=False) + "\n").encode()),
            ("calibration.html", _page(result, png).encode("utf-8", "backslashreplace")),
        ):
            store.put(join(report, name), data)
    if out is not None:
        write_calibration(result.calibration, out, store)


def summary(result: Result) -> dict[str, Any]:
    """The figures and the thresholds, for programs."""
    worth, calibration = result.figures, result.calibration
    return {
        "run": result.run,
        "truth": result.truth,
        "images": result.images,
        "images_without_truth": result.others,
        "held_out": f"{FOLDS}-fold cross-fitting" if result.fitted else "fitted elsewhere",
        "source": asdict(calibration.source),
        "target": asdict(calibration.target),
        "calibration_error": {"score": worth.before.error, "probability": worth.after.error},
        "groups": [asdict(group) for group in worth.groups],
        "threshold": calibration.threshold,
        "classes": [{**asdict(one), "precision": one.precision, "recall": one.recall} for one in calibration.classes],
    }


def _page(result: Result, png: bytes) -> str:
    where = "dealt into folds, each judged by models fitted to the others" if result.fitted else "not fitted to"
    subtitle = f"{result.run} against {result.truth}: {result.images} images, {where}"
    return pages.page(subtitle, result.calibration, result.figures, png)
