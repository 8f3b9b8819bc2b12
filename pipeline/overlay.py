"""Pictures of labels: masks over their image, and sheets of such pictures."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_api

from pipeline.records import Category, ImageLabels, Instances, Pixels

Colour: TypeAlias = tuple[int, int, int]

PAPER: Colour = (250, 250, 250)
INK: Colour = (24, 24, 24)

#: Left, top, right, bottom in pixels.
Rectangle: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tag:
    """A short text for an instance, to be written near its box."""

    text: str
    colour: Colour
    box: Rectangle


def draw_labels(
    image: Pixels,
    labels: ImageLabels | Instances,
    categories: Iterable[Category],
    *,
    scale: int = 1,
    alpha: float = 0.4,
    boxes: bool = False,
    names: bool = True,
    scores: bool = True,
) -> Pixels:
    """Draw instances over their image, the best scored on top, each in a colour of its own.

    Args:
        image: uint8 [H, W, 3] RGB; it is not changed.
        labels: The instances, with masks of the image's size.
        categories: Where the names come from; an id without a name is written as `#id`.
        scale: How many pixels of the picture show one of the image, along each axis. Outlines and text stay thin.
        alpha: How strongly a mask tints what it covers, 0..1. Holes stay clear.
        boxes: Draw the boxes too.
        names: Write the category beside each instance.
        scores: Write the score beside each instance, in percent.

    Returns:
        The picture, uint8 [H * scale, W * scale, 3] RGB.

    Raises:
        ValueError: The labels are of an image of another size.
    """
    instances = labels.instances if isinstance(labels, ImageLabels) else labels
    height, width = image.shape[:2]
    if isinstance(labels, ImageLabels) and len(instances) and (labels.height, labels.width) != (height, width):
        raise ValueError(
            f"The labels of {labels.key} are for {labels.height} x {labels.width} pixels (height x width), "
            f"but the image has {height} x {width}."
        )
    names_by_id = {category.id: category.name for category in categories}
    picture = _enlarge(image, scale)
    tags: list[_Tag] = []
    for index in reversed(range(len(instances))):
        mask = mask_api.decode({"size": [height, width], "counts": instances.counts[index]})
        colour = _colour(index)
        _draw_mask(picture, _enlarge(mask, scale), colour, alpha, rim=scale > 1)
        x, y, w, h = (float(side) * scale for side in instances.boxes[index])
        if boxes:
            cv2.rectangle(picture, (round(x), round(y)), (round(x + w) - 1, round(y + h) - 1), colour)
        category_id = int(instances.category_ids[index])
        words = [names_by_id.get(category_id, f"#{category_id}")] if names else []
        words += [f"{100 * float(instances.scores[index]):.0f}%"] if scores else []
        tags.append(_Tag(text=" ".join(words), colour=colour, box=(x, y, x + w, y + h)))
    return _write_tags(picture, [tag for tag in reversed(tags) if tag.text])


def contact_sheet(
    tiles: Sequence[Pixels], *, columns: int, captions: Sequence[str] | None = None, gap: int = 8
) -> Pixels:
    """Lay pictures out in rows, each centred in a cell as large as the largest, with its caption below.

    Raises:
        ValueError: No tiles, no columns, or not one caption for each tile.
    """
    if not tiles or columns < 1:
        raise ValueError(f"A sheet of {len(tiles)} tiles in {columns} columns was asked for; both must be at least 1.")
    if captions is not None and len(captions) != len(tiles):
        raise ValueError(f"{len(captions)} captions were given for {len(tiles)} tiles; each tile has one.")
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    height = max(tile.shape[0] for tile in tiles)
    width = max(tile.shape[1] for tile in tiles)
    font = _font(min(max(width // 22, 11), 20))
    strip = _line_height(font) + 4 if captions is not None else 0
    sheet = np.full((rows * (height + strip + gap) + gap, columns * (width + gap) + gap, 3), PAPER, np.uint8)
    corners = [
        (gap + (number // columns) * (height + strip + gap), gap + (number % columns) * (width + gap))
        for number in range(len(tiles))
    ]
    for tile, (top, left) in zip(tiles, corners, strict=True):
        top += (height - tile.shape[0]) // 2
        left += (width - tile.shape[1]) // 2
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    if captions is None:
        return sheet
    page = Image.fromarray(sheet)
    pen = ImageDraw.Draw(page)
    for caption, (top, left) in zip(captions, corners, strict=True):
        pen.text((left + width / 2, top + height + 2), _shorten(caption, font, width), INK, font, anchor="ma")
    return np.array(page)


def write_png(path: Path, pixels: Pixels) -> None:
    """Write a picture (uint8 [H, W, 3] RGB) as a PNG file."""
    Image.fromarray(pixels).save(path, "PNG")


def _enlarge(image: Pixels, scale: int) -> Pixels:
    """A copy of an image or mask in which each pixel is a square of `scale` pixels."""
    return np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)


def _colour(index: int) -> Colour:
    """A bright colour: those of neighbours in the ranking are far apart, and a hundred are all different."""
    hue = (0.58 + index * 0.618034) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.9, 0.55, 0.75)[index % 3], (1.0, 1.0, 0.85)[index % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_mask(picture: Pixels, mask: Pixels, colour: Colour, alpha: float, *, rim: bool) -> None:
    """Tint the pixels of a mask (uint8 [H, W], 0 or 1), and trace its outlines, those of holes too.

    A dark rim beside the bright outline keeps it visible on a ground of its own colour.
    """
    inside = mask.astype(bool)
    tinted = picture[inside] * (1 - alpha) + np.array(colour) * alpha
    picture[inside] = np.rint(tinted).astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if rim:
        cv2.drawContours(picture, outlines, -1, INK, 3, cv2.LINE_AA)
    cv2.drawContours(picture, outlines, -1, colour, 1, cv2.LINE_8)


def _write_tags(picture: Pixels, tags: Sequence[_Tag]) -> Pixels:
    """Write the tags in order, each where it is near its box and covers the earlier ones least."""
    page = Image.fromarray(picture)
    pen = ImageDraw.Draw(page)
    font = _font(min(max(picture.shape[0] // 36, 10), 18))
    taken: list[Rectangle] = []
    for tag in tags:
        width, height = math.ceil(font.getlength(tag.text)) + 4, _line_height(font)
        spot = _spot(tag.box, width, height, page.width, page.height, taken)
        taken.append(spot)
        luminance = np.dot(tag.colour, (0.299, 0.587, 0.114))
        pen.rectangle((spot[0], spot[1], spot[2] - 1, spot[3] - 1), fill=tag.colour)
        pen.text((spot[0] + 2, spot[1]), tag.text, INK if luminance > 110 else PAPER, font)
    return np.array(page)


def _spot(
    box: Rectangle, width: int, height: int, page_width: int, page_height: int, taken: Sequence[Rectangle]
) -> Rectangle:
    """Where in the page a text of this size goes: above, below or within its box."""
    left, top, right, bottom = box
    middle = (top + bottom - height) / 2
    corners = [
        (left, top - height),
        (left, bottom),
        (right - width, top - height),
        (right - width, bottom),
        ((left + right - width) / 2, middle),
        (right, middle),
        (left - width, middle),
    ]
    spots: list[Rectangle] = []
    for x, y in corners:
        x, y = round(max(0, min(x, page_width - width))), round(max(0, min(y, page_height - height)))
        spots.append((x, y, x + width, y + height))
    return min(spots, key=lambda spot: sum(_overlap(spot, other) for other in taken))


def _overlap(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow is built without FreeType"
    return font


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics())


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut at its end to fit a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
