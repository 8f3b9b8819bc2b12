"""The images that the predictions did worst on, to be looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.predictions import Block
from patchdct import evaluate
from patchdct.evaluate import ImageQuality, Rows
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


class Judge:
    """Judges images one by one, and keeps what it takes to draw the worst of them."""

    def __init__(self, count: int) -> None:
        """Begin without images; `count` are to be shown."""
        self._count = count
        self._worst: list[ImageQuality] = []
        self._results: dict[int, list[Mapping[str, Any]]] = {}  # of the worst
        self._uris: dict[int, str] = {}  # of the worst
        self._has_uris = False
        self._sums: dict[str, float] = dict.fromkeys(("found", "missed", "spurious", "iou"), 0)

    def add(self, block: Block, rows: Rows) -> None:
        """Judge further images; `rows` are what the truth and the block have of them."""
        qualities = evaluate.judge(rows, score=SCORE)
        for one in qualities:
            self._sums["found"] += one.true_positives
            self._sums["missed"] += one.missed
            self._sums["spurious"] += one.spurious
            self._sums["iou"] += one.true_positives * (one.mean_iou or 0.0)
        self._worst = evaluate.worst([*self._worst, *qualities], self._count)
        self._has_uris |= bool(block.uris)
        ids = [one.image_id for one in self._worst]
        self._uris |= block.uris
        self._uris = {image_id: self._uris[image_id] for image_id in ids if image_id in self._uris}
        self._results = {image_id: self._results.get(image_id, []) for image_id in ids}
        for row in block.results:
            if row["score"] >= SCORE and row["image_id"] in self._results:
                self._results[row["image_id"]].append(row)

    def worst(self, truth: Dataset, index: evaluate.Truth, store: Store) -> Worst:
        """What there is to say of all images, with pictures of the worst where it is known where they are."""
        figures = {
            "matches": self._matches(),
            "worst": [
                {"file_name": str(index.images[one.image_id]["file_name"]), **dataclasses.asdict(one)}
                for one in self._worst
            ],
        }
        if not self._worst:
            return Worst(figures=figures, text="There are none to show.")
        if not truth.uris and not self._has_uris:
            text = "They are named in report.json; set truth.images to see them here."
            return Worst(figures=figures, text=text)
        federated = any("neg_category_ids" in row for row in truth.coco["images"])
        text = _TEXT + _FEDERATED * federated
        return Worst(figures=figures, text=text, examples=self._examples(truth, index, store))

    def _matches(self) -> dict[str, Any]:
        """The sums over images."""
        found, missed, spurious, iou = self._sums.values()
        mean_iou = iou / found if found else None
        return {"score": SCORE, "found": found, "missed": missed, "spurious": spurious, "mean_iou": mean_iou}

    def _examples(self, truth: Dataset, index: evaluate.Truth, store: Store) -> list[Example]:
        uris = truth.uris or self._uris
        categories = [Category(id=row["id"], name=str(row["name"])) for row in truth.coco["categories"]]
        return [
            reports.example(
                str(image["file_name"]),
                _caption(one),
                uri=uris.get(one.image_id),
                size=(image["height"], image["width"]),
                truth=index.annotations([one.image_id]),
                predictions=self._results[one.image_id],
                categories=categories,
                store=store,
            )
            for one in self._worst
            for image in [index.images[one.image_id]]
        ]


def _caption(one: ImageQuality) -> str:
    share = "" if one.mean_iou is None else f", mean IoU {100 * one.mean_iou:.1f}"
    quality = 100 * (one.quality or 0.0)
    return f"quality {quality:.1f}: {one.true_positives} found{share}, {one.missed} missed, {one.spurious} spurious"
