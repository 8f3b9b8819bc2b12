"""How good the weights of a training are on its validation images, measured by all workers together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.reading import ReadImage
from patchdct import distributed, evaluate
from patchdct.errors import DataError
from patchdct.predict import Prediction, Predictor
from pipeline.datasets import Dataset

SECTIONS, FIGURES = ("mask", "boundary", "box"), ("AP", "AP50", "AP75")
_AT_ONCE = 4


def measure(
    predict: Predictor, val: Dataset, read: ReadImage, *, categories: Sequence[tuple[int, str]], max_detections: int
) -> tuple[dict[str, float], dict[str, str]]:
    """COCO figures of a model on a data set, of which each worker takes its share.

    Returns:
        The figures ("val mask AP", ...; 0 where there is nothing to find), the same on every worker, and the images
        that this worker could not read, with reasons. They do not count.
    """
    results: list[dict[str, Any]] = []
    seen: list[int] = []
    unread: dict[str, str] = {}
    own = sorted(val.uris)[distributed.rank() :: distributed.world()]
    for start in range(0, len(own), _AT_ONCE):
        images = {}
        for image_id in own[start : start + _AT_ONCE]:
            try:
                images[image_id] = read(val.uris[image_id])
            except DataError as error:
                unread[val.uris[image_id]] = str(error)
        for image_id, found in zip(images, predict(list(images.values())), strict=True):
            results += _results(image_id, found, images[image_id].shape[:2], categories)
        seen += images
    gathered = distributed.gather((results, seen))
    figures: dict[str, float] = {}
    if distributed.rank() == 0:
        report = evaluate.evaluate(
            val.coco,
            [result for part, _ in gathered for result in part],
            max_detections=max_detections,
            image_ids=[image_id for _, part in gathered for image_id in part],
        )
        figures = {f"val {section} {name}": report[section][name] or 0.0 for section in SECTIONS for name in FIGURES}
    return distributed.from_first(figures), unread


def _results(
    image_id: int, found: Prediction, size: tuple[int, ...], categories: Sequence[tuple[int, str]]
) -> list[dict[str, Any]]:
    """A prediction as COCO results."""
    return [
        {
            "image_id": image_id,
            "category_id": categories[int(kind)][0],
            "score": float(score),
            "bbox": box.tolist(),
            "segmentation": {"size": list(size), "counts": counts},
        }
        for kind, score, box, counts in zip(found.classes, found.scores, found.boxes, found.counts, strict=True)
    ]
