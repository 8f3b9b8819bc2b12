"""What computes COCO's curves: pycocotools, the reference, or for the same figures in less time, hotcoco.

hotcoco knows no boundaries; the fast way to those is `matching.accumulate`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from patchdct.evaluate import matching
from patchdct.evaluate.boundary import boundary_ious
from patchdct.evaluate.matching import Curves, Group
from patchdct.evaluate.rows import Row, Rows

Kind: TypeAlias = Literal["mask", "box", "boundary"]


def fast(rows: Rows, kind: Kind, max_detections: int) -> Curves:
    """The curves of masks and boxes by hotcoco, of boundaries by `matching`."""
    if kind == "boundary":
        return matching.accumulate(rows, boundary_ious, max_detections)
    truth, found = (hotcoco.COCO(data_set) for data_set in _data_sets(rows, kind))
    evaluator: Any = hotcoco.COCOeval(truth, found, "segm" if kind == "mask" else "bbox")
    evaluator.params.max_dets = [max_detections]
    evaluator.evaluate()
    evaluator.accumulate()
    return _curves(evaluator.eval)


def reference(rows: Rows, kind: Kind, max_detections: int) -> Curves:
    """The curves by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = (_coco(data_set) for data_set in _data_sets(rows, kind))
        evaluator: Any = (
            _BoundaryEval(truth, found, "segm")
            if kind == "boundary"
            else COCOeval(truth, found, "segm" if kind == "mask" else "bbox")
        )
        evaluator.params.maxDets = [max_detections]
        evaluator.evaluate()
        evaluator.accumulate()
    return _curves(evaluator.eval)


ENGINES: Mapping[str, Callable[[Rows, Kind, int], Curves]] = {"fast": fast, "pycocotools": reference}


class _BoundaryEval(COCOeval):
    """COCO evaluation by boundary IoU."""

    def computeIoU(self, image_id: int, category_id: int) -> Any:  # noqa: N802  (the name that COCOeval calls)
        # In the order and number in which COCOeval ranks predictions.
        predictions = sorted(self._dts[image_id, category_id], key=lambda row: -row["score"])[: self.params.maxDets[-1]]
        return boundary_ious(
            Group(image_id=image_id, annotations=self._gts[image_id, category_id], predictions=predictions)
        )


def _data_sets(rows: Rows, kind: Kind) -> tuple[dict[str, Any], dict[str, Any]]:
    """Truth and predictions as COCO data sets."""
    predictions: list[Row] = rows.predictions
    if kind == "box":
        # The area decides which size class an unmatched prediction belongs to: its own, of mask or of box.
        predictions = [{**row, "area": row["bbox"][2] * row["bbox"][3]} for row in predictions]
    # By ids alone: names are of no use to an engine, and hotcoco takes none that is no Unicode.
    categories = [{"id": category_id, "name": str(category_id)} for category_id in rows.categories]
    common = {"images": rows.images, "categories": categories}
    return {**common, "annotations": rows.annotations}, {**common, "annotations": predictions}


def _coco(data_set: dict[str, Any]) -> COCO:
    coco = COCO()
    # COCOeval writes into the rows.
    coco.dataset = {**data_set, "annotations": [dict(row) for row in data_set["annotations"]]}
    coco.createIndex()
    return coco


def _curves(accumulated: Mapping[str, Any]) -> Curves:
    precision, scores, recall = (np.asarray(accumulated[key])[..., 0] for key in ("precision", "scores", "recall"))
    return Curves(precision=precision, scores=scores, recall=recall)
