"""What people answered of a sample: from Label Studio's JSON export, or from a table of masks and verdicts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline import masks
from pipeline.audit.plans import Plan
from pipeline.audit.sampling import Drawn
from pipeline.errors import UserError
from pipeline.review import labelstudio, reading
from pipeline.review.labelstudio import Task
from pipeline.store import Store, redact

RIGHT = "correct"
#: What a person can say of a mask, and what it means. One fault alone: the first that holds, from the bottom up.
VERDICTS = {
    RIGHT: "an object of this class, outlined as well as you would",
    "bad mask": "an object of this class, but the outline misses parts of it or takes in others",
    "wrong class": "an object, but of another class",
    "duplicate": "an object that another mask has already",
    "not an object": "nothing that should have a mask",
}
#: What is asked of an image.
MISSED = "How many objects of the classes have no outline? Write a whole number."
COLUMNS = ("mask", "verdict", "class", "score", "image", "note", "picture")

_CSV_LIMIT = 4096  # characters of a field


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a person said of a mask. iou: of the mask with the one that the person drew in its place; None if none."""

    verdict: str
    iou: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The verdicts by the name of the mask, the missed objects by that of the image, and the checksums of the files."""

    sources: Mapping[str, str]
    verdicts: Mapping[str, Verdict]
    missed: Mapping[str, int] = field(default_factory=dict)


def read(plan: Plan, uris: Sequence[str], store: Store) -> Answers:
    """Read the answers in some files; their formats are told by their content.

    Raises:
        UserError: it is not there, or no answers to this sample.
    """
    sample, scenes = {one.name: one for one in plan.masks}, {one.name for one in plan.scenes}
    missed: dict[str, int] = {}
    verdicts: dict[str, Verdict] = {}
    sources: dict[str, str] = {}
    for place, name, verdict in (one for uri in uris for one in _read(uri, store, sample, sources)):
        if name not in sample and name not in scenes:
            raise UserError(f"{place} is of the mask {name!r}, which is not in the sample")
        if name in verdicts or name in missed:
            raise UserError(f"{place} is of {name}, which has an answer already")
        if name in scenes:
            missed[name] = _number(verdict.verdict, place)
            continue
        if verdict.verdict not in VERDICTS:
            raise UserError(f"{place} has the verdict {verdict.verdict!r}; accepted are {', '.join(VERDICTS)}")
        verdicts[name] = verdict
    return Answers(sources=sources, verdicts=verdicts, missed=missed)


def _read(
    uri: str, store: Store, sample: Mapping[str, Drawn], sources: dict[str, str]
) -> Iterator[tuple[str, str, Verdict]]:
    """The answers of a file, each with its place there and its name; the checksum goes to `sources`."""
    where = f"--answers {redact(uri)}"
    data, sources[redact(uri)] = reading.fetch(uri, store, "--answers")
    is_json = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{")
    yield from _tasks(data, where, sample) if is_json else _rows(data, where)


def _number(text: str, place: str) -> int:
    """How many objects an image lacks."""
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise UserError(f"{place} has {text!r} missed objects; accepted is a whole number")
    return int(text)


def _rows(data: bytes, where: str) -> Iterator[tuple[str, str, Verdict]]:
    """The rows of a table with columns `mask` and `verdict`, and any others; one without a verdict is no answer."""
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        if not {"mask", "verdict"} <= set(rows.fieldnames or ()):
            raise UserError(f"{where} is neither Label Studio's JSON nor a table with the columns mask and verdict")
        for row in rows:
            verdict = " ".join((row["verdict"] or "").lower().split())[:_CSV_LIMIT]
            if verdict:
                yield f"{where}: line {rows.line_num}", (row["mask"] or "").strip(), Verdict(verdict=verdict)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where} is no table that can be read") from error


def _tasks(data: bytes, where: str, sample: Mapping[str, Drawn]) -> Iterator[tuple[str, str, Verdict]]:
    """The tasks that somebody has submitted with a verdict."""
    for task in labelstudio.tasks(data, where):
        verdict = labelstudio.choice(task, "verdict")
        if verdict is None:
            continue
        name = str(task.data.get("mask"))
        yield task.where, name, Verdict(verdict=verdict, iou=_iou(task, sample[name]) if name in sample else None)


def _iou(task: Task, drawn: Drawn) -> float | None:
    """Of the mask with what the person made of it; None where it was left as it is, or taken away."""
    regions = labelstudio.regions(task)
    if not regions:
        return None
    theirs = [region.counts(drawn.height, drawn.width) for region in regions]
    best = float(masks.iou([drawn.counts], theirs, drawn.height, drawn.width).max())
    return None if best == 1 else best
