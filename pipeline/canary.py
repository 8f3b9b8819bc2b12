"""A new model tried on a sample of an old run, before anything is labelled anew: what would change, class by class.

The sample is labelled by the engine itself, as a small run beside the report, and goes on there if it was stopped.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import PurePosixPath

from pipeline import churn, images, ledger, originals
from pipeline.churn import ClassChurn, Difference
from pipeline.config import LabelConfig, RelabelConfig
from pipeline.errors import ImageError, RunError, UserError
from pipeline.founding import changes, located
from pipeline.records import Category, Commit, ImageLabels
from pipeline.reports import pictures, webpage
from pipeline.reports.sections import Cell, Example, Section, Table, percent
from pipeline.runs import Labels
from pipeline.sources.common import has_image_name
from pipeline.store import Store, join, redact
from pipeline.store import name as file_name

#: Where in its place a canary has its sample, and the run that labels it.
IMAGES, RUN = "images", "run"
#: So many shards are read at most, so that a sample of a large run takes minutes.
MOST_SHARDS = 50
#: Images that the report shows, those that change most.
SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """An image of the sample: its row in the old run, and the name that it has in the sample."""

    row: ImageLabels
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What would change.

    images: that were compared; unreadable: that could not be had any more. changed: images with a difference in what
    there is, beyond the shape of masks.
    """

    base: str
    run: str
    images: int
    unreadable: int
    changed: int
    total: ClassChurn
    classes: Mapping[str, ClassChurn]

    def document(self) -> dict[str, object]:
        """For JSON."""
        rows = {name: asdict(one) | {"churn": one.churn} for name, one in self.classes.items()}
        return {**asdict(self), "total": asdict(self.total) | {"churn": self.total.churn}, "classes": rows}


def sample(labels: Labels, count: int, out: str) -> dict[str, Sampled]:
    """Choose images of a run, by their keys' hashes, and copy them to `out`/images -> by the name that each has there.

    Shards are chosen first, MOST_SHARDS at most, by the hash of their ids; each gives as many images. The same run and
    count give the same sample.

    Raises:
        UserError: the run has no labelled image, or another sample is there.
        StoreError, ShardError: something of it cannot be read.
    """
    begun = labels.store.exists(join(out, RUN, "manifest.json"))
    shards = heapq.nsmallest(MOST_SHARDS, labels.commits(), key=lambda commit: _hash(commit.shard_id))
    each = math.ceil(count / max(1, len(shards)))
    chosen = [(commit, _rows(labels, commit, each)) for commit in shards]
    ranked = ((_rank(row), commit.shard_id, row.key) for commit, rows in chosen for row in rows)
    kept = {(shard_id, key) for _, shard_id, key in heapq.nsmallest(count, ranked)}
    names = {_name(shard_id, key) for shard_id, key in kept}
    there = set[str]()
    for info in labels.store.list(join(out, IMAGES, ""), literal=True):
        there.add(file_name(info.uri))
        _same(there <= names, out)
    found: dict[str, Sampled] = {}
    for commit, rows in chosen:
        wanted = {row.key: row for row in rows if (commit.shard_id, row.key) in kept}
        for record in originals.read(labels, labels.shard(commit.shard_id), wanted):
            if record.error is None:
                name = _name(commit.shard_id, record.key)
                _same(not begun or name in there, out)
                if name not in there:  # one that is written again is another one to the run that has begun
                    labels.store.put(join(out, IMAGES, name), record.data)
                found[name] = Sampled(row=wanted[record.key], name=name)
    if not found:
        raise UserError(f"{redact(labels.uri)} has no image that can be labelled anew; nothing to compare")
    return found


def config_for(config: LabelConfig, out: str, store: Store) -> LabelConfig:
    """The config that labels the sample: everything as given, but what is read and where it goes.

    Raises:
        UserError: the sample there was labelled otherwise.
    """
    run_uri = join(out, RUN)
    here = replace(
        config,
        input=replace(
            config.input, uri=join(out, IMAGES), format="images", images=None, image_column=None, key_column=None
        ),
        output=replace(config.output, uri=run_uri),
        run=replace(config.run, base=None, relabel=RelabelConfig(), only=None, accept_changes=False),
    )
    if store.exists(join(run_uri, "manifest.json")):
        differences = changes(located(here), ledger.read_manifest(store, run_uri))
        if differences:
            raise UserError(
                f"--out is {redact(out)}, where the sample was labelled otherwise ({'; '.join(differences)}); "
                "name a new folder"
            )
    return here


def compare(sampled: Mapping[str, Sampled], old: Labels, new: Labels, out: str) -> Result:
    """Compare the sample in both runs, and write `out`/canary.json and `out`/canary.html.

    Args:
        sampled: what `sample` gave.
        old: the old run; its view applied to both.
        new: the run of the sample.
        out: where the report goes.

    Raises:
        UserError: the models mean different classes by an id.
        RunError: there is nothing to compare.
        StoreError: labels or images cannot be read, or the report cannot be written.
    """
    names = _names(old, new)
    tally, most = churn.Tally(), list[tuple[float, str, ImageLabels, Difference]]()
    compared = changed = 0
    for row in new.all_rows():
        if row.status == "quarantined":
            continue
        before = sampled[row.key].row
        found = churn.difference(before.instances, row.instances, row.height, row.width)
        tally.add(before.instances, row.instances, found)
        compared += 1
        changed += bool(found.lost or found.gained or found.reclassified)
        most = heapq.nlargest(SHOWN, [*most, (found.size, row.key, row, found)], key=lambda one: one[:2])
    if not compared:
        raise RunError(f"{redact(new.uri)}: none of the {len(sampled)} images of the sample could be labelled")
    result = Result(
        base=redact(old.uri),
        run=redact(new.uri),
        images=compared,
        unreadable=len(sampled) - compared,
        changed=changed,
        total=tally.total(),
        classes={names.get(id, f"#{id}"): one for id, one in tally.classes().items()},
    )
    categories = tuple(Category(id=id_, name=name) for id_, name in names.items())
    shown = [_example(sampled[key], row, found, categories, out, old.store) for _, key, row, found in most]
    _write(result, shown, old, out)
    return result


def _names(old: Labels, new: Labels) -> dict[int, str]:
    """The classes of both, by id."""
    names = {category.id: category.name for category in old.categories}
    for one in new.categories:
        if names.setdefault(one.id, one.name) != one.name:
            raise UserError(
                f"category {one.id} is {one.name!r} for the new model, and {names[one.id]!r} in {redact(old.uri)}; "
                "what is compared must mean the same classes by an id"
            )
    return names


def _same(sample_is_there: bool, out: str) -> None:
    if not sample_is_there:
        raise UserError(f"--out is {redact(out)}, which holds other images than this sample; name a new folder")


def _rows(labels: Labels, commit: Commit, count: int) -> list[ImageLabels]:
    rows = (row for row in labels.rows(commit) if row.status != "quarantined")
    return heapq.nsmallest(count, rows, key=_rank)


def _rank(row: ImageLabels) -> str:
    return _hash(row.key)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _name(shard_id: str, key: str) -> str:
    """A name for a copy of an image: it cannot leave its folder, and no two images share one."""
    suffix = PurePosixPath(key).suffix.lower() if has_image_name(key) else ".jpg"
    return f"{_hash(f'{shard_id}/{key}')[:24]}{suffix}"


def _example(
    sampled: Sampled, row: ImageLabels, found: Difference, categories: tuple[Category, ...], out: str, store: Store
) -> Example:
    title, caption = sampled.row.key, _caption(found)
    try:
        data = store.get(join(out, IMAGES, sampled.name), limit=pictures.MOST_BYTES)
        pixels = images.decode(data, max_bytes=pictures.MOST_BYTES, max_pixels=pictures.MOST_PIXELS)
    except ImageError as error:
        return Example(title=title, caption=caption, problem=str(error))
    # Colours go by the order of drawing: partners get the same one.
    pairs = [*found.pairs, *found.reclassified]
    old = pictures.chosen(sampled.row.instances, [*(first for first, _, _ in pairs), *found.lost])
    new = pictures.chosen(row.instances, [*(second for _, second, _ in pairs), *found.gained])
    names = categories if max(len(old), len(new)) <= pictures.MOST_NAMES else None
    drawn = (
        (side, pictures.draw(pixels, one, names, marked=range(len(found.pairs), len(one)), scores=True))
        for side, one in (("old", old), ("new", new))
    )
    return Example(title=title, caption=caption, pictures=tuple((side, pictures.jpeg(one)) for side, one in drawn))


def _caption(found: Difference) -> str:
    parts = {"lost": len(found.lost), "gained": len(found.gained), "of another class": len(found.reclassified)}
    moved = sum(iou < churn.SAME_MASK for _, _, iou in found.pairs)
    return ", ".join(f"{count} {name}" for name, count in {**parts, "reshaped": moved}.items() if count) or "the same"


def _write(result: Result, examples: list[Example], old: Labels, out: str) -> None:
    document = {**result.document(), "min_score": old.view.min_score, "view": str(old.view)}
    old.store.put(join(out, "canary.json"), (json.dumps(document, indent=2) + "\n").encode())
    sections = [
        Section(
            title="By class",
            text=f"Masks of IoU {churn.SAME_OBJECT:g} and more are of the same object, of {churn.SAME_MASK:g} and more "
            "the same mask. Churn is the share of masks, old and new, that have no partner of their class.",
            tables=(table(result),),
        ),
        Section(
            title="Images that change most",
            text="The same object has the same colour. In a red box is what was lost or gained, or has another class.",
            examples=tuple(examples),
        ),
    ]
    tiles: list[tuple[str, Cell, str]] = [
        ("churn", percent(result.total.churn), "percent of masks without a partner"),
        ("same mask", percent(_share(result.total.kept, result.total.old)), "percent of the old masks"),
        ("images that change", result.changed, f"of {result.images}"),
    ]
    notes = [f"{result.unreadable} of the sample could not be read any more"] if result.unreadable else []
    title = ", ".join(filter(None, [f"{result.base} against {result.run}", str(old.view)]))
    page = webpage.page("Canary", title, tiles, notes, sections)
    old.store.put(join(out, "canary.html"), page.encode("utf-8", "backslashreplace"))


def table(result: Result) -> Table:
    """The figures by class, all classes last."""
    columns = ("class", "old", "new", "churn", "same", "reshaped", "mean IoU", "left", "joined", "lost", "gained")
    return Table(columns=columns, rows=tuple(_lines(result)))


def _lines(result: Result) -> Iterator[tuple[Cell, ...]]:
    for name, one in (*result.classes.items(), *islice([("all", result.total)], len(result.classes) > 1)):
        figures = (percent(one.churn), one.kept, one.reshaped, percent(one.mean_iou))
        yield (name, one.old, one.new, *figures, one.left, one.joined, one.lost, one.gained)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
