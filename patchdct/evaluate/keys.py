"""Which image of the truth an image key of a labeling run means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from posixpath import basename, splitext
from typing import Any

from patchdct.errors import DataError


def match_keys(truth: Mapping[str, Any], keys: Iterable[str]) -> dict[str, int]:
    """The truth's image id for each image key of a labeling run.

    A key is an image's `file_name`; or else its file name without the extension (of either); or else, where that is
    unique in the truth, the last part of its path, with or without the extension.

    Raises:
        DataError: Some keys match no image, more than one, or the same image as another key.
    """
    file_names = {image["id"]: str(image["file_name"]) for image in truth["images"]}
    whole = _index(file_names, str)
    stems = _index(file_names, _stem)
    bases = _index(file_names, basename)
    base_stems = _index(file_names, lambda name: _stem(basename(name)))

    matched: dict[str, int] = {}
    owners: dict[int, str] = {}
    unmatched: list[str] = []
    for key in keys:
        base = basename(key)
        candidates = (
            whole.get(key)
            or stems.get(key)
            or stems.get(_stem(key))
            or bases.get(base)
            or base_stems.get(base)
            or base_stems.get(_stem(base))
            or []
        )
        if len(candidates) != 1:
            unmatched.append(key)
            continue
        image_id = candidates[0]
        if image_id in owners:
            raise DataError(f"The keys {owners[image_id]!r} and {key!r} both match image {image_id} of the truth.")
        owners[image_id] = key
        matched[key] = image_id
    if unmatched:
        names = ", ".join(map(repr, list(file_names.values())[:2])) or "none"
        raise DataError(
            f"{len(unmatched)} of {len(unmatched) + len(matched)} image keys match no single image of the truth "
            f"(first {', '.join(map(repr, unmatched[:3]))}); its file names are like {names}."
        )
    return matched


def _index(file_names: Mapping[int, str], way: Callable[[str], str]) -> dict[str, list[int]]:
    """The image ids by what `way` makes of their file names."""
    index: dict[str, list[int]] = {}
    for image_id, name in file_names.items():
        index.setdefault(way(name), []).append(image_id)
    return index


def _stem(name: str) -> str:
    return splitext(name)[0]
