"""The images that the predictions did worst on, to be looked at."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.predictions import Predictions
from patchdct import evaluate
from patchdct.evaluate import ImageQuality
from pipeline import reports
from pipeline.datasets import Dataset
from pipeline.records import Category
from pipeline.reports import Example
from pipeline.store import Store

#: From this score on a prediction is drawn, and found or spurious.
SCORE = 0.5

_TEXT = (
    f"Those of lowest panoptic quality, at score {SCORE:g} and IoU 0.50. A prediction and the object that it found "
    "have the same colour; in a red box is what was missed, or is spurious."
)
_FEDERATED = " LVIS does not mark every object, so what is spurious here may be right."


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """What the report says of single images.

    figures: its sections `matches`, over all images, and `worst`. examples: the pictures. text: what these are, or why
    there are none.
    """

    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    examples: Sequence[Example] = ()


NONE = Worst(text="There are none, as no predictions were measured.")


def judge(truth: Dataset, found: Predictions, *, count: int, store: Store) -> Worst:
    """Judge the images one by one, and draw the `count` worst of them where it is known where they are."""
    qualities = evaluate.image_quality(truth.coco, found.results, score=SCORE, image_ids=found.image_ids)
    chosen = evaluate.worst(qualities, count)
    names = {row["id"]: str(row["file_name"]) for row in truth.coco["images"]}
    figures = {
        "matches": _matches(qualities),
        "worst": [{"file_name": names[one.image_id], **dataclasses.asdict(one)} for one in chosen],
    }
    uris = truth.uris or found.uris
    if not chosen:
        return Worst(figures=figures, text="There are none to show.")
    if not uris:
        return Worst(figures=figures, text="They are named in report.json; set truth.images to see them here.")
    federated = any("neg_category_ids" in row for row in truth.coco["images"])
    text = _TEXT + _FEDERATED * federated
    return Worst(figures=figures, text=text, examples=_examples(chosen, truth, found, uris, store))


def _matches(qualities: Iterable[ImageQuality]) -> dict[str, Any]:
    """The sums over images."""
    sums: dict[str, float] = defaultdict(int)
    for one in qualities:
        sums["found"] += one.true_positives
        sums["missed"] += one.missed
        sums["spurious"] += one.spurious
        sums["iou"] += one.true_positives * (one.mean_iou or 0.0)
    mean_iou = sums["iou"] / sums["found"] if sums["found"] else None
    return {"score": SCORE, **{key: sums[key] for key in ("found", "missed", "spurious")}, "mean_iou": mean_iou}


def _examples(
    chosen: Sequence[ImageQuality], truth: Dataset, found: Predictions, uris: Mapping[int, str], store: Store
) -> list[Example]:
    ids = {one.image_id for one in chosen}
    images = {row["id"]: row for row in truth.coco["images"] if row["id"] in ids}
    real = _by_image(truth.coco["annotations"], ids)
    guessed = _by_image((row for row in found.results if row["score"] >= SCORE), ids)
    categories = [Category(id=row["id"], name=str(row["name"])) for row in truth.coco["categories"]]
    return [
        reports.example(
            str(images[one.image_id]["file_name"]),
            _caption(one),
            uri=uris.get(one.image_id),
            size=(images[one.image_id]["height"], images[one.image_id]["width"]),
            truth=real[one.image_id],
            predictions=guessed[one.image_id],
            categories=categories,
            store=store,
        )
        for one in chosen
    ]


def _by_image(rows: Iterable[dict[str, Any]], ids: Collection[int]) -> dict[int, list[dict[str, Any]]]:
    """The annotations or results of each of these images."""
    grouped: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in ids}
    for row in rows:
        if row["image_id"] in grouped:
            grouped[row["image_id"]].append(row)
    return grouped


def _caption(one: ImageQuality) -> str:
    share = "" if one.mean_iou is None else f", mean IoU {100 * one.mean_iou:.1f}"
    quality = 100 * (one.quality or 0.0)
    return f"quality {quality:.1f}: {one.true_positives} found{share}, {one.missed} missed, {one.spurious} spurious"
