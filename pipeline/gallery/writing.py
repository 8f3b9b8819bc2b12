"""The files of a gallery: pictures, tables and masks named by their content, and the page that names the tables."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.gallery.cards import Card
from pipeline.records import Category
from pipeline.store import Store, join, name

FOLDER = "files"

#: Images of one table: all tables are read before anything is shown. Images of one file of masks: those are read when
#: one of them comes into view.
_TABLE, _MASKS = 500, 16

_OURS = re.compile(r"[0-9a-f]{32}\.(jpg|js)")
_SCRIPTS = ("data.js", "state.js", "draw.js", "panel.js", "grid.js", "viewer.js", "app.js")


class Files:
    """The place of a gallery. Threads may share it. It remembers the name of each file that it wrote."""

    def __init__(self, store: Store, out: str) -> None:
        self.index = join(out, "index.html")
        self._store, self._folder = store, join(out, FOLDER)
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self.bytes = 0

    def put(self, data: bytes, suffix: str) -> str:
        """Write a file, and return its name, which its content gives."""
        found = hashlib.sha256(data).hexdigest()[:32] + suffix
        with self._lock:
            if found in self._names:
                return found
            self._names.add(found)
            self.bytes += len(data)
        self._store.put(join(self._folder, found), data)
        return found

    def put_page(self, html: str) -> None:
        """Write the page, and then remove the files of the galleries before it."""
        data = html.encode()
        self.bytes += len(data)
        self._store.put(self.index, data)
        for info in self._store.list(join(self._folder, ""), literal=True):
            found = name(info.uri)
            if _OURS.fullmatch(found) and found not in self._names:
                self._store.delete(info.uri)


class Tables:
    """Takes images one by one, and writes them in parts."""

    def __init__(self, files: Files, categories: Sequence[Category]) -> None:
        self._files = files
        self._categories = {category.id: place for place, category in enumerate(categories)}
        self.names = [category.name for category in categories]
        self.category_ids = [category.id for category in categories]
        self.tables: list[str] = []
        self._cards: list[Card] = []
        self._masks: list[tuple[Sequence[str], Sequence[str]]] = []
        self._mask_files: list[str] = []
        self.images = self.masks = self.gone = self.with_truth = 0

    def add(self, card: Card) -> None:
        """Take an image."""
        self.images += 1
        self.masks += len(card.counts)
        self.gone += card.problem is not None
        self.with_truth += card.truth is not None
        self._masks.append((card.counts, card.truth_counts))
        self._cards.append(card)
        if len(self._masks) == _MASKS:
            self._close_masks()
        if len(self._cards) == _TABLE:
            self._close_table()

    def close(self) -> None:
        """Write what is left."""
        if self._cards:
            self._close_table()

    def _close_masks(self) -> None:
        # The file cannot hold its own name, which its content gives; the table tells which file it is.
        rows = [[_joined(found), _joined(truth)] for found, truth in self._masks]
        self._mask_files.append(self._files.put(_script("masks", rows), ".js"))
        self._masks = []

    def _close_table(self) -> None:
        if self._masks:
            self._close_masks()
        self.tables.append(self._files.put(_script("table", self._table()), ".js"))
        self._cards, self._mask_files = [], []

    def _table(self) -> dict[str, Any]:
        """A part of the table: for each image a value in each list, for each mask one in each column."""
        cards = self._cards
        rows = [card.row for card in cards]
        columns = {"score": _joined_columns([row.instances.scores for row in rows])}
        for column in dict.fromkeys(one for row in rows for one in row.instances.quality):
            parts = [row.instances.quality.get(column, row.instances.unknown()) for row in rows]
            columns[column] = _joined_columns(parts)
        columns["area"] = _joined_columns([row.instances.areas for row in rows])
        if any(card.truth is not None for card in cards):
            parts = [row.instances.unknown() if card.truth is None else card.truth.ious for row, card in _pairs(cards)]
            columns["true_iou"] = _joined_columns(parts)
        truths = [card.truth for card in cards]
        return {
            "maskFiles": self._mask_files,
            "masksPerFile": _MASKS,
            "keys": [row.key for row in rows],
            "ids": [row.image_id for row in rows],
            "uris": [row.uri for row in rows],
            "status": [row.status for row in rows],
            "errors": [row.error for row in rows],
            "corrected": [row.corrected for row in rows],
            "change": [card.change for card in cards],
            "worst": [int(card.worst) for card in cards],
            "sizes": [[row.width, row.height, card.size[1], card.size[0]] for row, card in _pairs(cards)],
            "pictures": [card.picture for card in cards],
            "problems": [card.problem for card in cards],
            "counts": [len(card.counts) for card in cards],
            "classes": _base64(np.concatenate([self._places(row.instances.category_ids) for row in rows]), "<u2"),
            "columns": [[column, _base64(values, "<f4")] for column, values in columns.items()],
            "truth": [None if truth is None else len(truth.partners) for truth in truths],
            "truthClasses": _base64(
                np.concatenate([self._places(one.objects.category_ids) for one in truths if one] or [_NONE]), "<u2"
            ),
            "truthPartners": _base64(np.concatenate([one.partners for one in truths if one] or [_NONE]), "<i4"),
        }

    def _places(self, category_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Where categories stand in `names`; one that the run does not know gets a place at the end."""
        places = []
        for number in category_ids.tolist():
            if number not in self._categories:
                self._categories[number] = len(self.names)
                self.names.append(f"#{number}")
                self.category_ids.append(number)
            places.append(self._categories[number])
        return np.array(places, np.int64)


_NONE: npt.NDArray[Any] = np.zeros(0, np.int64)


def page(about: dict[str, object], tables: Tables) -> str:
    """The page, complete but for what it loads from its folder."""
    here = resources.files("pipeline.gallery") / "page"
    start = {
        "about": about,
        "folder": FOLDER,
        "tables": tables.tables,
        "images": tables.images,
        "masks": tables.masks,
        "classes": [[number, text] for number, text in zip(tables.category_ids, tables.names, strict=True)],
    }
    style = (here / "page.css").read_text("utf-8")
    script = "\n".join((here / script).read_text("utf-8") for script in _SCRIPTS)
    parts = {
        "@TITLE@": escape(f"Gallery of {about['run']}"),
        "@STYLE_HASH@": _policy(style),
        "@SCRIPT_HASH@": _policy(script),
        "@STYLE@": style,
        "@START@": _json(start),
        "@SCRIPT@": script,
    }
    # In one go, so that nothing that is put in is looked through again.
    return re.sub("|".join(parts), lambda found: parts[found[0]], (here / "page.html").read_text("utf-8"))


def _policy(text: str) -> str:
    """A text as a content security policy names it: what else a page is made to hold does not run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _pairs(cards: Sequence[Card]) -> list[tuple[Any, Card]]:
    return [(card.row, card) for card in cards]


def _joined(counts: Sequence[str]) -> str:
    """Masks as one string: no counts hold a space."""
    return " ".join(counts)


def _joined_columns(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    return np.concatenate([np.asarray(part, np.float32) for part in parts])


def _base64(values: npt.NDArray[Any], kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode()


def _script(function: str, value: object) -> bytes:
    """A script that hands a value to the page."""
    return f"patchlabelGallery.{function}({_json(value)})\n".encode()


def _json(value: object) -> str:
    """JSON that is safe in scripts and in HTML: it holds neither `<`, `>` and `&` nor anything beyond ASCII."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
