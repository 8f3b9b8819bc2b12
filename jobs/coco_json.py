"""COCO jsons from outside, checked before pycocotools sees them, which trusts their masks and reads past their ends."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import Field, StrictFloat, StrictInt, StrictStr, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pipeline import masks
from pipeline.errors import UserError

Side: TypeAlias = Annotated[StrictInt, Field(gt=0)]
Polygon: TypeAlias = Annotated[list[StrictFloat], Field(min_length=6)]

_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class _Image:
    id: StrictInt
    file_name: StrictStr
    height: Side
    width: Side


@dataclass(frozen=True, slots=True)
class _Category:
    id: StrictInt
    name: StrictStr


@dataclass(frozen=True, slots=True)
class _Rle:
    size: tuple[Side, Side]
    counts: StrictStr | list[Annotated[StrictInt, Field(ge=0)]]


@dataclass(frozen=True, slots=True)
class _Annotation:
    image_id: StrictInt
    category_id: StrictInt
    segmentation: _Rle | Annotated[list[Polygon], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class _Result(_Annotation):
    score: StrictFloat


@dataclass(frozen=True, slots=True)
class _Truth:
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


_truth: TypeAdapter[_Truth] = TypeAdapter(_Truth)
_results: TypeAdapter[list[_Result]] = TypeAdapter(list[_Result])
#: What is accepted, by pydantic's name for a fault, or the first word of that.
_ACCEPTED = {
    "dataclass": "an object",
    "float": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "int": "a whole number",
    "list": "a list",
    "string": "a text",
    "too_short": "a list of {min_length} or more",
    "tuple": "a list of 2",
}
T = TypeVar("T")


def check_truth(document: Any, where: str) -> None:
    """Make sure that a document is a COCO data set to measure against.

    Raises:
        UserError: it is not; the sentence begins with `where`.
    """
    _check(_truth, document, f"{where} is no COCO json")
    if not document["annotations"]:
        raise UserError(f"{where} has no annotations, so there is nothing to measure against")
    for key, group in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in document[group]}
        for number, annotation in enumerate(document["annotations"]):
            if annotation[key] not in known:
                raise UserError(f"{where}: annotations[{number}] has the {key} {annotation[key]!r}, which is unknown")
    check_masks((annotation["segmentation"] for annotation in document["annotations"]), f"{where}: annotations")


def check_results(document: Any, where: str) -> None:
    """Make sure that a document is a list of COCO results with masks.

    Raises:
        UserError: it is not; the sentence begins with `where`.
    """
    _check(_results, document, f"{where} is no COCO results json")
    check_masks((result["segmentation"] for result in document), where)


def check_masks(segmentations: Iterator[Any], where: str) -> None:
    """Make sure that those segmentations which are RLE can be decoded.

    Raises:
        UserError: one cannot; the sentence begins with `where` and its number in brackets.
    """
    rles = [(number, one) for number, one in enumerate(segmentations) if isinstance(one, Mapping)]
    for start in range(0, len(rles), _AT_ONCE):
        _check_rles(rles[start : start + _AT_ONCE], where)


def _check_rles(rles: Sequence[tuple[int, Mapping[str, Any]]], where: str) -> None:
    strings = []
    for number, rle in rles:
        counts, (height, width) = rle["counts"], rle["size"]
        if not isinstance(counts, list):
            strings.append((number, counts if isinstance(counts, str) else counts.decode("latin-1"), (height, width)))
        elif sum(counts) != height * width:
            fault = f"its counts add up to {sum(counts)} pixels, and the image has {height * width}"
            raise UserError(f"{where}[{number}] has a mask that cannot be decoded: {fault}")
    measures = masks.measure([one for _, one, _ in strings], [size for _, _, size in strings] or (0, 0))
    for index, fault in sorted(measures.faults.items()):
        raise UserError(f"{where}[{strings[index][0]}] has a mask that cannot be decoded: {fault}")


def _check(adapter: TypeAdapter[T], document: Any, sentence: str) -> None:
    try:
        adapter.validate_python(document)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
    else:
        return
    first = max(faults, key=lambda fault: (len(_place(fault)), not fault["type"].endswith("_type")))
    place = "".join(_place(first)).removeprefix(".") or "it"
    if first["type"] == "missing":
        raise UserError(f"{sentence}: {place} is missing")
    words = _ACCEPTED.get(first["type"]) or _ACCEPTED.get(first["type"].partition("_")[0]) or first["msg"]
    raise UserError(f"{sentence}: {place} must be {words.format(**first.get('ctx', {}))}")


def _place(fault: ErrorDetails) -> list[str]:
    """Where in the document a fault is; pydantic also names alternatives of a type, such as "_Rle" and "str"."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
    return [part for part in parts if re.fullmatch(r"\[\d+\]|\.(?!str)[a-z][a-z_]*", part)]
