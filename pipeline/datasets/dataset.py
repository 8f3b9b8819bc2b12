"""A data set in COCO form, and how its images are found."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import AccessError, NotFoundError, UserError
from pipeline.sources.common import resolve
from pipeline.store import Store, absolute, join, redact, scheme
from pipeline.store.uris import local_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Images with masks.

    name: for messages: where it is from, without secrets. coco: images (id, file_name, height, width, and of LVIS
    neg_category_ids and not_exhaustive_category_ids), annotations (id, image_id, category_id, bbox, area, iscrowd,
    segmentation as polygons or compressed RLE), categories (id, name). uris: by image id, where the bytes are: a URI or
    an absolute path; empty where no images were asked for. missing: file names of images that are annotated and not
    there; neither they nor their annotations are in `coco`.
    """

    name: str
    coco: dict[str, Any]
    uris: dict[int, str]
    missing: tuple[str, ...] = ()


def found(
    coco: dict[str, Any], names: Mapping[int, Sequence[str]], images: str | None, *, store: Store, key: str, name: str
) -> Dataset:
    """The data set of those annotated images that are there, by one listing of their root.

    Args:
        coco: in COCO form; its image records get the `file_name` under which they were found.
        names: by image id, the file names that an image may have, the likeliest first.
        images: the root in which file names start; None: none is looked for.
        store: where to look.
        key: as for `datasets.read`.
        name: of the data set.

    Raises:
        UserError: none of the images is there, or the root cannot be listed.
    """
    uris: dict[int, str] = {}
    chosen = {id_: candidates[0] for id_, candidates in names.items()}
    if images is not None:
        root = absolute(local_path(images))
        places = {id_: [_place(root, name) for name in candidates] for id_, candidates in names.items()}
        there = _there({place for candidates in places.values() for place in candidates}, root, store=store, key=key)
        for id_, candidates in places.items():
            number = next((number for number, place in enumerate(candidates) if place in there), None)
            if number is not None:
                uris[id_], chosen[id_] = candidates[number], names[id_][number]
        if names and not uris:
            raise UserError(
                f"{key}.images: none of the {len(names)} images of {name} is below {redact(root)} (the first is "
                f"{next(iter(chosen.values()))})"
            )
    kept = {image["id"] for image in coco["images"] if images is None or image["id"] in uris}
    return Dataset(
        name=name,
        coco={
            "images": [{**image, "file_name": chosen[image["id"]]} for image in coco["images"] if image["id"] in kept],
            "annotations": [annotation for annotation in coco["annotations"] if annotation["image_id"] in kept],
            "categories": coco["categories"],
        },
        uris=uris,
        missing=tuple(file_name for id_, file_name in chosen.items() if id_ not in kept),
    )


def _place(root: str, name: str) -> str:
    """Where an image is; "./a.jpg" and "a//b.jpg" as a listing has them."""
    return resolve(root, name if "://" in name else posixpath.normpath(name))


def _there(places: set[str], root: str, *, store: Store, key: str) -> set[str]:
    """Those of the places that a listing of the root has, and those that it cannot speak of.

    Web servers have no listings that could be relied on, and an image may be named by a URI or a path of its own.
    """
    prefix = join(root, "")
    if scheme(root) in ("http", "https"):
        return places
    try:
        listed = {info.uri for info in store.list(prefix, literal=True) if info.uri in places}
    except (NotFoundError, AccessError, UserError) as error:
        raise UserError(f"{key}.images cannot be listed: {error}") from error
    return listed | {place for place in places if not place.startswith(prefix)}
