"""Answers of people -> corrections of a run: what nobody touched keeps all that was known of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline import corrections, masks, runs
from pipeline.corrections import Corrections
from pipeline.errors import UserError
from pipeline.records import Category, ImageLabels, Instances
from pipeline.review import locating, reading
from pipeline.review.answers import Answer
from pipeline.runs import Labels
from pipeline.store import Store, redact
from pipeline.view import View

#: What is drawn anew is a changed mask from this IoU on with one that was there; else one is gone and another new.
_SAME = 0.5
#: How a version says that it takes another one back.
#: What can happen to masks, in this order.
KINDS = ("kept", "changed", "relabelled", "added", "removed", "hidden")


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a file of answers has done.

    format: of the file. number: of the version; None where nothing was written. before: the version that the same file
    was already. counts: `images`, and masks by KINDS; `hidden` are those that the view did not show, and that are gone
    from images that were corrected. left_out: images that nobody has looked at. overlaid: images that somebody else has
    corrected since they were shown.
    """

    format: str
    number: int | None
    before: int | None
    counts: Mapping[str, int]
    left_out: int
    overlaid: int


def apply(store: Store, run_uri: str, file: str, *, by: str, view: View, dry_run: bool = False) -> Applied:
    """Lay what people answered over a run, as a new version; all of it or nothing.

    Args:
        store: where the run is.
        run_uri: the run.
        file: the URI of what the annotation tool gave back.
        by: who answers for it.
        view: how the labels were shown to people.
        dry_run: only count.

    Raises:
        UserError: something of the file cannot be taken; the sentence names the task.
        StoreError: the storage failed, or a data object of the run is damaged.
    """
    labels = runs.opened(store, run_uri)
    classes = _classes(labels, view)
    found = reading.read(file, store)
    if (before := _before(labels.corrections, found.sha256)) is not None:
        return Applied(format=found.format, number=None, before=before, counts={}, left_out=found.left_out, overlaid=0)
    rows: dict[str, list[ImageLabels]] = {}
    counts: Counter[str] = Counter(images=0) | Counter(dict.fromkeys(KINDS, 0))
    overlaid = 0
    for shard_id, pairs in locating.locate(labels, found.answers):
        rows[shard_id] = []
        for one, row in pairs:
            rows[shard_id].append(_corrected(one, row, labels, view, classes, counts))
            overlaid += one.corrected is not None and one.corrected != row.corrected
    counts["images"] = sum(map(len, rows.values()))
    number = None
    if rows and not dry_run:
        all_counts = {name: counts[name] for name in ("images", *KINDS)}
        number = corrections.write(
            store,
            run_uri,
            labels.manifest,
            rows,
            by=by,
            source=redact(file),
            source_sha256=found.sha256,
            counts=all_counts,
        ).number
    return Applied(
        format=found.format,
        number=number,
        before=None,
        counts={name: counts[name] for name in ("images", *KINDS)},
        left_out=found.left_out,
        overlaid=overlaid,
    )


def _classes(labels: Labels, view: View) -> dict[str, int]:
    """The ids of the run's own classes by the names that people have seen."""
    names = {one.id: one.name for one in labels.manifest.categories}
    if view.taxonomy is not None:
        view.taxonomy.categories(labels.manifest.categories)
        renamed = {id_: view.taxonomy.names.get(name, name) for id_, name in names.items()}
        names = {id_: name for id_, name in renamed.items() if name is not None}
        if several := [name for name, count in Counter(names.values()).items() if count > 1]:
            raise UserError(
                f"{view.taxonomy.source} makes one class {several[0]!r} of several, so a new mask of it would have no "
                "class of the run; correct the run without it, or with one that only renames and drops classes"
            )
    return {name: id_ for id_, name in names.items()}


def _before(found: Corrections, sha256: str) -> int | None:
    """The version that a file was already; None where it was not, or was taken back."""
    return next((one.number for one in found.counting if one.source_sha256 == sha256), None)


def _corrected(
    one: Answer, row: ImageLabels, labels: Labels, view: View, classes: Mapping[str, int], counts: Counter[str]
) -> ImageLabels:
    """The row that an answer makes of the one that stands; `counts` are added to."""
    if row.status == "quarantined":
        raise UserError(f"{one.where}: {row.key} was set aside when it was labelled, and cannot have masks")
    if one.size not in (None, (row.height, row.width)):
        assert one.size is not None
        raise UserError(
            f"{one.where} has {one.size[1]} x {one.size[0]} pixels, and {row.key} in the run {row.width} x {row.height}"
        )
    for region in one.regions:
        if region.label not in classes:
            raise UserError(f"{region.where} is a {region.label!r}; the classes of the run are {_some(list(classes))}")
    found = [(region, region.counts(row.height, row.width)) for region in one.regions]
    drawn = masks.measure([mask for _, mask in found], (row.height, row.width))
    there = [place for place in range(len(found)) if drawn.areas[place]]  # one that was wiped out is gone
    ids = np.array([classes[found[place][0].label] for place in there], np.int32)
    shown, aside = _shown(row, view, labels.manifest.categories)
    hidden = sorted(set(range(len(row.instances))) - {*shown, *aside})
    old = [*shown, *hidden]  # somebody may have seen more than the view shows
    overlaps = masks.iou(
        [found[place][1] for place in there], [row.instances.counts[i] for i in old], row.height, row.width
    )
    named = [_index(found[place][0].id, one, row) for place in there]
    pairs = _matched(overlaps, ids[:, None] == row.instances.category_ids[old][None, :], named)
    kept = [old[place] for kind, place in pairs if kind == "kept"]
    gone = set(old) - {old[place] for kind, place in pairs if kind != "added"}
    counts.update(kind for kind, _ in pairs)
    counts["removed"] += len(gone.intersection(shown))
    counts["hidden"] += len(gone.intersection(hidden))
    new = [place for place, (kind, _) in zip(range(len(there)), pairs, strict=True) if kind != "kept"]
    drawn_at = [there[place] for place in new]
    instances = _joined(
        row.instances.where(np.isin(np.arange(len(row.instances)), [*kept, *aside])),
        Instances(
            category_ids=ids[new],
            scores=np.ones(len(new), np.float32),
            boxes=drawn.boxes[drawn_at].astype(np.float32),
            areas=drawn.areas[drawn_at],
            counts=tuple(found[place][1] for place in drawn_at),
        ),
    )
    return replace(row, instances=instances, status="labelled" if len(instances) else "empty")


def _shown(row: ImageLabels, view: View, categories: Sequence[Category]) -> tuple[list[int], list[int]]:
    """Which masks of a row people have seen, and which are of classes that the view leaves aside."""
    places = np.arange(len(row.instances)).astype(np.float32)
    numbered = replace(row.instances, quality={**row.instances.quality, "place": places})

    def seen(through: View) -> list[int]:
        found = through.instances(numbered, categories, judged=row.corrected == 0)
        return [int(place) for place in found.quality["place"]]

    shown = seen(view)
    return shown, sorted(set(seen(replace(view, taxonomy=None))) - set(shown))


def _index(identity: str | None, one: Answer, row: ImageLabels) -> int | None:
    """Which of the masks that were shown a region was, by its id; None where that is not known."""
    prefix, _, number = (identity or "").partition("-")
    if prefix != str(row.image_id) or not number.isdecimal() or one.corrected not in (None, row.corrected):
        return None
    return int(number)


def _matched(
    overlaps: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    alike: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    named: Sequence[int | None],
) -> list[tuple[str, int]]:
    """What became of N regions: one of KINDS, and which of M masks each one was.

    overlaps: their IoU, [N, M], with masks in the order in which ids count them. alike: whether they are of one class,
    [N, M]. named: what the ids say, which is believed where the two have a pixel in common.
    """
    found: list[tuple[str, int]] = [("added", -1)] * len(overlaps)
    free = np.ones(overlaps.shape, bool)

    def take(region: int, mask: int, kind: str) -> None:
        found[region] = kind, mask
        free[region], free[:, mask] = False, False

    for kind, same in (("kept", (overlaps == 1) & alike), ("relabelled", overlaps == 1)):
        for region, mask in np.argwhere(same).tolist():
            if free[region, mask]:
                take(region, mask, kind)
    for region, told in enumerate(named):
        if told is not None and told < overlaps.shape[1] and free[region, told] and overlaps[region, told] > 0:
            take(region, told, "changed")
    near = np.argwhere(overlaps >= _SAME)
    for region, mask in near[np.argsort(-overlaps[overlaps >= _SAME], kind="stable")].tolist():
        if free[region, mask]:
            take(region, mask, "changed")
    return found


def _joined(kept: Instances, new: Instances) -> Instances:
    """Both, best score first; of what is new no quality is known."""
    order = np.argsort(-np.concatenate([kept.scores, new.scores]), kind="stable")
    counts = [*kept.counts, *new.counts]
    return Instances(
        category_ids=np.concatenate([kept.category_ids, new.category_ids])[order],
        scores=np.concatenate([kept.scores, new.scores])[order],
        boxes=np.concatenate([kept.boxes, new.boxes])[order],
        areas=np.concatenate([kept.areas, new.areas])[order],
        counts=tuple(counts[place] for place in order.tolist()),
        quality={name: np.concatenate([values, new.unknown()])[order] for name, values in kept.quality.items()},
    )


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])
