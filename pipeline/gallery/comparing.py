"""How the masks of an image compare with others of it: with the truth, or with what they were before a correction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

from pipeline import masks
from pipeline.datasets import checking, documents
from pipeline.errors import UserError
from pipeline.keys import Keys
from pipeline.records import Category, ImageLabels, Instances
from pipeline.store import Store, redact
from pipeline.taxonomy import Taxonomy

_EXCUSED = 0.5  # of a mask, in crowd regions of its class


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """The objects of an image, as masks of one size: category_ids int32 [N], counts: N compressed COCO RLE strings."""

    category_ids: npt.NDArray[np.int32]
    counts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Masks against objects. By descending score each mask takes the free object of its class of the highest IoU.

    ious: float32 [N], 0 for a mask that took none, NaN where it lies in a crowd region, or the truth does not know its
    class. objects: the M objects. partners: int32 [M], which mask took it, else -1.
    """

    ious: npt.NDArray[np.float32]
    objects: Objects
    partners: npt.NDArray[np.int32]


class Truth:
    """A COCO data set, by the images of a run, in the run's classes."""

    def __init__(self, document: Mapping[str, Any], categories: Sequence[Category], taxonomy: Taxonomy | None) -> None:
        """`document`: checked, see `documents.normal`. `categories`: those of the run as they are shown."""
        ids = {category.name: category.id for category in categories}
        renamed = {} if taxonomy is None else taxonomy.names
        self._ids = {row["id"]: ids.get(renamed.get(row["name"], row["name"]) or "") for row in document["categories"]}
        self.fits = any(number is not None for number in self._ids.values())
        self._keys = Keys(document, more=True)
        self._sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
        self._annotations: dict[int, list[Any]] = defaultdict(list)
        for annotation in document["annotations"]:
            self._annotations[annotation["image_id"]].append(annotation)

    def compare(self, row: ImageLabels) -> Comparison | None:
        """An image's masks with its truth; None where it has none, or one of another size.

        Raises:
            UserError: another image had the same truth; see `Keys`.
        """
        image_id = self._keys.match([row.key]).get(row.key)
        if image_id is None or self._sizes[image_id] != (row.height, row.width):
            return None
        kinds: tuple[list[Any], list[Any]] = ([], [])
        for annotation in self._annotations.get(image_id, ()):
            number = self._ids.get(annotation["category_id"])
            if number is not None:
                kinds[bool(annotation["iscrowd"])].append((number, annotation["segmentation"]))
        objects, crowds = (_objects(found, row.height, row.width) for found in kinds)
        found = compare(row.instances, objects, crowds, (row.height, row.width))
        known = [number for number in self._ids.values() if number is not None]
        judged = np.isin(row.instances.category_ids, known)  # nobody has looked for objects of other classes
        return replace(found, ious=np.where(judged, found.ious, np.float32(np.nan)))


def read_truth(uri: str, store: Store, categories: Sequence[Category], taxonomy: Taxonomy | None) -> Truth:
    """Read a COCO json, whole.

    Raises:
        UserError: it is none, or has no class in common with the run.
    """
    document = documents.parsed(uri, store=store, key="--truth", what="a COCO json")
    where = f"--truth {redact(uri)}"
    checking.check_truth(document, where, strict=False)
    truth = Truth(documents.normal(document, where), categories, taxonomy)
    if not truth.fits:
        theirs = ", ".join(repr(row["name"]) for row in document["categories"][:10]) or "none"
        ours = ", ".join(repr(category.name) for category in categories[:10]) or "none"
        raise UserError(f"{where} has no class of the run; it has {theirs}, and the run has {ours}")
    return truth


def compare(found: Instances, objects: Objects, crowds: Objects, size: tuple[int, int]) -> Comparison:
    """Compare masks with objects of the same image size (height, width); `crowds` excuse what lies in them."""
    ious = np.zeros(len(found), np.float32)
    partners = np.full(len(objects.counts), -1, np.int32)
    shares = _overlaps(found.counts, objects, size, crowd=False)
    fits = shares * (found.category_ids[:, None] == objects.category_ids[None])
    for place in np.argsort(-found.scores, kind="stable").tolist() if fits.size else ():
        free = np.where(partners < 0, fits[place], 0.0)
        best = int(free.argmax())
        if free[best] > 0:
            ious[place], partners[best] = free[best], place
    if len(crowds.counts) and len(found):
        same = found.category_ids[:, None] == crowds.category_ids[None]
        inside = (_overlaps(found.counts, crowds, size, crowd=True) * same).max(axis=1) >= _EXCUSED
        ious[inside & (ious == 0)] = np.nan
    return Comparison(ious=ious, objects=objects, partners=partners)


def change(before: ImageLabels, after: ImageLabels) -> float:
    """How far two versions of an image's labels are apart, in 0..1: 1 - 2 * (sum of IoU) / (masks before and after).

    0: nothing but the order differs; 1: no mask has one of its class that it overlaps.
    """
    total = len(before.instances) + len(after.instances)
    if not total:
        return 0.0
    if (before.height, before.width) != (after.height, after.width):
        return 1.0
    old = Objects(category_ids=before.instances.category_ids, counts=before.instances.counts)
    nothing = Objects(category_ids=np.zeros(0, np.int32), counts=())
    found = compare(after.instances, old, nothing, (after.height, after.width))
    return float(max(0.0, 1 - 2 * float(found.ious.sum()) / total))


def _objects(found: Sequence[tuple[int, Any]], height: int, width: int) -> Objects:
    counts = []
    for _, segmentation in found:
        if isinstance(segmentation, list):
            segmentation = mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
        one = segmentation["counts"]
        counts.append(one if isinstance(one, str) else str(one, "ascii"))
    return Objects(category_ids=np.array([number for number, _ in found], np.int32), counts=tuple(counts))


def _overlaps(counts: Sequence[str], others: Objects, size: tuple[int, int], *, crowd: bool) -> npt.NDArray[np.float64]:
    """IoU, or the share within a crowd, of masks [N] and [M]: float64 [N, M]. Those that cannot be decoded have 0."""
    shares = np.zeros((len(counts), len(others.counts)))
    faulty = masks.measure([*counts, *others.counts], size).faults
    left = [place for place in range(len(counts)) if place not in faulty]
    right = [place for place in range(len(others.counts)) if place + len(counts) not in faulty]
    if left and right:
        some = [{"size": [*size], "counts": counts[place]} for place in left]
        more = [{"size": [*size], "counts": others.counts[place]} for place in right]
        shares[np.ix_(left, right)] = mask_api.iou(some, more, [int(crowd)] * len(right))
    return shares
