"""CVAT's XML, "CVAT for images 1.1". It does not tell which images were looked at: all that it names were."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

import numpy as np

from pipeline.errors import UserError
from pipeline.exports import bitmaps
from pipeline.review.answers import Answer, Outline, Pixels, Region, Shape

_REFUSED = ("box", "cuboid", "ellipse", "points", "polyline", "skeleton")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bitmap:
    """A mask of CVAT: run lengths along the rows of its box, background first."""

    runs: tuple[int, ...]
    left: int
    top: int
    width: int
    height: int

    def pixels(self, height: int, width: int) -> Pixels:
        """See `Shape`."""
        bottom, right = self.top + self.height, self.left + self.width
        if min(self.left, self.top, self.width, self.height) < 0 or bottom > height or right > width:
            raise ValueError(f"its box does not lie within the image of {width} x {height} pixels")
        whole = np.zeros((height, width), np.bool_)
        whole[self.top : bottom, self.left : right] = bitmaps.of_runs(self.runs, self.height, self.width)
        return whole


def read(data: bytes, where: str) -> tuple[Answer, ...]:
    """The images of an export.

    Polygons of one group and class are one instance, as patchlabel writes them.

    Raises:
        UserError: it is no such XML, or holds something that is neither a mask nor a polygon.
    """
    reader = _Reader(where=where)
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.StartDoctypeDeclHandler = reader.refuse  # and with it all entities
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise UserError(f"{where} is no XML that can be read: {error}") from error
    if not reader.seen:
        raise UserError(f"{where} is no CVAT for images 1.1; accepted is <annotations> with an <image> for each image")
    return tuple(reader.answers)


@dataclass(slots=True)
class _Reader:
    """What the parser calls."""

    where: str
    seen: bool = False
    answers: list[Answer] = field(default_factory=list)
    _image: Mapping[str, str] | None = None
    _found: defaultdict[tuple[str, str], list[Shape]] = field(default_factory=lambda: defaultdict(list))
    _depth: int = 0

    def refuse(self, *_: object) -> None:
        raise UserError(f"{self.where} has a document type, which is not accepted in XML from outside")

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        if self._depth == 1:
            self.seen = name == "annotations"
        elif self._depth == 2 and name == "track":
            raise UserError(f"{self.where} is CVAT for video; export it as CVAT for images 1.1")
        elif self._depth == 2 and name == "image":
            self._image = attributes
            self._found.clear()
        elif self._depth == 3 and self._image is not None:
            self._shape(name, attributes)

    def end(self, name: str) -> None:
        if self._depth == 2 and name == "image" and self._image is not None:
            self._finish(self._image)
            self._image = None
        self._depth -= 1

    def _shape(self, name: str, attributes: Mapping[str, str]) -> None:
        if name in _REFUSED:
            raise UserError(f"{self._named()} has a {name}; accepted are masks and polygons")
        if name not in ("mask", "polygon"):
            return
        label, group = attributes.get("label", ""), attributes.get("group_id", "0")
        shape = self._outline(attributes) if name == "polygon" else self._bitmap(attributes)
        alone = name == "mask" or group == "0"
        self._found[f"#{len(self._found)}" if alone else group, label].append(shape)

    def _outline(self, attributes: Mapping[str, str]) -> Outline:
        try:
            points = [tuple(map(float, pair.split(","))) for pair in attributes.get("points", "").split(";")]
            return Outline(points=np.array(points, np.float64).reshape(len(points), 2))
        except ValueError as error:
            raise UserError(f"{self._named()} has a polygon whose points cannot be read") from error

    def _bitmap(self, attributes: Mapping[str, str]) -> _Bitmap:
        try:
            runs = tuple(map(int, attributes["rle"].split(",")))
            box = {name: int(float(attributes[name])) for name in ("left", "top", "width", "height")}
        except (KeyError, ValueError, OverflowError) as error:
            raise UserError(f"{self._named()} has a mask whose runs or box cannot be read") from error
        return _Bitmap(runs=runs, **box)

    def _finish(self, image: Mapping[str, str]) -> None:
        where = self._named()
        try:
            size = int(image["height"]), int(image["width"])
        except (KeyError, ValueError) as error:
            raise UserError(f"{where} has no size") from error
        regions = tuple(
            Region(where=f"{where}: shape {number}", id=None, label=label, shapes=tuple(shapes))
            for number, ((_, label), shapes) in enumerate(self._found.items(), start=1)
        )
        self.answers.append(Answer(where=where, name=image.get("name", ""), regions=regions, size=size))

    def _named(self) -> str:
        return f"{self.where}: image {'' if self._image is None else self._image.get('name', '')!r}"
