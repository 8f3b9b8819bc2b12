"""What computes COCO's curves: pycocotools, the reference, or `Tally`, for the same figures in less time and memory."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from patchdct.evaluate.boundary import boundary_ious
from patchdct.evaluate.matching import Group, mask_ious
from patchdct.evaluate.rows import Rows
from patchdct.evaluate.tally import Curves, Kind, Tally


class Reference(Tally):
    """A tally whose curves are those of pycocotools, which is given all rows at once: they are held until then."""

    def __init__(self, categories: Collection[int], kinds: Collection[Kind], max_detections: int) -> None:
        """Begin as `Tally` does, which still ranks the masks."""
        super().__init__(categories, [kind for kind in kinds if kind == "mask"], max_detections)
        self._rows: list[Rows] = []

    def add(self, rows: Rows) -> None:
        """Take further images, with all predictions on them."""
        super().add(rows)
        self._rows.append(rows)

    def curves(self, kind: Kind) -> Curves:
        """The curves by pycocotools."""
        with contextlib.redirect_stdout(io.StringIO()):
            truth, found = (_coco(data_set) for data_set in self._data_sets(kind))
            evaluator: Any = (
                _BoundaryEval(truth, found, "segm")
                if kind == "boundary"
                else COCOeval(truth, found, "segm" if kind == "mask" else "bbox")
            )
            evaluator.params.maxDets = [self._max_detections]
            evaluator.evaluate()
            evaluator.accumulate()
        return _curves(evaluator.eval)

    def _data_sets(self, kind: Kind) -> tuple[dict[str, Any], dict[str, Any]]:
        """Truth and predictions as COCO data sets."""
        annotations = [row for rows in self._rows for row in rows.annotations]
        predictions = [row for rows in self._rows for row in rows.predictions]
        if kind == "box":
            # The area decides which size class an unmatched prediction belongs to: its own, of mask or of box.
            predictions = [{**row, "area": row["bbox"][2] * row["bbox"][3]} for row in predictions]
        categories = [{"id": category_id, "name": str(category_id)} for category_id in self._parts]
        common = {"images": [row for rows in self._rows for row in rows.images], "categories": categories}
        return {**common, "annotations": annotations}, {**common, "annotations": predictions}


ENGINES: Mapping[str, type[Tally]] = {"fast": Tally, "pycocotools": Reference}


class _BoundaryEval(COCOeval):
    """COCO evaluation by boundary IoU."""

    def computeIoU(self, image_id: int, category_id: int) -> Any:  # noqa: N802  (the name that COCOeval calls)
        # In the order and number in which COCOeval ranks predictions.
        predictions = sorted(self._dts[image_id, category_id], key=lambda row: -row["score"])[: self.params.maxDets[-1]]
        group = Group(image_id=image_id, annotations=self._gts[image_id, category_id], predictions=predictions)
        return boundary_ious(group, mask_ious(group))


def _coco(data_set: dict[str, Any]) -> COCO:
    coco = COCO()
    # COCOeval writes into the rows, and takes a match with id 0 for none.
    rows = [{**row, "id": number} for number, row in enumerate(data_set["annotations"], start=1)]
    coco.dataset = {**data_set, "annotations": rows}
    coco.createIndex()
    return coco


def _curves(accumulated: Mapping[str, Any]) -> Curves:
    precision, scores, recall = (np.asarray(accumulated[key])[..., 0] for key in ("precision", "scores", "recall"))
    return Curves(precision=precision, scores=scores, recall=recall)
