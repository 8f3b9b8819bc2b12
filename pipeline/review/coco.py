"""COCO's JSON. It does not tell which images were looked at: all that it names were."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError
from pipeline.review.answers import Answer, Counts, Outline, Region, Shape


class _Strict(BaseModel):
    """What is read of a record; the rest of it may be anything."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Image(_Strict):
    id: int
    file_name: str
    height: int
    width: int


class _Rle(_Strict):
    size: Annotated[list[int], Field(min_length=2, max_length=2)]
    counts: str | list[int]


class _Annotation(_Strict):
    id: int | None = None
    image_id: int
    category_id: int
    iscrowd: Literal[0] = 0
    segmentation: _Rle | list[Annotated[list[float], Field(min_length=6)]]


class _Category(_Strict):
    id: int
    name: str


class _Document(_Strict):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read(data: bytes, where: str) -> tuple[Answer, ...]:
    """The images of a COCO file, whose annotations are polygons or RLE; crowd regions are not accepted.

    Raises:
        UserError: it is no such file.
    """
    try:
        document = _Document.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{where} is no COCO JSON of masks: {place}: {first['msg']}") from None
    names = {one.id: one.name for one in document.categories}
    found: defaultdict[int, list[Region]] = defaultdict(list)
    for number, one in enumerate(document.annotations):
        name = f"{where}: annotation {number if one.id is None else one.id}"
        if one.category_id not in names:
            raise UserError(f"{name} is of category {one.category_id}, which the file does not have")
        shapes = _shapes(one.segmentation, name)
        found[one.image_id].append(Region(where=name, id=None, label=names[one.category_id], shapes=shapes))
    answers = [
        Answer(
            where=f"{where}: image {one.file_name!r}",
            name=one.file_name,
            image_id=one.id,
            size=(one.height, one.width),
            regions=tuple(found.pop(one.id, ())),
        )
        for one in document.images
    ]
    for strangers in found.values():
        raise UserError(f"{strangers[0].where} is of an image that the file does not have")
    return tuple(answers)


def _shapes(segmentation: Any, where: str) -> tuple[Shape, ...]:
    if isinstance(segmentation, _Rle):
        height, width = segmentation.size
        return (Counts(counts=segmentation.counts, size=(height, width)),)
    if not segmentation or any(len(points) % 2 for points in segmentation):
        raise UserError(f"{where} has a polygon that is no list of x and y")
    return tuple(Outline(points=np.array(points, np.float64).reshape(-1, 2)) for points in segmentation)
