"""Making a gallery: one pass to choose, one over the chosen images, and the page last."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial

from pydantic import TypeAdapter, ValidationError

from pipeline import __version__, originals, outputs, parallel, runs
from pipeline.config import LimitsConfig
from pipeline.errors import ImageError, LabelingError, UserError
from pipeline.gallery.cards import Card, picture_of, scaled, scaled_counts
from pipeline.gallery.choosing import USABLE, Chooser, Chosen
from pipeline.gallery.comparing import Truth, change, read_truth
from pipeline.gallery.writing import Files, Tables, page
from pipeline.records import Commit, ImageLabels, ImageRecord
from pipeline.runs import Labels
from pipeline.store import redact
from pipeline.view import PLAIN, View

log = logging.getLogger(__name__)

#: How many images, and of what longest side, unless something else is asked for; and how many a browser can bear.
LIMIT, LONGEST, MOST = 2000, 640, 100_000

_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a gallery shows.

    uri: of the page. images of of_images, masks of of_masks: what is in it, and what the run has. gone: images of it
    whose picture could not be had. truth: images of it with truth; None if none was given. bytes: of the page and its
    files. missing: shards of the run that are not done, and so not considered.
    """

    uri: str
    images: int
    of_images: int
    masks: int
    of_masks: int
    gone: int
    truth: int | None
    bytes: int
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Find:
    """An image to be shown: its labels, its bytes or why there are none, and what it was before it was corrected."""

    row: ImageLabels
    worst: bool
    record: ImageRecord | None
    problem: str | None = None
    before: ImageLabels | None = None


def gallery(
    labels: Labels,
    out: str,
    *,
    limit: int = LIMIT,
    longest: int = LONGEST,
    truth: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Write the gallery of a run, or of as much of it as is done.

    Args:
        labels: the run as it is looked at.
        out: the folder to write, local or a URI. A gallery that is there is replaced; nothing else is touched.
        limit: how many images are shown: half of them the worst, half an even sample of the others.
        longest: the longest side of the pictures, in pixels.
        truth: the URI of a COCO json to compare with.
        progress: is told how many images are done, of how many.

    Raises:
        UserError: `out` or `truth` cannot be used, or no shard of the run is committed.
        StoreError: the storage failed, or a data object of the run is damaged.
    """
    known = None if truth is None else read_truth(truth, labels.store, labels.categories, labels.view.taxonomy)
    outputs.check_folder(labels.store, out, key="--out")
    chooser = Chooser(limit)
    for commit in labels.commits():
        for row in labels.rows(commit):
            chooser.add(commit, row)
    missing = len(labels.manifest.shards) - labels.done.total()
    if not chooser.images:
        raise UserError(f"{redact(labels.uri)} has no committed image yet; a gallery shows what is labelled")
    chosen = list(chooser.chosen())
    total = sum(len(one.worst) for one in chosen)
    files = Files(labels.store, out)
    tables = Tables(files, labels.categories)
    card = partial(_card, files=files, longest=longest, limits=_limits(labels), truth=known)
    for done, found in enumerate(parallel.ahead(card, _finds(labels, chosen), threads=_THREADS), start=1):
        tables.add(found)
        progress(done, total)
    tables.close()
    about: dict[str, object] = {
        "run": labels.manifest.run_id,
        "uri": redact(labels.uri),
        "created": labels.manifest.created,
        "labeler": ", ".join(sorted(labels.done)),
        "version": __version__,
        "images": chooser.images,
        "masks": chooser.masks,
        "worst": sum(sum(one.worst.values()) for one in chosen),
        "shards": len(labels.manifest.shards),
        "missing": missing,
        "minScore": labels.view.min_score,
        "thresholds": labels.view.calibration is not None,
        "taxonomy": labels.view.taxonomy is not None,
        "truth": None if truth is None else redact(truth),
        "longest": longest,
        # Masks that nobody would use hide the others, so the page begins without them, if most images keep some.
        "startScore": USABLE if not _judges(labels.view) and 2 * chooser.usable >= chooser.labelled else 0.0,
    }
    files.put_page(page(about, tables))
    return Written(
        uri=redact(files.index),
        images=tables.images,
        of_images=chooser.images,
        masks=tables.masks,
        of_masks=chooser.masks,
        gone=tables.gone,
        truth=None if truth is None else tables.with_truth,
        bytes=files.bytes,
        missing=missing,
    )


def _finds(labels: Labels, chosen: Collection[Chosen]) -> Iterator[_Find]:
    """The chosen images, shard by shard. A shard that is gone, or a part of it, costs pictures only."""
    for one in chosen:
        before = _before(labels, one)
        images = _Images(labels, one.commit, [*one.worst])
        for row in labels.rows(one.commit):
            if row.key not in one.worst:
                continue
            record, worst = images.find(row.key), one.worst[row.key]
            yield _Find(row=row, worst=worst, record=record, problem=images.problem, before=before.get(row.key))


class _Images:
    """The images of a shard, asked for in the order of its rows."""

    def __init__(self, labels: Labels, commit: Commit, keys: Collection[str]) -> None:
        self._records = originals.read(labels, labels.shard(commit.shard_id), keys)
        self._next: ImageRecord | None = None
        self.problem: str | None = None

    def find(self, key: str) -> ImageRecord | None:
        """The image of a key; None where it is gone, with a `problem` where all that follow are gone too."""
        if self._next is None and self.problem is None:
            try:
                self._next = next(self._records, None)
            except LabelingError as error:
                self.problem = str(error)
        if self._next is None or self._next.key != key:
            return None
        found, self._next = self._next, None
        return found


def _before(labels: Labels, chosen: Chosen) -> dict[str, ImageLabels]:
    """What the model found in the chosen images that people have corrected."""
    keys = chosen.worst.keys() & labels.corrections.rows(labels.store, chosen.commit.shard_id).keys()
    if not keys:
        return {}
    rows = runs.rows(labels.store, labels.uri, chosen.commit)
    return {row.key: labels.view.row(row, labels.manifest.categories) for row in rows if row.key in keys}


def _card(find: _Find, *, files: Files, longest: int, limits: LimitsConfig, truth: Truth | None) -> Card:
    """Make an image ready for the page, and store its picture."""
    row = find.row  # one that is quarantined has no picture worth having
    size = scaled((row.height, row.width), longest)
    picture = problem = None
    if row.status != "quarantined":
        try:
            if find.problem is not None:
                raise ImageError(find.problem)
            picture = files.put(picture_of(row, find.record, longest=longest, limits=limits), ".jpg")
        except ImageError as error:
            problem = str(error)
    compared = None if truth is None or row.status == "quarantined" else truth.compare(row)
    return Card(
        row=row,
        worst=find.worst,
        size=size,
        counts=scaled_counts(row.instances.counts, (row.height, row.width), size),
        picture=picture,
        problem=problem,
        truth=compared,
        truth_counts=() if compared is None else scaled_counts(compared.objects.counts, (row.height, row.width), size),
        change=None if find.before is None else change(find.before, row),
    )


def _judges(view: View) -> bool:
    """Whether a view leaves masks out for their scores."""
    return replace(view, taxonomy=None) != PLAIN


def _limits(labels: Labels) -> LimitsConfig:
    try:
        return TypeAdapter(LimitsConfig).validate_python(labels.manifest.config["limits"])
    except (KeyError, ValidationError):
        return LimitsConfig()
