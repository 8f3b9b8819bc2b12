"""FiftyOne: a folder for `fiftyone.Dataset.from_dir(..., dataset_type=fiftyone.types.FiftyOneDataset)`."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import scratch
from pipeline.exports import bitmaps
from pipeline.exports.common import Item, Request, Tally, Written, attributes, folder, provenance
from pipeline.store import local_path, scheme

_LEVEL = 1  # of compression: masks are simple
#: In pixels: FiftyOne cuts the corners of a box down to whole pixels, and its shares are a little too small at times.
_NUDGE = 1e-6


def write(request: Request, /) -> Written:
    """`samples.json`, `metadata.json` and with images `data/*`.

    It is FiftyOne's own format in its plain form, and keeps more than COCO would there: each sample has `predictions`
    (detections with the mask of their box, confidence and quality columns), `key`, `image_id`, `shard_id`, `status` and
    `corrected`, and the tag `corrected` where people have corrected it; the dataset has the classes and, as `info`, the
    provenance. `dataset.add_dynamic_sample_fields()` makes the quality columns known to the App. Without `images`, a
    sample names the file of an image on a local disk, and for all others one in `data`. Quarantined images are not in
    it. FiftyOne reads the file whole.
    """
    tally = Tally()
    with folder(request) as files, scratch.folder() as local:
        path = local / "samples.json"
        with path.open("w", encoding="utf-8") as file:
            file.write('{"samples": [')
            for number, item in enumerate(tally.sized(request)):
                file.write((",\n" if number else "\n") + json.dumps(_sample(item, request), allow_nan=False))
                if item.image is not None:
                    files.put(f"data/{item.name}", item.image.data)
            file.write("]}\n")
        files.put_file("samples.json", path)
        files.put_last("metadata.json", json.dumps(_metadata(request), indent=1).encode() + b"\n")
        return tally.written(request, files.bytes)


def _metadata(request: Request) -> dict[str, Any]:
    classes = [category.name for category in request.labels.categories]
    fields = {
        "id": "ObjectIdField",
        "filepath": "StringField",
        "tags": "ListField(fiftyone.core.fields.StringField)",
        "metadata": "EmbeddedDocumentField(fiftyone.core.metadata.ImageMetadata)",
        "key": "StringField",
        "image_id": "IntField",
        "shard_id": "StringField",
        "status": "StringField",
        "corrected": "IntField",
        "predictions": "EmbeddedDocumentField(fiftyone.core.labels.Detections)",
    }
    return {
        "name": f"patchlabel-{request.labels.manifest.run_id}",
        "media_type": "image",
        "sample_fields": {name: f"fiftyone.core.fields.{kind}" for name, kind in fields.items()},
        "info": {**provenance(request.labels), "default_classes": classes},
    }


def _sample(item: Item, request: Request) -> dict[str, Any]:
    row = item.row
    return {
        "filepath": _filepath(item),
        "tags": ["corrected"] if row.corrected else [],
        "metadata": {"_cls": "ImageMetadata", "width": row.width, "height": row.height},
        "_media_type": "image",
        "key": row.key,
        "image_id": row.image_id,
        "shard_id": item.shard_id,
        "status": row.status,
        "corrected": row.corrected,
        "predictions": {"_cls": "Detections", "detections": list(_detections(item, request))},
    }


def _filepath(item: Item) -> str:
    on_disk = item.image is None and not item.packed and scheme(item.row.uri) in ("", "file")
    return local_path(item.row.uri) if on_disk else f"data/{item.name}"


def _detections(item: Item, request: Request) -> Iterator[dict[str, Any]]:
    row, names = item.row, {category.id: category.name for category in request.labels.categories}
    for index, counts in enumerate(row.instances.counts):
        found = bitmaps.crop(counts, row.height, row.width)
        rows, columns = found.pixels.shape
        left, top = found.left + _NUDGE, found.top + _NUDGE
        box = [left / row.width, top / row.height, columns / row.width, rows / row.height]
        values = attributes(row, index, row.instances.quality)
        yield {
            "_cls": "Detection",
            "attributes": {},
            "tags": [],
            "label": names[int(row.instances.category_ids[index])],
            "bounding_box": box,
            "mask": {"$binary": {"base64": _packed(found.pixels), "subType": "00"}},
            "confidence": values.pop("score"),
            "index": index,
            **values,
        }


def _packed(pixels: npt.NDArray[np.bool_]) -> str:
    """An array as FiftyOne stores it: NumPy's own format, by zlib."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(pixels), allow_pickle=False)
    return base64.b64encode(zlib.compress(file.getvalue(), _LEVEL)).decode()
