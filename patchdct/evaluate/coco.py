"""COCO average precision of masks, boxes and boundaries, and precision over recall."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchdct.errors import DataError
from patchdct.evaluate import pr
from patchdct.evaluate.engines import ENGINES
from patchdct.evaluate.matching import Curves
from patchdct.evaluate.rows import read_rows

METRICS = ("coco", "boundary", "pr")


def evaluate(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    metrics: Collection[str] = METRICS,
    max_detections: int = 100,
    image_ids: Collection[int] | None = None,
    engine: str = "fast",
) -> dict[str, Any]:
    """Measure predictions against the truth. Neither argument is changed.

    Args:
        truth: A COCO data set: images, annotations (polygons or RLE), categories.
        results: COCO results: image_id, category_id, score, segmentation (RLE at image size) and, if at hand, bbox.
        metrics: `coco` gives the sections `mask` and `box` of the report, `boundary` and `pr` those of that name.
        max_detections: How many predictions of one image and category count, the best scored first.
        image_ids: The images to measure on; all of the truth's where None.
        engine: `pycocotools`, or `fast` for the same figures in less time.

    Returns:
        The counts `images`, `annotations`, `results`, `ignored_results` (of categories that the truth lacks) and
        `max_detections`, and the sections. `mask`, `box` and `boundary` have AP (over IoU 0.5 to 0.95), AP50, AP75,
        APs, APm, APl (areas below 32^2, up to 96^2 and above), AR, ARs, ARm, ARl, and `per_class`, AP by category name.
        All are in 0..1, or None where the truth has no instance to find. `pr`: see `pr.section`.

    Raises:
        DataError: An unknown metric, engine or image, only unknown categories, a mask that has not its image's size, a
            box that is not four numbers, or a score that is not finite.
    """
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise DataError(f"metrics names {', '.join(unknown)}; accepted are {', '.join(METRICS)}.")
    if engine not in ENGINES:
        raise DataError(f"engine is {engine}; accepted are {', '.join(ENGINES)}.")
    if max_detections < 1:
        raise DataError(f"max_detections is {max_detections}; it must be at least 1.")
    rows, measure = read_rows(truth, results, image_ids), ENGINES[engine]
    names = list(rows.categories.values())
    report: dict[str, Any] = {
        "images": len(rows.images),
        "annotations": len(rows.annotations),
        "results": len(rows.predictions),
        "ignored_results": rows.ignored_results,
        "max_detections": max_detections,
    }
    if "coco" in metrics or "pr" in metrics:
        masks = measure(rows, "mask", max_detections)
    if "coco" in metrics:
        report["mask"] = _figures(masks, names)
        report["box"] = _figures(measure(rows, "box", max_detections), names)
    if "boundary" in metrics:
        report["boundary"] = _figures(measure(rows, "boundary", max_detections), names)
    if "pr" in metrics:
        report["pr"] = pr.section(rows, masks, max_detections)
    return report


def _figures(curves: Curves, names: Sequence[str]) -> dict[str, Any]:
    precision, recall = curves.precision, curves.recall
    figures: dict[str, Any] = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
    }
    figures |= {f"AP{size}": _mean(precision[..., a]) for a, size in enumerate("sml", start=1)}
    figures |= {f"AR{size}": _mean(recall[..., a]) for a, size in enumerate(("", "s", "m", "l"))}
    figures["per_class"] = {name: _mean(precision[:, :, k, 0]) for k, name in enumerate(names)}
    return figures


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """The mean of what could be measured; COCOeval marks the rest by -1."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None
