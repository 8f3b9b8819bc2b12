"""The same images in each of the forms that a labeling run takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.fakes import write_tar


def as_tar(images: Sequence[Path], out: Path) -> Path:
    """Two tar shards with a text beside each image, as WebDataset has them, and these in another order."""
    for part in range(2):
        chosen = images[part::2]
        files = {path.name: path.read_bytes() for path in chosen}
        texts = {f"{path.stem}.txt": b"a sidecar" for path in reversed(chosen)}
        write_tar(out / f"{part}.tar", {**files, **texts})
    return out


def as_parquet(images: Sequence[Path], out: Path) -> Path:
    """One Parquet file with the bytes."""
    out.mkdir(parents=True)
    table = pa.table({"key": [path.name for path in images], "image": [path.read_bytes() for path in images]})
    pq.write_table(table, out / "images.parquet")
    return out


def as_prefix(images: Sequence[Path], out: Path) -> Path:
    """A folder of files."""
    out.mkdir(parents=True)
    for path in images:
        shutil.copy(path, out / path.name)
    return out


def as_coco(images: Sequence[Path], out: Path) -> Path:
    """A COCO json that names the files beside it."""
    as_prefix(images, out)
    rows = []
    for number, path in enumerate(images, start=1):
        with Image.open(path) as image:
            rows.append({"id": number, "file_name": path.name, "width": image.width, "height": image.height})
    (out / "instances.json").write_text(json.dumps({"images": rows, "annotations": [], "categories": []}))
    return out / "instances.json"


FORMS: dict[str, Callable[[Sequence[Path], Path], Path]] = {
    "tar": as_tar,
    "parquet": as_parquet,
    "images": as_prefix,
    "coco": as_coco,
}
