"""A COCO truth and COCO results, checked and brought to one form: what every metric reads."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from pycocotools import mask as mask_api

from patchdct.errors import DataError

#: An annotation or a result, in plain Python values: id (counted from 1), image_id, category_id, segmentation
#: (compressed RLE), area, bbox (x, y, w, h), iscrowd (0 or 1), and, of a result, score.
Row: TypeAlias = dict[str, Any]

#: So many images are measured at once.
BLOCK = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is measured.

    images: id, height and width, by ascending id. categories: the truth's names by id, ascending. annotations and
    predictions: those of these images and categories, in the order given. ignored_results: how many results are of
    other categories. seen: the categories of all results, known or not.
    """

    images: list[dict[str, int]]
    categories: Mapping[int, str]
    annotations: list[Row]
    predictions: list[Row]
    ignored_results: int
    seen: frozenset[int]


class Truth:
    """A COCO truth, to be measured against some images at a time. It is not changed.

    images: the truth's own, by id. categories: names by id, ascending.
    """

    def __init__(self, truth: Mapping[str, Any]) -> None:
        """Index a COCO data set: images, annotations (polygons or RLE), categories.

        Raises:
            DataError: An image id that does not fit 64 bits.
        """
        self.images: dict[int, Mapping[str, Any]] = {image["id"]: image for image in truth["images"]}
        self.categories = dict(sorted((row["id"], str(row["name"])) for row in truth["categories"]))
        self._annotations: Sequence[Mapping[str, Any]] = truth["annotations"]
        for image_id in self.images:
            if not -(2**63) <= image_id < 2**63:
                raise DataError(f"The truth has the image id {image_id}; an id must fit 64 bits.")
        owners = np.fromiter((row["image_id"] for row in self._annotations), np.int64, len(self._annotations))
        self._order = np.argsort(owners, kind="stable")  # of annotations, by image
        self._owners = owners[self._order]

    def annotations(self, image_ids: Iterable[int]) -> list[Mapping[str, Any]]:
        """The annotations of some images, in the order given."""
        ids = np.array(list(image_ids), np.int64)
        starts, ends = (np.searchsorted(self._owners, ids, side).tolist() for side in ("left", "right"))
        places = [place for start, end in zip(starts, ends, strict=True) for place in self._order[start:end].tolist()]
        return [self._annotations[place] for place in sorted(places)]

    def rows(self, results: Sequence[Mapping[str, Any]], image_ids: Collection[int]) -> Rows:
        """Check results against the truth.

        Args:
            results: COCO results: image_id, category_id, score, segmentation (RLE at image size) and, if at hand, bbox.
            image_ids: The images to measure on.

        Raises:
            DataError: An unknown image, a mask that has not its image's size, a box that is not four finite numbers, or
                a score that is not finite.
        """
        images, chosen = self.images, set(image_ids)
        _check_known("image_ids", chosen, images, "image")
        _check_known("results", {result["image_id"] for result in results}, images, "image")
        known = [result for result in results if result["category_id"] in self.categories]
        wanted = [row for row in self.annotations(chosen) if row["category_id"] in self.categories]
        found = [row for row in known if row["image_id"] in chosen]
        return Rows(
            images=[{"id": i, "height": images[i]["height"], "width": images[i]["width"]} for i in sorted(chosen)],
            categories=self.categories,
            # Ids from 1: COCOeval takes a match with id 0 for no match.
            annotations=[_annotation(row, number, images) for number, row in enumerate(wanted, start=1)],
            predictions=[_prediction(row, number, images) for number, row in enumerate(found, start=1)],
            ignored_results=len(results) - len(known),
            seen=frozenset(result["category_id"] for result in results),
        )

    def check_seen(self, category_ids: Collection[int]) -> None:
        """Refuse results none of which is of a category of the truth, given the categories of all of them.

        Raises:
            DataError: There are results, and none has a category of the truth.
        """
        if set(category_ids).isdisjoint(self.categories):
            _check_known("results", set(category_ids), self.categories, "category")


def read_rows(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], image_ids: Collection[int] | None = None
) -> Rows:
    """Check a truth and results against each other. Neither argument is changed.

    Args:
        truth: A COCO data set: images, annotations (polygons or RLE), categories.
        results: As for `Truth.rows`.
        image_ids: The images to measure on; all of the truth's where None.

    Raises:
        DataError: Only unknown categories, or what `Truth` and `Truth.rows` say.
    """
    whole = Truth(truth)
    rows = whole.rows(results, whole.images if image_ids is None else image_ids)
    whole.check_seen(rows.seen)
    return rows


def blocks(
    results: Iterable[Mapping[str, Any]], image_ids: Iterable[int], size: int = BLOCK
) -> Iterator[tuple[list[int], list[Mapping[str, Any]]]]:
    """Some images at a time, by ascending id, each time with the results on them; what is left comes with the first."""
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for result in results:
        by_image.setdefault(result["image_id"], []).append(result)
    ids = sorted(set(image_ids))
    rest = [row for image_id in by_image.keys() - set(ids) for row in by_image[image_id]]
    for start in range(0, max(len(ids), 1), size):
        chosen = ids[start : start + size]
        yield chosen, rest + [row for image_id in chosen for row in by_image.pop(image_id, ())]
        rest = []


def _annotation(row: Mapping[str, Any], number: int, images: Mapping[int, Mapping[str, Any]]) -> Row:
    form = _form(row, number, images, "annotation")
    if row.get("area") is not None:
        form["area"] = float(row["area"])
    return form | {"iscrowd": int(row.get("iscrowd", 0))}


def _prediction(row: Mapping[str, Any], number: int, images: Mapping[int, Mapping[str, Any]]) -> Row:
    score = float(row["score"])
    if not math.isfinite(score):
        raise DataError(f"A result of image {row['image_id']} has the score {score}; it must be a finite number.")
    return _form(row, number, images, "result") | {"score": score}


def _form(row: Mapping[str, Any], number: int, images: Mapping[int, Mapping[str, Any]], what: str) -> Row:
    rle = _rle(row, images[row["image_id"]], what)
    box = row.get("bbox")
    if box is None:
        box = mask_api.toBbox(rle)
    elif len(box) != 4 or not all(math.isfinite(side) for side in box):
        raise DataError(f"The {what} of image {row['image_id']} has the bbox {box}; it must be 4 numbers (x, y, w, h).")
    return {
        "id": number,
        "image_id": row["image_id"],
        "category_id": row["category_id"],
        "segmentation": rle,
        "area": float(mask_api.area(rle)),
        "bbox": [float(side) for side in box],
        "iscrowd": 0,
    }


def _rle(row: Mapping[str, Any], image: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The mask of an annotation or a result as compressed RLE, from polygons or either kind of RLE."""
    segmentation, size = row.get("segmentation"), [image["height"], image["width"]]
    if isinstance(segmentation, list):
        return dict(mask_api.merge(mask_api.frPyObjects(segmentation, *size)))
    if not isinstance(segmentation, Mapping):
        raise DataError(f"The {what} of image {row['image_id']} has no segmentation; COCO RLE or polygons are taken.")
    if list(segmentation["size"]) != size:
        raise DataError(
            f"The {what} of image {row['image_id']} has a mask of {list(segmentation['size'])} (height, width), "
            f"but the truth has the image as {size}."
        )
    if isinstance(segmentation["counts"], list):
        return dict(mask_api.frPyObjects(segmentation, *size))
    return {"size": size, "counts": segmentation["counts"]}


def _check_known(where: str, ids: set[int], known: Mapping[int, Any], what: str) -> None:
    strangers = sorted(one for one in ids if one not in known)
    if strangers:
        named = ", ".join(map(str, strangers[:3]))
        raise DataError(f"{where} names {what} {named}, and the truth has no such {what}; it has {_range(known)}.")


def _range(known: Mapping[int, Any]) -> str:
    return f"{len(known)} with ids from {min(known)} to {max(known)}" if known else "none"
