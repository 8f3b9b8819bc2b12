"""Shards of mixed kinds, made of a small set of encoded images under many names."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.records import Shard, ShardFormat
from pipeline.sources.listings import Listed, to_line
from pipeline.store import Store, join
from tests.fakes import write_tar

FORMATS: tuple[ShardFormat, ...] = get_args(ShardFormat)
#: (width, height) of 12 megapixels.
LARGE = (4000, 3000)
_SAVED = (("JPEG", "jpg"), ("PNG", "png"), ("JPEG", "jpg"), ("WebP", "webp"), ("JPEG", "jpg"), ("BMP", "bmp"))
_ORIENTATION, _TURNED = 274, 6


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Soft colours with some grain, so that a file is as large as that of a photograph."""
    soft = cv2.resize(rng.uniform(0, 255, (9, 12, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = cv2.resize(rng.normal(0, 24, (-(-height // 2), -(-width // 2))), (width, height))
    return Image.fromarray((soft + grain[:, :, None]).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", *, turned: bool = False) -> bytes:
    """The image as a file; `turned` by its EXIF orientation, which decoding undoes."""
    exif = Image.Exif()
    if turned:
        exif[_ORIENTATION] = _TURNED
    buffer = io.BytesIO()
    image.save(buffer, format, **({"exif": exif} if turned else {}))
    return buffer.getvalue()


def large_pictures(rng: np.random.Generator) -> dict[str, bytes]:
    """Two JPEGs of 12 megapixels, one of them turned."""
    return {f"large-{i}.jpg": encoded(picture(rng, *LARGE), turned=i == 1) for i in range(2)}


def mixed_pictures(rng: np.random.Generator, number: int = 36) -> dict[str, bytes]:
    """Images of 64 to 1,600 pixels a side, in several formats, and a few that cannot be read."""
    images = {}
    for i in range(number):
        width, height = (int(side) for side in np.exp(rng.uniform(np.log(64), np.log(1600), 2)))
        format, suffix = _SAVED[i % len(_SAVED)]
        images[f"{i}.{suffix}"] = encoded(picture(rng, width, height), format)
    return images | {"cut.jpg": images["0.jpg"][:-200], "text.png": b"this is no image", "nothing.jpg": b""}


class Inputs:
    """Makes shards under `root`, local or in a bucket, and removes them."""

    def __init__(self, root: str, store: Store, pictures: Mapping[str, bytes]) -> None:
        """Images that are named by listings are there from now on."""
        self._root, self._store, self._pictures = root, store, pictures
        for name, data in pictures.items():
            store.put(join(root, "images", name), data)

    def make(self, number: int, format: ShardFormat, names: list[str]) -> Shard:
        """A shard of these pictures, in this order, each under a name of its own."""
        keys = {f"{number}-{i}-{name}": name for i, name in enumerate(names)}
        if format == "listing":
            lines = [to_line(Listed(key=key, uri=join(self._root, "images", name))) for key, name in keys.items()]
            content = b"".join(lines)
            place, etag = f"listings/{number}.jsonl", hashlib.sha256(content).hexdigest()
            self._store.put(join(self._root, place), content)
            return _shard(number, place, format, len(content), etag)
        uri = join(self._root, f"{number}.{format}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard"
            files = {key: self._pictures[name] for key, name in keys.items()}
            if format == "tar":
                write_tar(path, files)
            else:
                pq.write_table(pa.table({"key": list(files), "image": list(files.values())}), path)
            self._store.put(uri, path)
        there = self._store.stat(uri)
        return _shard(number, uri, format, there.bytes, there.etag)

    def remove(self, shard: Shard) -> None:
        self._store.delete(join(self._root, shard.uri) if shard.format == "listing" else shard.uri)


def _shard(number: int, uri: str, format: ShardFormat, size: int, etag: str) -> Shard:
    return Shard(id=f"{number:020x}", uri=uri, format=format, bytes=size, etag=etag, number=number)
