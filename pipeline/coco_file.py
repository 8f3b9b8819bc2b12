"""A COCO JSON written as its rows come, without holding them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from pipeline.records import Category, ImageLabels


class CocoFile:
    """Takes rows; counts what it took. Annotation ids count from 1.

    A quarantined image has no size to state and is left out; the Parquet shard and the commit account for it.
    """

    def __init__(self, images: TextIO, annotations: TextIO) -> None:
        """The two lists grow at once, so each has a file of its own until the end."""
        self._images, self._annotations = images, annotations
        self.images = self.quarantined = self.instances = 0

    def write(self, rows: Sequence[ImageLabels]) -> None:
        """Append images and their annotations."""
        for row in rows:
            if row.status == "quarantined":
                self.quarantined += 1
                continue
            image = {"id": row.image_id, "file_name": row.key, "height": row.height, "width": row.width}
            image |= {"corrected": row.corrected} if row.corrected else {}
            self._images.write((",\n" if self.images else "\n") + json.dumps(image))
            self.images += 1
            for annotation in annotations_of(row):
                line = json.dumps({"id": self.instances + 1, **annotation}, allow_nan=False)
                self._annotations.write((",\n" if self.instances else "\n") + line)
                self.instances += 1


@contextmanager
def coco_file(path: Path, info: Mapping[str, object], categories: Sequence[Category]) -> Iterator[CocoFile]:
    """Write the COCO JSON `path`; two other files beside it exist meanwhile.

    Args:
        path: what to write.
        info: where the labels come from; it is asked for at the end, and may be completed until then.
        categories: what the category ids mean.
    """
    parts = [path.with_suffix(".images"), path.with_suffix(".annotations")]
    with parts[0].open("w+", encoding="utf-8") as images, parts[1].open("w+", encoding="utf-8") as annotations:
        yield CocoFile(images, annotations)
        with path.open("w", encoding="utf-8") as file:
            file.write(f'{{"info": {json.dumps(dict(info))}, "licenses": [], ')
            file.write(f'"categories": {json.dumps([asdict(c) for c in categories])}, "images": [')
            _append(images, file)
            file.write('],\n"annotations": [')
            _append(annotations, file)
            file.write("]}\n")
    for part in parts:
        part.unlink()


def _append(part: TextIO, file: TextIO) -> None:
    part.seek(0)
    shutil.copyfileobj(part, file)


def annotations_of(row: ImageLabels) -> Iterator[dict[str, Any]]:
    """An image's instances as COCO annotations without ids, with quality columns, null where a value is not known."""
    x = row.instances
    for i, counts in enumerate(x.counts):
        yield {
            "image_id": row.image_id,
            "category_id": int(x.category_ids[i]),
            "segmentation": {"size": [row.height, row.width], "counts": counts},
            "bbox": [round(float(v), 3) for v in x.boxes[i]],
            "area": int(x.areas[i]),
            "iscrowd": 0,
            "score": round(float(x.scores[i]), 6),
            **{name: _known(float(values[i])) for name, values in x.quality.items()},
        }


def _known(value: float) -> float | None:
    """A value with six decimals; None for NaN, which JSON does not have."""
    return round(value, 6) if math.isfinite(value) else None
