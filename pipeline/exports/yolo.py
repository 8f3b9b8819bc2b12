"""YOLO segmentation, as ultralytics reads it: a text file an image, a polygon an instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import yaml

from pipeline import polygons
from pipeline.exports.common import Request, Tally, Written, folder, provenance
from pipeline.records import Category, ImageLabels

_MOST_DECIMALS = 6
_LEAST_POINTS = 3


def write(request: Request, /) -> Written:
    """`labels/*.txt`, `data.yaml`, and with images `images/*`; without, the folder opens once these lie there.

    ultralytics fills polygons with OpenCV, which draws the outline too. So they go through the centres of the outermost
    pixels: at the image's own size, a mask of one piece is itself again, holes included. Further pieces are joined by
    bridges, which are drawn a pixel wide; a piece that is smaller than its bridge is left out. Classes count from 0, in
    the order of the categories, whose ids are in `data.yaml` as `category_ids`. There is no place for scores, quality
    columns and corrections; quarantined images are not in it, and an image without masks has an empty file.
    """
    tally = Tally()
    indices = {category.id: index for index, category in enumerate(request.labels.categories)}
    with folder(request) as files:
        for item in tally.sized(request):
            files.put(label_path(item.name), label_text(item.row, indices).encode())
            if item.image is not None:
                files.put(f"images/{item.name}", item.image.data)
        files.put_last("data.yaml", data_yaml(request.labels.categories, provenance(request.labels)).encode())
        return tally.written(request, files.bytes)


def label_path(name: str) -> str:
    """Where ultralytics looks for the labels of an image `images/<name>`: it replaces the last such folder of the path.

    >>> label_path("a.jpg"), label_path("train/images/a.b.png")
    ('labels/a.txt', 'images/train/labels/a.b.txt')
    """
    path = "/labels/".join(f"/images/{name}".rsplit("/images/", 1))
    return path.removeprefix("/").rpartition(".")[0] + ".txt"


def label_text(row: ImageLabels, indices: Mapping[int, int]) -> str:
    """The lines of an image: class, then x and y of each vertex as shares of width and height."""
    lines = []
    size = np.array([row.width, row.height])
    for category_id, counts in zip(row.instances.category_ids.tolist(), row.instances.counts, strict=True):
        areas = [polygons.area(ring) for ring in polygons.outlines(counts, row.height, row.width)]
        ring = polygons.join(polygons.outlines(counts, row.height, row.width, centres=True), areas)
        if len(ring) < _LEAST_POINTS:  # a line, or a point: it is told from a box by its number of values
            ring = np.resize(ring, (_LEAST_POINTS, 2))
        values = ((ring + 0.5) / size).round(_MOST_DECIMALS).reshape(-1).tolist()
        lines.append(" ".join([str(indices[category_id]), *map(repr, values)]) + "\n")
    return "".join(lines)


def data_yaml(categories: Sequence[Category], info: Mapping[str, object]) -> str:
    """What `YOLO(...).train(data="data.yaml")` takes: all images, for training and validation alike."""
    document = {
        "train": "images",
        "val": "images",
        "names": {index: category.name for index, category in enumerate(categories)},
        "category_ids": {index: category.id for index, category in enumerate(categories)},
        "info": dict(info),
    }
    head = (
        "# Without `path`, the images are looked for in `images` beside this file. All are named for training and for\n"
        "# validation: split them as you need.\n"
    )
    return head + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
