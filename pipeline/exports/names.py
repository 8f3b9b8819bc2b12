"""File names for images, made of keys that come from anywhere: they stay in their folder, and no two are alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from pipeline.records import ImageLabels, Shard

#: Image suffixes by the first bytes of a file, for keys without one.
_SUFFIXES = ((b"\x89PNG", ".png"), (b"RIFF", ".webp"), (b"II", ".tif"), (b"MM", ".tif"), (b"BM", ".bmp"))
_SUFFIX = re.compile(r"\.(jpe?g|png|webp|tiff?|bmp)$", re.IGNORECASE)
_UNSAFE = re.compile(r"[^\w.+=@,-]")
_MOST = 100  # characters of a part of a path


class Names:
    """Gives each image of a run a name: its key where that can be a path, else something like it with its image id.

    Keys are unique in their shard, and in a run of single images below one prefix. Elsewhere each shard has a folder of
    its own. No two names differ in their suffix alone, or in capital letters, as labels are files beside the images.
    """

    def __init__(self, config: Mapping[str, object]) -> None:
        """Names for the images of a run with this config, whose shards are taken one after the other."""
        given = config.get("input")
        uris = given.get("uri") if isinstance(given, Mapping) else None
        self._one_input = isinstance(uris, list | tuple) and len(uris) == 1 and not _has_pattern(uris[0])
        self._prefix = ""
        self._before: set[str] = set()
        self._seen: set[str] = set()

    def begin(self, shard: Shard) -> None:
        """Go on to another shard."""
        self._prefix = "" if self._one_input and shard.format == "listing" else f"{shard.id}/"
        self._before, self._seen = self._seen, set()  # "a.jpg" and "a.png" may be the last and the first of two shards

    def of(self, row: ImageLabels, head: bytes | None = None) -> str:
        """The name of the next image. head: how its file begins, if that is known."""
        key = unicodedata.normalize("NFC", row.key)
        found = _SUFFIX.search(key)
        suffix = found.group() if found else _suffix(head)
        parts = [_UNSAFE.sub("_", part)[:_MOST] for part in _SUFFIX.sub("", key).split("/")]
        parts = [part.lstrip(".") or "_" for part in parts]
        stem = self._prefix + "/".join(parts[-8:])
        if "/".join(parts[-8:]) + (found.group() if found else "") != key or self._taken(stem):
            stem += f"_{row.image_id}"
        while self._taken(stem):
            stem += "_"
        self._seen.add(stem.casefold())
        return stem + suffix

    def _taken(self, stem: str) -> bool:
        return stem.casefold() in self._seen or stem.casefold() in self._before


def _suffix(head: bytes | None) -> str:
    return next((suffix for start, suffix in _SUFFIXES if (head or b"").startswith(start)), ".jpg")


def _has_pattern(uri: Any) -> bool:
    return not isinstance(uri, str) or any(sign in uri for sign in "*?[")
