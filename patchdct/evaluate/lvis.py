"""AP of masks on LVIS, whose images are each annotated for some categories only (Gupta et al., CVPR 2019).

The figures are those of lvis-api 0.5.3, computed by hotcoco. With COCO's categories on both sides they are AP*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import hotcoco
import numpy as np
import numpy.typing as npt

from patchdct.errors import DataError
from patchdct.evaluate.rows import Row, read_rows


def evaluate(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    max_detections: int = 300,
    image_ids: Collection[int] | None = None,
) -> dict[str, Any]:
    """Measure predictions against a federated truth. Neither argument is changed.

    A prediction is judged where the image has an annotation of its category, or names it in neg_category_ids. Where
    not_exhaustive_category_ids names it, a prediction that matches nothing is no error. Crowds are annotations like
    others, and masks without a pixel do not count.

    Args:
        truth: A COCO data set whose images have neg_category_ids and not_exhaustive_category_ids.
        results: COCO results: image_id, category_id, score, segmentation (RLE at image size).
        max_detections: How many predictions of one image count, over all categories, the best scored first.
        image_ids: The images to measure on; all of the truth's where None.

    Returns:
        The counts `images`, `annotations` and `max_detections`; of the results which that leaves, `results`,
        `ignored_results` (of categories that the truth lacks) and `unjudged_results` (of categories that the image says
        nothing about; among `results`); AP (over IoU 0.5 to 0.95), AP50, AP75, APs, APm, APl (areas below 32^2, up to
        96^2 and above), APr, APc, APf (categories of `frequency` r, c, f), and `per_class`, AP by category name. All
        are in 0..1, or None where the truth has no instance to find.

    Raises:
        DataError: An image without the two lists, or what `read_rows` says.
    """
    if max_detections < 1:
        raise DataError(f"max_detections is {max_detections}; it must be at least 1.")
    rows = read_rows(truth, list(_best(results, max_detections)), image_ids)
    known = {image["id"]: image for image in truth["images"]}
    images: list[dict[str, Any]] = [image | _federation(known[image["id"]]) for image in rows.images]
    annotations = [row | {"iscrowd": 0} for row in rows.annotations if row["area"] > 0]
    told = {(row["image_id"], row["category_id"]) for row in annotations}
    told |= {(image["id"], category_id) for image in images for category_id in image["neg_category_ids"]}
    judged = [row for row in rows.predictions if (row["image_id"], row["category_id"]) in told]

    precision = _precision(images, rows.categories, annotations, [row for row in judged if row["area"] > 0])
    frequencies = {category["id"]: category.get("frequency") for category in truth["categories"]}
    figures = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
    }
    figures |= {f"AP{size}": _mean(precision[..., area]) for area, size in enumerate("sml", start=1)}
    for frequency in "rcf":
        chosen = [k for k, category_id in enumerate(rows.categories) if frequencies[category_id] == frequency]
        figures[f"AP{frequency}"] = _mean(precision[:, :, chosen, 0])
    return {
        "images": len(images),
        "annotations": len(annotations),
        "results": len(rows.predictions),
        "ignored_results": rows.ignored_results,
        "unjudged_results": len(rows.predictions) - len(judged),
        "max_detections": max_detections,
        **figures,
        "per_class": {name: _mean(precision[:, :, k, 0]) for k, name in enumerate(rows.categories.values())},
    }


def _best(results: Sequence[Mapping[str, Any]], count: int) -> Iterator[Mapping[str, Any]]:
    """So many results of each image, those of any category, by descending score."""
    seen: Counter[int] = Counter()
    for row in sorted(results, key=lambda row: -row["score"]):
        seen[row["image_id"]] += 1
        if seen[row["image_id"]] <= count:
            yield row


def _federation(image: Mapping[str, Any]) -> dict[str, list[int]]:
    """What an image says about categories that it has no, or not all, annotations of."""
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    for key in keys:
        if key not in image:
            raise DataError(
                f"Image {image['id']} of the truth has no {key}; the metric lvis needs annotations of LVIS."
            )
    return {key: list(image[key]) for key in keys}


def _precision(
    images: list[dict[str, Any]], categories: Mapping[int, str], annotations: list[Row], predictions: list[Row]
) -> npt.NDArray[np.float64]:
    """Precision [IoU, recall, category, area], -1 where there is nothing to find."""
    named = [{"id": category_id, "name": name} for category_id, name in categories.items()]
    truth = hotcoco.COCO({"images": images, "categories": named, "annotations": annotations})
    # Without a bbox, from which the area would be taken; and by LVISResults, as 300 are the limit of anything else.
    keys = ("image_id", "category_id", "score", "segmentation")
    found = hotcoco.LVISResults(truth, [{key: row[key] for key in keys} for row in predictions], max_dets=-1)
    evaluator: Any = hotcoco.LVISeval(truth, found, "segm")
    evaluator.evaluate()
    evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"])[..., 0]


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """The mean of what could be measured."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None
