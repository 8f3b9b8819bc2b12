"""What annotation tools give back: for each image that a person has looked at, the regions that are there now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

from pipeline import masks, polygons
from pipeline.errors import UserError
from pipeline.exports import bitmaps

Pixels = npt.NDArray[np.bool_]


class Shape(Protocol):
    """A part of a region as a tool has it."""

    def pixels(self, height: int, width: int) -> Pixels:
        """Its pixels, bool [height, width].

        Raises:
            ValueError: it is not sound, or of another size.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outline:
    """A polygon with the vertices `points` [P, 2] as (x, y), in pixels, or in percent of width and height."""

    points: npt.NDArray[np.float64]
    percent: bool = False

    def pixels(self, height: int, width: int) -> Pixels:
        """See `Shape`."""
        points = self.points * (width / 100, height / 100) if self.percent else self.points
        return masks.decode(polygons.fill([points], height, width), height, width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """COCO RLE, compressed or as a list of run lengths down the columns. size: (height, width)."""

    counts: str | Sequence[int]
    size: tuple[int, int]

    def pixels(self, height: int, width: int) -> Pixels:
        """See `Shape`."""
        if self.size != (height, width):
            raise ValueError(f"it is {self.size[1]} x {self.size[0]} pixels, and the image {width} x {height}")
        if isinstance(self.counts, str):
            return masks.decode(self.counts, height, width)
        return bitmaps.of_runs(self.counts, width, height).T


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """An instance.

    where: what it is called in sentences. id: its name in the tool, which it had from us if it was there before. label:
    the name of its class.
    """

    where: str
    id: str | None
    label: str
    shapes: tuple[Shape, ...]

    def counts(self, height: int, width: int) -> str:
        """Its mask as compressed COCO RLE.

        Raises:
            UserError: it cannot be decoded.
        """
        try:
            pixels = self.shapes[0].pixels(height, width)
            for shape in self.shapes[1:]:
                pixels = pixels | shape.pixels(height, width)
        except ValueError as error:
            raise UserError(f"{self.where} cannot be decoded: {str(error).rstrip('.')}") from error
        return str(mask_api.encode(np.asfortranarray(pixels, np.uint8))["counts"], "ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An image that a person has looked at, and what is in it now.

    where: what it is called in sentences. name: its file name or key. shard_id, image_id: where the tool kept them.
    size: (height, width), if the tool says it. corrected: the number of the corrections that were shown, if known.
    """

    where: str
    name: str
    regions: tuple[Region, ...]
    shard_id: str | None = None
    image_id: int | None = None
    size: tuple[int, int] | None = None
    corrected: int | None = None
