"""COCO files, as lists of images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import AccessError, NotFoundError, StoreError, UnreachableError, UserError
from pipeline.sources.common import folder, resolve
from pipeline.sources.listings import Listed
from pipeline.store import Store, absolute, join, name, redact
from pipeline.store.uris import local_path

_PROBES = 8
_KEPT = frozenset({"images", "file_name", "id"})
#: The whole JSON is read into memory, by the machine that plans, as text and as objects.
_MAX_BYTES = 2 << 30
_SHOWN = 200  # characters of a name in a message


def coco_images(uri: str, images_root: str | None, *, store: Store) -> list[Listed]:
    """The images that a COCO file lists, sorted by file_name, as a prefix would give them.

    Args:
        uri: the JSON. Its annotations are not looked at.
        images_root: the folder in which its file_names start. None: the folder of the JSON, or the one that COCO's own
            layout has beside that (annotations/instances_val2017.json, val2017/), whichever holds some of the images.
        store: where to look.

    Raises:
        UserError: it is no COCO file, an id is unusable, or no image was found.
    """
    images = sorted(_entries(uri, store))
    root = _root(uri, [file_name for file_name, _ in images], images_root, store)
    return [Listed(key=file_name, uri=_resolved(root, file_name, uri), image_id=id_) for file_name, id_ in images]


def _entries(uri: str, store: Store) -> Iterator[tuple[str, int]]:
    """The file_name and id of each image."""
    try:
        if (size := store.stat(uri).bytes) > _MAX_BYTES:
            raise UserError(
                f"{redact(uri)} has {size} bytes; accepted are up to {_MAX_BYTES}. Split it, or leave out its "
                "annotations, which are not looked at."
            )
        document = json.loads(store.get(uri), object_pairs_hook=_without_annotations)
    except (NotFoundError, AccessError) as error:
        raise UserError(f"input.uri cannot be read: {error}") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{redact(uri)} is no JSON: {str(error)[:_SHOWN]}.") from error
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list) or not images:
        raise UserError(f"{redact(uri)} is no COCO file: it has no list `images` with at least one image.")
    ids: set[int] = set()
    for position, image in enumerate(images):
        where = f"{redact(uri)}: images[{position}]"
        file_name, id_ = (image.get(key) if isinstance(image, dict) else None for key in ("file_name", "id"))
        if not isinstance(file_name, str) or not file_name:
            raise UserError(f"{where} has no file_name.")
        shown = file_name[:_SHOWN]
        if type(id_) is not int or not 0 <= id_ < 1 << 53:
            found = repr(id_)[:_SHOWN]
            raise UserError(f"{where} ({shown}) has the id {found}; accepted are whole numbers from 0 to 2^53 - 1.")
        if id_ in ids:
            raise UserError(f"{where} ({shown}) has the id {id_} of an earlier image; each image needs its own.")
        ids.add(id_)
        yield file_name, id_


def _without_annotations(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    """What is kept of a JSON object as it is parsed: annotations would take many times the memory of the images."""
    kept = [pair for pair in pairs if pair[0] in _KEPT]
    value = dict(kept)
    if len(value) < len(kept):
        raise ValueError("an object has `images`, `file_name` or `id` twice")
    return value if "images" in value or "file_name" in value else None


def _resolved(root: str, file_name: str, uri: str) -> str:
    try:
        return resolve(root, file_name)
    except UserError as error:
        raise UserError(f"{redact(uri)}: its file_name {str(error).rstrip('.')}.") from error


def _root(uri: str, names: Sequence[str], images_root: str | None, store: Store) -> str:
    """The folder of a COCO file's images: the first candidate that holds one of a few that are looked for."""
    if images_root is not None:
        candidates = [absolute(local_path(images_root))]
    else:
        here = folder(uri)
        above = folder(here.rstrip("/"))
        split = name(uri).rpartition(".")[0].rpartition("_")[2]
        candidates = [here] if above.endswith("://") else [here, join(above, split)]
    probes = names[:: max(1, len(names) // _PROBES)][:_PROBES]
    for candidate in candidates:
        if any(_is_there(_resolved(candidate, probe, uri), store) for probe in probes):
            return candidate
    looked = " nor in ".join(redact(candidate.rstrip("/")) for candidate in candidates)
    raise UserError(
        f"{redact(uri)}: of its images, {probes[0][:_SHOWN]!r} and {len(probes) - 1} others were looked for, and none "
        f"is in {looked}; set input.images to the folder in which its file_names start."
    )


def _is_there(uri: str, store: Store) -> bool:
    try:
        return store.exists(uri)
    except UnreachableError:
        raise
    except StoreError:  # also how S3 says "not there" to those who may not list
        return False
