"""What can be wrong with a commit, a row, a mask: pure checks that say it in words. `verify` walks a run with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipeline import masks
from pipeline.records import REASONS, Commit, ImageLabels
from pipeline.sinks import SINKS

_BOX_TOLERANCE = 1e-3  # pixels
_ROUNDING = {"bbox": 2e-3, "score": 2e-6}  # what COCO's decimals and float32 may make of a value


def commit_faults(commit: Commit) -> Iterator[str]:
    """What is wrong with a commit by itself."""
    parts = commit.labelled + commit.empty + commit.quarantined
    if commit.images != parts or min(commit.labelled, commit.empty, commit.quarantined) < 0:
        sums = f"{commit.labelled} labelled + {commit.empty} empty + {commit.quarantined} quarantined"
        yield f"its commit does not add up: {commit.images} images are not {sums}"
    if sum(commit.reasons.values()) != commit.quarantined:
        yield f"its commit gives reasons for {sum(commit.reasons.values())} of {commit.quarantined} quarantined images"
    if not commit.outputs:
        yield "its commit names no output"
    yield from filter(None, (output_fault(commit, format) for format in commit.outputs))


def output_fault(commit: Commit, format: str) -> str | None:
    """What is wrong with the name of an output; None where it is the one that its shard and attempt give."""
    if format not in SINKS:
        return f"its commit names an output of the unknown format {format}"
    path, sink = commit.outputs[format].path, SINKS[format]
    if path != f"{sink.folder}/{commit.shard_id}-{commit.attempt}.{sink.suffix}":
        return f"its commit names {path}, which is no {format} output of this shard and attempt"
    return None


def row_faults(row: ImageLabels) -> Iterator[str]:
    """What is wrong with a row, its masks aside."""
    number, size = len(row.instances), f"{row.height} x {row.width}"
    if not row.key:
        yield f"the row of the image id {row.image_id} has no key"
    if not 0 <= row.image_id < 1 << 53:
        yield f"the image id is {row.image_id}; accepted are whole numbers below 2^53"
    if row.status == "quarantined":
        if row.error is None or row.error.partition(":")[0] not in REASONS:
            yield f"the image is quarantined without a known reason ({row.error})"
        if number or row.height or row.width:
            yield f"the image is quarantined, and has {number} instances and the size {size}"
        return
    if row.status not in ("labelled", "empty"):
        yield f"the status is {row.status!r}; accepted are labelled, empty and quarantined"
    if (row.status == "labelled") != (number > 0):
        yield f"the image is {row.status}, and has {number} instances"
    if row.error is not None:
        yield f"the image is {row.status}, and has an error ({row.error})"
    if row.height < 1 or row.width < 1:
        yield f"the image is {row.status}, and has the size {size}"


def instance_faults(batch: Sequence[ImageLabels], known: set[int]) -> Iterator[tuple[str, str]]:
    """What is wrong with the instances of a few rows, with the keys of these."""
    lengths = [len(row.instances) for row in batch]
    if not sum(lengths):
        return
    owners = np.repeat(np.arange(len(batch)), lengths)
    places = np.concatenate([np.arange(length) for length in lengths])
    category_ids = np.concatenate([row.instances.category_ids for row in batch])
    scores = np.concatenate([row.instances.scores for row in batch])
    boxes = np.concatenate([row.instances.boxes for row in batch]).astype(np.float64)
    areas = np.concatenate([row.instances.areas for row in batch])
    sizes = np.array([(row.height, row.width) for row in batch], np.int64)[owners]
    measured = masks.measure([counts for row in batch for counts in row.instances.counts], sizes)

    sound = np.ones(len(owners), bool)
    sound[list(measured.faults)] = False
    worse = np.zeros(len(owners), bool)
    worse[1:] = (owners[1:] == owners[:-1]) & (scores[1:] > scores[:-1])
    near = np.isclose(boxes, measured.boxes, rtol=0, atol=_BOX_TOLERANCE).all(axis=1)
    rules: list[tuple[npt.NDArray[np.bool_], Callable[[int], str]]] = [
        (~sound, lambda i: measured.faults[i]),
        (sound & (measured.areas == 0), lambda i: "it is empty"),
        (sound & (measured.areas != areas), lambda i: f"its area is {measured.areas[i]}, and {areas[i]} is written"),
        (sound & ~near, lambda i: f"its box is {measured.boxes[i].tolist()}, and {boxes[i].tolist()} is written"),
        (~((scores >= 0) & (scores <= 1)), lambda i: f"its score is {scores[i]}; accepted are 0 to 1"),
        (worse, lambda i: "its score is better than that of the one before"),
        (
            ~np.isin(category_ids, list(known)),
            lambda i: f"its category id is {category_ids[i]}, which the run does not know",
        ),
    ]
    for wrong, words in rules:
        for index in np.flatnonzero(wrong).tolist():
            yield batch[owners[index]].key, f"mask {places[index]}: {words(index)}"


def difference(ours: ImageLabels, theirs: ImageLabels) -> str | None:
    """In what two rows of an image differ, beyond rounding."""
    if (ours.height, ours.width) != (theirs.height, theirs.width):
        return "another size"
    a, b = ours.instances, theirs.instances
    if len(a) != len(b):
        return "another number of masks"
    same = {
        "category ids": bool((a.category_ids == b.category_ids).all()),
        "masks": a.counts == b.counts,
        "areas": bool((a.areas == b.areas).all()),
        "boxes": np.allclose(a.boxes, b.boxes, rtol=0, atol=_ROUNDING["bbox"]),
        "scores": np.allclose(a.scores, b.scores, rtol=0, atol=_ROUNDING["score"], equal_nan=True),
    }
    if len(a):
        same["quality columns"] = a.quality.keys() == b.quality.keys() and all(
            np.allclose(a.quality[name], b.quality[name], rtol=1e-6, atol=_ROUNDING["score"], equal_nan=True)
            for name in a.quality
        )
    return next((f"other {name}" for name, agrees in same.items() if not agrees), None)


def id_ranges(ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The ranges [R, 2] (first, last) of consecutive ids, and the ids that come more than once.

    >>> ranges, twice = id_ranges(np.array([7, 3, 4, 5, 7]))
    >>> ranges.tolist(), twice.tolist()
    ([[3, 5], [7, 7]], [7])
    """
    found, counts = np.unique(ids, return_counts=True)
    steps = np.flatnonzero(np.diff(found) != 1)
    first, last = np.concatenate([[0], steps + 1]), np.concatenate([steps, [len(found) - 1]])
    ranges = np.stack([found[first], found[last]], axis=1) if len(found) else np.zeros((0, 2), np.int64)
    return ranges, found[counts > 1]
