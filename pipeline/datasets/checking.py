"""COCO jsons from outside, checked before pycocotools sees them, which trusts their masks and reads past their ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails

from pipeline import masks
from pipeline.errors import UserError

#: What is checked at once: a checked document is a second one in memory.
_AT_ONCE = 10_000

#: COCO's masks count pixels in 32 bits.
Side: TypeAlias = Annotated[StrictInt, Field(gt=0, le=65_535)]
#: Far outside of any image. pycocotools draws a polygon along its whole length, and overflows at numbers beyond.
Number: TypeAlias = Annotated[StrictFloat, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Finite: TypeAlias = Annotated[StrictFloat, Field(allow_inf_nan=False)]


def _in_pairs(polygon: list[float]) -> list[float]:
    if len(polygon) % 2:
        raise ValueError("a list of x, y, x, y, ...")
    return polygon


Polygon: TypeAlias = Annotated[list[Number], Field(min_length=6), AfterValidator(_in_pairs)]


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
class _Result:
    image_id: StrictInt
    category_id: StrictInt
    segmentation: _Rle | Annotated[list[Polygon], Field(min_length=1)]
    score: Finite


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loose:
    """An annotation that may lack a mask."""

    image_id: StrictInt
    category_id: StrictInt
    segmentation: _Rle | list[list[Number]] | None = None
    bbox: Annotated[list[Number], Field(min_length=4, max_length=4)] | None = None
    area: Finite | None = None
    iscrowd: StrictInt | StrictBool = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Strict(_Loose):
    segmentation: _Rle | Annotated[list[Polygon], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class _Document:
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]


_GROUPS: Mapping[str, TypeAdapter[Any]] = {
    "images": TypeAdapter(list[_Image]),
    "categories": TypeAdapter(list[_Category]),
}
_document: TypeAdapter[Any] = TypeAdapter(_Document)
_annotations: Mapping[bool, TypeAdapter[Any]] = {False: TypeAdapter(list[_Loose]), True: TypeAdapter(list[_Strict])}
_list: TypeAdapter[Any] = TypeAdapter(list[Any])
_results: TypeAdapter[Any] = TypeAdapter(list[_Result])
#: What is accepted, by pydantic's name for a fault, or the first word of that.
_ACCEPTED = {
    "bool": "0 or 1",
    "dataclass": "an object",
    "finite": "a finite number",
    "float": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "int": "a whole number",
    "less_than_equal": "{le} or less",
    "list": "a list",
    "string": "a text",
    "too_long": "a list of {max_length} or fewer",
    "too_short": "a list of {min_length} or more",
    "tuple": "a list of 2",
    "value_error": "{error}",
}


def check_truth(document: Any, where: str, *, strict: bool = True) -> None:
    """Make sure that a document is a COCO data set.

    Args:
        document: what the JSON holds.
        where: how a sentence begins.
        strict: whether there must be annotations, and all of them with masks, as to measure against.

    Raises:
        UserError: it is not.
    """
    sentence = f"{where} is no COCO json"
    _check(_document, document, sentence)
    for group, adapter in {**_GROUPS, "annotations": _annotations[strict]}.items():
        _check_entries(adapter, document[group], sentence, group)
    annotations: list[dict[str, Any]] = document["annotations"]
    if strict and not annotations:
        raise UserError(f"{where} has no annotations, so there is nothing to measure against")
    images = _by_id(document["images"], f"{where}: images")
    categories = _by_id(document["categories"], f"{where}: categories")
    for number, annotation in enumerate(annotations):
        for key, known in (("image_id", images), ("category_id", categories)):
            if annotation[key] not in known:
                raise UserError(f"{where}: annotations[{number}] has the {key} {annotation[key]!r}, which is unknown")
        segmentation, image = annotation.get("segmentation"), images[annotation["image_id"]]
        size = [image["height"], image["width"]]
        if isinstance(segmentation, Mapping) and list(segmentation["size"]) != size:
            raise UserError(
                f"{where}: annotations[{number}] has a mask of {list(segmentation['size'])} (height, width), and its "
                f"image is {size}"
            )
    check_masks((annotation.get("segmentation") for annotation in annotations), f"{where}: annotations")


def check_results(document: Any, where: str) -> None:
    """Make sure that a document is a list of COCO results with masks.

    Raises:
        UserError: it is not; the sentence begins with `where`.
    """
    sentence = f"{where} is no COCO results json"
    _check(_list, document, sentence)
    _check_entries(_results, document, sentence, "")
    check_masks((result["segmentation"] for result in document), where)


def check_masks(segmentations: Iterable[Any], where: str) -> None:
    """Make sure that those segmentations which are RLE can be decoded.

    Raises:
        UserError: one cannot; the sentence begins with `where` and its number in brackets.
    """
    rles = [(number, one) for number, one in enumerate(segmentations) if isinstance(one, Mapping)]
    for start in range(0, len(rles), _AT_ONCE):
        _check_rles(rles[start : start + _AT_ONCE], where)


def _by_id(entries: Sequence[Mapping[str, Any]], where: str) -> dict[int, Mapping[str, Any]]:
    known: dict[int, Mapping[str, Any]] = {}
    for number, entry in enumerate(entries):
        if known.setdefault(entry["id"], entry) is not entry:
            raise UserError(f"{where}[{number}] has the id {entry['id']} of an earlier one; each needs its own")
    return known


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


def _check_entries(adapter: TypeAdapter[Any], entries: Sequence[Any], sentence: str, group: str) -> None:
    """Check a list, a part at a time."""
    for start in range(0, len(entries), _AT_ONCE):
        _check(adapter, entries[start : start + _AT_ONCE], sentence, group, start)


def _check(adapter: TypeAdapter[Any], document: Any, sentence: str, group: str = "", start: int = 0) -> None:
    try:
        adapter.validate_python(document)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
    else:
        return
    first = max(faults, key=lambda fault: (len(_place(fault, start)), not fault["type"].endswith("_type")))
    place = "".join((group, *_place(first, start))).removeprefix(".") or "it"
    if first["type"] == "missing":
        raise UserError(f"{sentence}: {place} is missing")
    words = _ACCEPTED.get(first["type"]) or _ACCEPTED.get(first["type"].partition("_")[0]) or first["msg"]
    raise UserError(f"{sentence}: {place} must be {words.format(**first.get('ctx', {}))}")


def _place(fault: ErrorDetails, start: int) -> list[str]:
    """Where in the document a fault is; pydantic also names alternatives of a type, such as "_Rle" and "str"."""
    first, *rest = fault["loc"] or ("",)
    loc = (first + start if isinstance(first, int) else first, *rest)
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return [part for part in parts if re.fullmatch(r"\[\d+\]|\.(?!str|int|bool)[a-z][a-z_]*", part)]
