"""Which image of a truth an image key of a labeling run means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from posixpath import basename, splitext
from typing import Any, TypeAlias

from pipeline.errors import UserError

_NAMED = 3  # keys in a sentence

#: What is made of file names, and what a key has to be then.
_Way: TypeAlias = tuple[Callable[[str], str], str]


def match_keys(truth: Mapping[str, Any], keys: Iterable[str]) -> dict[str, int]:
    """The truth's image id for each image key of a labeling run; see `Keys`.

    Raises:
        UserError: Some keys match no image, more than one, or the same image as another key.
    """
    matcher = Keys(truth)
    matched = matcher.match(keys)
    matcher.check()
    return matched


class Keys:
    """The image keys of a labeling run, which may come some at a time, and the images of the truth that they mean.

    A key is an image's `file_name`; or else its file name without the extension (of either); or else, where that is
    unique in the truth, the last part of its path, with or without the extension. Where the run may have more images
    than the truth, images of other folders may have the same names: there, one path must be the end of the other.
    """

    def __init__(self, truth: Mapping[str, Any], *, more: bool = False) -> None:
        """Begin without keys; of the truth, `images` are read. `more`: the run may have images that it lacks."""
        self._images: Sequence[Mapping[str, Any]] = truth["images"]
        self._more = more
        self._names = {image["id"]: str(image["file_name"]) for image in self._images} if more else {}
        self._indexes: dict[Callable[[str], str], dict[str, int | None]] = {}  # those that were needed
        self._owners: dict[int, str] = {}
        self._strangers = 0
        self._first: list[str] = []  # of these

    def match(self, keys: Iterable[str]) -> dict[str, int]:
        """The image ids of further keys, without those that match no single image.

        Raises:
            UserError: Two keys match one image.
        """
        matched: dict[str, int] = {}
        for key in keys:
            image_id = self._find(key)
            if image_id is None:
                self._strangers += 1
                self._first += [key] * (len(self._first) < _NAMED)
            elif image_id in self._owners:
                raise UserError(
                    f"The keys {self._owners[image_id]!r} and {key!r} both match image {image_id} of the truth."
                )
            else:
                self._owners[image_id] = key
                matched[key] = image_id
        return matched

    def check(self) -> None:
        """Refuse keys, of all that came, that match no image or more than one.

        Raises:
            UserError: There are such.
        """
        if self._strangers:
            names = ", ".join(repr(str(image["file_name"])) for image in self._images[:2]) or "none"
            raise UserError(
                f"{self._strangers} of {self._strangers + len(self._owners)} image keys match no single image of the "
                f"truth (first {', '.join(map(repr, self._first))}); its file names are like {names}."
            )

    def _find(self, key: str) -> int | None:
        base = basename(key)
        whole: tuple[_Way, ...] = ((str, key), (_stem, key), (_stem, _stem(key)))
        last: tuple[_Way, ...] = ((basename, base), (_base_stem, base), (_base_stem, _stem(base)))
        for way, name in (*whole, *last):
            if name in (index := self._index(way)):
                image_id = index[name]
                fits = image_id is None or not self._more or _one_ends_the_other(key, self._names[image_id])
                return image_id if fits else None
        return None

    def _index(self, way: Callable[[str], str]) -> dict[str, int | None]:
        """The image ids by what `way` makes of their file names; None where several have the same."""
        if way not in self._indexes:
            index: dict[str, int | None] = {}
            for image in self._images:
                name = way(str(image["file_name"]))
                index[name] = None if name in index else image["id"]
            self._indexes[way] = index
        return self._indexes[way]


def _one_ends_the_other(first: str, second: str) -> bool:
    """Whether one path is the end of the other, folder by folder, whatever their extensions.

    >>> _one_ends_the_other("val/1.png", "coco/val/1.jpg"), _one_ends_the_other("a/1.jpg", "b/1.jpg")
    (True, False)
    """
    pairs = zip(reversed(_stem(first).split("/")), reversed(_stem(second).split("/")), strict=False)
    return all(one == other for one, other in pairs)


def _base_stem(name: str) -> str:
    return _stem(basename(name))


def _stem(name: str) -> str:
    return splitext(name)[0]
