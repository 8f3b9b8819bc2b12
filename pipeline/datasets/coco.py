"""COCO: a json, and the folder in which its file names start."""

from __future__ import annotations

from pipeline.datasets import documents
from pipeline.datasets.checking import check_truth
from pipeline.datasets.dataset import Dataset, found
from pipeline.store import Store, redact


def read(annotations: str, images: str | None, *, store: Store, key: str, strict: bool) -> Dataset:
    """Read a COCO json; see `datasets.read`."""
    document = documents.parsed(annotations, store=store, key=f"{key}.annotations", what="a COCO json")
    where = f"{key}.annotations: {redact(annotations)}"
    check_truth(document, where, strict=strict)
    names = {image["id"]: (image["file_name"],) for image in document["images"]}
    coco = documents.normal(document, where)
    return found(coco, names, images, store=store, key=key, name=redact(annotations))
