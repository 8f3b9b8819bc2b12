"""COCO: one JSON, for pycocotools and all that builds on it."""

from __future__ import annotations

from typing import Any

from pipeline import scratch
from pipeline.coco_file import coco_file
from pipeline.exports.common import Request, Tally, Written, provenance


def write(request: Request, /) -> Written:
    """Images, annotations with ids from 1, categories, and the provenance as info.

    Masks are RLE, so holes and pieces stay. Score and quality columns are keys of the annotations, null where a value
    is not known; an image that people have corrected has the number of the corrections in `corrected`. Quarantined
    images, which have no size, are not in it.
    """
    tally = Tally()
    with scratch.folder() as local:
        path = local / "export.json"
        info: dict[str, Any] = {}
        with coco_file(path, info, request.labels.categories) as file:
            for item in tally.sized(request):
                file.write([item.row])
            info |= provenance(request.labels)
        request.labels.store.put(request.out, path)
        return tally.written(request, path.stat().st_size)
