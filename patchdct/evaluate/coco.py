"""COCO average precision of masks, boxes and boundaries, and precision over recall."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchdct.errors import DataError
from patchdct.evaluate import pr
from patchdct.evaluate.engines import ENGINES
from patchdct.evaluate.rows import Rows, Truth, blocks
from patchdct.evaluate.tally import Curves, Kind

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
        metrics: As for `Evaluation`.
        max_detections: As for `Evaluation`.
        image_ids: The images to measure on; all of the truth's where None.
        engine: As for `Evaluation`.

    Returns:
        See `Evaluation.report`.

    Raises:
        DataError: What `Evaluation`, `Evaluation.report` and `Truth.rows` refuse.
    """
    whole = Truth(truth)
    evaluation = Evaluation(whole, metrics=metrics, max_detections=max_detections, engine=engine)
    for chosen, some in blocks(results, whole.images if image_ids is None else image_ids):
        evaluation.add(whole.rows(some, chosen))
    return evaluation.report()


class Evaluation:
    """Measures predictions that come some images at a time, of which it keeps little: the rows only for pycocotools."""

    def __init__(
        self,
        truth: Truth,
        *,
        metrics: Collection[str] = METRICS,
        max_detections: int = 100,
        engine: str = "fast",
    ) -> None:
        """Begin without images.

        Args:
            truth: What to measure against.
            metrics: `coco` gives the sections `mask` and `box` of the report, `boundary` and `pr` those of that name.
            max_detections: How many predictions of one image and category count, the best scored first.
            engine: `pycocotools`, or `fast` for the same figures in less time and memory.

        Raises:
            DataError: An unknown metric or engine, or no detection at most.
        """
        unknown = sorted(set(metrics) - set(METRICS))
        if unknown:
            raise DataError(f"metrics names {', '.join(unknown)}; accepted are {', '.join(METRICS)}.")
        if engine not in ENGINES:
            raise DataError(f"engine is {engine}; accepted are {', '.join(ENGINES)}.")
        if max_detections < 1:
            raise DataError(f"max_detections is {max_detections}; it must be at least 1.")
        sections: dict[Kind, bool] = {
            "mask": "coco" in metrics or "pr" in metrics,
            "box": "coco" in metrics,
            "boundary": "boundary" in metrics,
        }
        kinds = [kind for kind, wanted in sections.items() if wanted]
        self._truth, self._metrics, self._max_detections = truth, metrics, max_detections
        self._tally = ENGINES[engine](truth.categories, kinds, max_detections)
        self._seen: set[int] = set()  # category ids of the results
        self._images = self._annotations = self._results = self._ignored = 0

    def add(self, rows: Rows) -> None:
        """Measure on further images, with all results on them; none may come twice."""
        self._seen |= rows.seen
        self._images += len(rows.images)
        self._annotations += len(rows.annotations)
        self._results += len(rows.predictions)
        self._ignored += rows.ignored_results
        self._tally.add(rows)

    def report(self) -> dict[str, Any]:
        """The figures over all images so far.

        Returns:
            The counts `images`, `annotations`, `results`, `ignored_results` (of categories that the truth lacks) and
            `max_detections`, and the sections. `mask`, `box` and `boundary` have AP (over IoU 0.5 to 0.95), AP50, AP75,
            APs, APm, APl (areas below 32^2, up to 96^2 and above), AR, ARs, ARm, ARl, and `per_class`, AP by category
            name. All are in 0..1, or None where the truth has no instance to find. `pr`: see `pr.section`.

        Raises:
            DataError: Results of unknown categories only.
        """
        self._truth.check_seen(self._seen)
        tally, metrics, names = self._tally, self._metrics, list(self._truth.categories.values())
        report: dict[str, Any] = {
            "images": self._images,
            "annotations": self._annotations,
            "results": self._results,
            "ignored_results": self._ignored,
            "max_detections": self._max_detections,
        }
        if "coco" in metrics or "pr" in metrics:
            masks = tally.curves("mask")
        if "coco" in metrics:
            report["mask"] = _figures(masks, names)
            report["box"] = _figures(tally.curves("box"), names)
        if "boundary" in metrics:
            report["boundary"] = _figures(tally.curves("boundary"), names)
        if "pr" in metrics:
            report["pr"] = pr.section(self._truth.categories, masks, tally)
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
