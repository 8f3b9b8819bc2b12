"""Label Studio's JSON export: tasks with the annotations that people have submitted."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.exports.labelstudio import unbrush
from pipeline.review.answers import Answer, Outline, Pixels, Region, Shape

_LABELS = ("brushlabels", "polygonlabels", "labels")
_SHAPES = ("brush", "brushlabels", "polygon", "polygonlabels")
#: What may be told of an image or a region beside its mask; the audit reads its choices.
_WORDS = ("choices", "labels", "number", "pairwise", "ranker", "rating", "relation", "taxonomy", "textarea")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task. where: what it is called in sentences. result: of the annotation that counts; None: nobody has looked."""

    where: str
    data: Mapping[str, Any]
    result: Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Brush:
    """Brush strokes. data: bytes in the coding of `exports.labelstudio.brush`. size: (height, width)."""

    data: Sequence[int]
    size: tuple[int, int]

    def pixels(self, height: int, width: int) -> Pixels:
        """See `Shape`."""
        _check_size(self.size, height, width)
        return unbrush(self.data, height, width)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Polygon:
    """A polygon in percent. size: (height, width) of the image that it was drawn on."""

    outline: Outline
    size: tuple[int, int]

    def pixels(self, height: int, width: int) -> Pixels:
        """See `Shape`."""
        _check_size(self.size, height, width)
        return self.outline.pixels(height, width)


def tasks(data: bytes, where: str) -> list[Task]:
    """The tasks of an export, each with the annotation that counts: the ground truth, else the one changed last.

    Raises:
        UserError: it is no such export.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON that can be read") from error
    wrong = UserError(f"{where} is no JSON export of Label Studio, a list of tasks with data and annotations")
    if not isinstance(found, list):
        raise wrong
    if found and all(isinstance(one, dict) and "data" not in one for one in found):
        raise UserError(f"{where} has tasks without data; export it from Label Studio as JSON, not as JSON-MIN")
    read = []
    for number, one in enumerate(found, start=1):
        if not isinstance(one, dict) or not isinstance(one.get("data"), dict):
            raise wrong
        name = f"{where}: task {one.get('id', number)}"
        annotations = one.get("annotations", [])
        if not isinstance(annotations, list) or not all(isinstance(each, dict) for each in annotations):
            raise UserError(f"{name} has annotations by their ids alone; export the project as JSON")
        read.append(Task(where=name, data=one["data"], result=_counting(annotations, name)))
    return read


def _counting(annotations: Sequence[Mapping[str, Any]], where: str) -> Sequence[Mapping[str, Any]] | None:
    """The result of the annotation that counts; None where there is none that was submitted."""
    submitted = [one for one in annotations if not one.get("was_cancelled")]
    if not submitted:
        return None
    best = max(submitted, key=lambda one: (bool(one.get("ground_truth")), str(one.get("updated_at") or "")))
    result = best.get("result")
    if not isinstance(result, list) or not all(isinstance(each, dict) for each in result):
        raise UserError(f"{where} has an annotation without a list of results")
    return result


def answer(task: Task) -> Answer:
    """What a task says of its image.

    Raises:
        UserError: it was not made of an export of a run, or holds something that is no mask.
    """
    key, shard_id = task.data.get("key"), task.data.get("shard_id")
    if not isinstance(key, str) or not isinstance(shard_id, str | None):
        raise UserError(
            f"{task.where} does not say in its data which image it is of; import the tasks that patchlabel wrote"
        )
    image_id, corrected = task.data.get("image_id"), task.data.get("corrected")
    return Answer(
        where=task.where,
        name=key,
        regions=regions(task),
        shard_id=shard_id,
        image_id=image_id if isinstance(image_id, int) else None,
        corrected=corrected if isinstance(corrected, int) else None,
    )


def regions(task: Task) -> tuple[Region, ...]:
    """The instances of a task: what has our id but for the piece, and one class, is one.

    Raises:
        UserError: there is something else than masks and polygons, or one without a class.
    """
    assert task.result is not None
    classes = {one.get("id"): _label(one) for one in task.result if one.get("type") == "labels"}
    found: defaultdict[tuple[object, str], list[Shape]] = defaultdict(list)
    for number, one in enumerate(task.result):
        kind, name = one.get("type"), f"{task.where}: region {one.get('id', number)}"
        if kind in _WORDS:
            continue
        if kind not in _SHAPES:
            raise UserError(f"{name} is of the type {kind}; accepted are brush strokes and polygons")
        label = _label(one) or classes.get(one.get("id"))
        if label is None:
            raise UserError(f"{name} has no class, or more than one")
        identity = one.get("id") if isinstance(one.get("id"), str) else number
        found[_instance(identity), label].append(_shape(one, name))
    return tuple(
        Region(where=f"{task.where}: region {name}", id=str(name), label=label, shapes=tuple(shapes))
        for (name, label), shapes in found.items()
    )


def choice(task: Task, name: str) -> str | None:
    """What was chosen for the whole image under a name; None: nothing."""
    for one in task.result or ():
        if one.get("type") == "choices" and one.get("from_name") == name:
            value = one.get("value")
            chosen = value.get("choices") if isinstance(value, dict) else None
            if isinstance(chosen, list) and len(chosen) == 1 and isinstance(chosen[0], str):
                return chosen[0]
    return None


def _instance(identity: object) -> object:
    """The id of the instance that a region is a piece of, for ids of ours.

    >>> _instance("70-3-1"), _instance("70-3"), _instance("x-y-z")
    ('70-3', '70-3', 'x-y-z')
    """
    if isinstance(identity, str):
        parts = identity.split("-")
        if len(parts) == 3 and all(part.isascii() and part.isdigit() for part in parts):
            return "-".join(parts[:2])
    return identity


def _label(one: Mapping[str, Any]) -> str | None:
    value = one.get("value")
    for key in _LABELS:
        if isinstance(value, dict) and key in value:
            labels = value[key]
            return labels[0] if isinstance(labels, list) and len(labels) == 1 and isinstance(labels[0], str) else None
    return None


def _shape(one: Mapping[str, Any], where: str) -> Shape:
    if one.get("image_rotation") not in (None, 0):
        raise UserError(f"{where} was drawn on a rotated image; accepted is a rotation of 0")
    size = one.get("original_height"), one.get("original_width")
    value = one.get("value")
    if not isinstance(size[0], int) or not isinstance(size[1], int) or not isinstance(value, dict):
        raise UserError(f"{where} has no size, or no value")
    height, width = size[0], size[1]
    if "rle" in value:
        return _Brush(data=value["rle"], size=(height, width))
    try:
        points = np.array(value["points"], np.float64)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{where} has neither brush strokes nor points") from error
    if points.ndim != 2 or points.shape[1] != 2 or not math.isfinite(points.sum()):
        raise UserError(f"{where} has points that are no pairs of numbers")
    return _Polygon(outline=Outline(points=points, percent=True), size=(height, width))


def _check_size(size: tuple[int, int], height: int, width: int) -> None:
    if size != (height, width):
        raise ValueError(f"it was drawn on {size[1]} x {size[0]} pixels, and the image has {width} x {height}")
