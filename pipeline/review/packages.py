"""The queue of a run as a folder that an annotation tool opens as it is, worst first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import scratch
from pipeline.errors import UserError
from pipeline.exports import cvat, labelstudio
from pipeline.exports.common import Folder, Item, Request, Tally, folder, provenance, quality_columns
from pipeline.exports.parts import TextParts
from pipeline.review.choosing import RULE, Candidate, Chooser
from pipeline.review.locating import file_name
from pipeline.runs import Labels
from pipeline.store import redact

FORMATS = ("labelstudio", "cvat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What a run gives people to look at.

    chosen: the worst first. images, masks: of the run, quarantined and empty images aside. passed: images left out as
    people have corrected them. errors: how many of the masks are wrong by the calibration; None without one.
    """

    chosen: tuple[Candidate, ...]
    images: int
    masks: int
    passed: int
    errors: float | None

    @property
    def shown(self) -> int:
        """The masks of the images in the queue."""
        return sum(one.masks for one in self.chosen)

    @property
    def share(self) -> float | None:
        """The share of the expected errors that is in the queue; None where they are not known, or there are none."""
        return sum(one.errors or 0.0 for one in self.chosen) / self.errors if self.errors else None


def queue(labels: Labels, budget: int, *, again: bool = False) -> Queue:
    """Choose images, in one pass over the run; see `choosing`.

    Args:
        labels: the run, through the view by which masks count.
        budget: how many images.
        again: with images that people have corrected.
    """
    chooser = Chooser(budget, again=again)
    for commit in labels.commits():
        for row in labels.rows(commit):
            chooser.add(commit.shard_id, row)
    return Queue(
        chosen=tuple(chooser.chosen()),
        images=chooser.images,
        masks=chooser.masks,
        passed=chooser.passed,
        errors=chooser.errors,
    )


def write(labels: Labels, found: Queue, out: str, *, format: str, images: bool) -> None:
    """Write the package: what the tool opens, and `queue.json` with the reasons; with `images`, the images as well.

    Raises:
        UserError: the format is unknown, or `out` is no place for it.
        ShardError, StoreError: labels or images cannot be read, or the storage failed.
    """
    if format not in FORMATS:
        raise UserError(f"--format is {format!r}; accepted are {', '.join(FORMATS)}.")
    ranks = {(one.shard_id, one.key): rank for rank, one in enumerate(found.chosen, start=1)}
    keys: dict[str, list[str]] = {}
    for shard_id, key in ranks:
        keys.setdefault(shard_id, []).append(key)
    chosen = labels.only(keys)
    request = Request(labels=chosen, out=out, images=images, quality=quality_columns(labels))
    names = {one.id: one.name for one in labels.categories}
    reasons = {rank: _why(one, names) for rank, one in enumerate(found.chosen, start=1)}
    with scratch.folder() as local, folder(request) as files:
        write_one = {"labelstudio": _labelstudio, "cvat": _cvat}[format]
        write_one(request, files, local, lambda item: ranks[item.shard_id, item.row.key], reasons)
        document = json.dumps(_document(labels, found, names), indent=1, allow_nan=False)
        files.put_last("queue.json", document.encode() + b"\n")


_Rank = Callable[[Item], int]


def _labelstudio(request: Request, files: Folder, local: Path, rank: _Rank, reasons: Mapping[int, str]) -> None:
    """`tasks-*.json`, worst first, and `label_config.xml`."""
    for item in _items(request, files, rank):
        task = labelstudio.task(item, request)
        task["data"] |= {"rank": rank(item), "why": reasons[rank(item)]}
        (local / f"{rank(item)}.json").write_text(json.dumps(task, allow_nan=False))
    with labelstudio.task_files(files, local) as parts:
        for number in sorted(reasons):
            path = local / f"{number}.json"
            parts.write(path.read_text())
            path.unlink()
    why = '  <Header name="header" value="$why" size="5"/>\n'
    config = labelstudio.label_config(request.labels.categories, as_polygons=False, above=why)
    files.put("label_config.xml", config.encode())


def _cvat(request: Request, files: Folder, local: Path, rank: _Rank, reasons: Mapping[int, str]) -> None:
    """`annotations-*.xml` and `labels.json`; CVAT sorts images by their names, which begin with the rank."""
    labels = cvat.raw_labels(request)
    head, groups = cvat.xml_head(request, labels), 0
    with TextParts(files, local, "annotations-{}.xml", head=head, tail="</annotations>\n", entries=10_000) as parts:
        for number, item in enumerate(_items(request, files, rank)):
            parts.write("".join(cvat.xml_image(item, number, request, groups)))
            groups += len(item.row.instances)
    files.put("labels.json", json.dumps(labels, indent=1).encode() + b"\n")


def _items(request: Request, files: Folder, rank: _Rank) -> Iterator[Item]:
    """The images of the package in the order of the run, each with a name that tells its rank and finds it again."""
    for item in Tally().sized(request):
        item = replace(item, name=file_name(rank(item), item.shard_id, item.row.image_id, item.name))
        if item.image is not None:
            files.put(f"images/{item.name}", item.image.data)
        yield item


def _why(one: Candidate, names: Mapping[int, str]) -> str:
    """In a line, what there is to look at."""
    parts = [f"{names[reason.category_id]}: {reason.words}" for reason in one.reasons if reason.doubt > 0]
    more = one.masks - len(parts)
    return "; ".join(parts) + (f"; {more} more" if more > 0 else "")


def _document(labels: Labels, found: Queue, names: Mapping[int, str]) -> dict[str, Any]:
    return {
        **provenance(labels),
        "description": f"a review of the labeling run {labels.manifest.run_id}",
        "run": redact(labels.uri),
        "rule": RULE,
        "of_images": found.images,
        "of_masks": found.masks,
        "already_corrected": found.passed,
        "expected_errors": found.errors,
        "share_of_expected_errors": found.share,
        "images": _images(found.chosen, names),
    }


def _images(chosen: Sequence[Candidate], names: Mapping[int, str]) -> list[dict[str, Any]]:
    return [
        {
            "rank": rank,
            "shard_id": one.shard_id,
            "key": one.key,
            "image_id": one.image_id,
            "badness": round(one.badness, 6),
            "masks": one.masks,
            "expected_errors": one.errors,
            "why": _why(one, names),
            "reasons": [{**asdict(reason), "class": names[reason.category_id]} for reason in one.reasons],
        }
        for rank, one in enumerate(chosen, start=1)
    ]
