"""The report as sections of tables and plots, which Markdown and HTML show alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pipeline.reports import figures

Report: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Percent:
    """A share in 0..1 that is shown in percent."""

    share: float
    digits: int = 1

    def __str__(self) -> str:
        return f"{100 * self.share:.{self.digits}f}"


#: A figure or a text; None is a figure that could not be measured.
Cell: TypeAlias = str | int | Percent | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows below named columns. The first column names a row, the others are figures if `figures`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    figures: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A PNG, and what it shows for those who do not see it."""

    png: bytes = field(repr=False)
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An image that a report shows.

    title: its name. caption: what is the matter with it. pictures: JPEG bytes by what they show, side by side; none
    where the image cannot be shown, and then `problem` says why.
    """

    title: str
    caption: str
    pictures: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a report with its title, a sentence, tables, plots, and images."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    examples: tuple[Example, ...] = ()


_PRECISION = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_RECALL = ("AR", "ARs", "ARm", "ARl")
_KINDS = ("mask", "boundary", "box")
_CURVES = {"precision50": "IoU 0.50", "precision75": "IoU 0.75", "precision": "mean, 0.50 to 0.95"}
_COUNTS = {
    "images": "images",
    "annotations": "annotations of the truth, crowd regions included",
    "results": "predictions",
    "ignored_results": "predictions of categories that the truth lacks, left out",
    "max_detections": "predictions of an image and category that count, at most",
}


def build(report: Report) -> Iterator[Section]:
    """What a report has, section by section, but for the images and the provenance."""
    if kinds := [kind for kind in _KINDS if kind in report]:
        yield _precision(report, kinds)
        yield _classes(report, kinds)
    if "lvis" in report:
        yield _lvis(report["lvis"])
    if "cityscapes" in report:
        yield _cityscapes(report["cityscapes"])
    if "upper_bound" in report:
        yield _upper_bound(report["upper_bound"])
    yield from _counts(report)


def headline(report: Report) -> list[tuple[str, Cell, str]]:
    """The figures that one looks at first: (name, value, the next two in words)."""
    names = {
        "mask": "mask AP",
        "boundary": "boundary AP",
        "box": "box AP",
        "lvis": "LVIS AP",
        "cityscapes": "Cityscapes AP",
    }
    return [
        (name, percent(report[key].get("AP")), _beside(report[key], ("AP50", "AP75")))
        for key, name in names.items()
        if key in report
    ]


def percent(share: float | None, digits: int = 1) -> Cell:
    """A share as a cell."""
    return None if share is None else Percent(share, digits)


def _beside(figures_: Mapping[str, Any], names: Sequence[str]) -> str:
    found = [(name, figures_[name]) for name in names if figures_.get(name) is not None]
    return ", ".join(f"{name} {Percent(share)}" for name, share in found)


def _precision(report: Report, kinds: Sequence[str]) -> Section:
    def table(names: Sequence[str]) -> Table:
        rows = ((kind, *(percent(report[kind].get(name)) for name in names)) for kind in kinds)
        return Table(columns=("", *names), rows=tuple(rows))

    return Section(
        title="Average precision",
        text="In percent. AP is the mean over IoU thresholds 0.50 to 0.95, AP50 and AP75 are at one; s, m, l are areas "
        "below 32² pixels, up to 96², and above. A boundary match counts by the smaller of mask IoU and boundary IoU.",
        tables=(table(_PRECISION), table(_RECALL)),
        plots=_precision_over_recall(report),
    )


def _precision_over_recall(report: Report) -> tuple[Plot, ...]:
    curves = report.get("pr", {})
    lines = {words: curves[key] for key, words in _CURVES.items() if curves.get(key)}
    if not lines:
        return ()
    png = figures.curves(
        curves["recall"], lines, title="Precision over recall, masks", x_label="recall", y_label="precision"
    )
    return (Plot(png=png, text="Precision over recall of masks, mean over classes"),)


def _classes(report: Report, kinds: Sequence[str]) -> Section:
    """AP by class, and the score from which on predictions are best kept."""
    columns = {kind: report[kind]["per_class"] for kind in kinds}
    first = columns[kinds[0]]
    names = _best_first(first)
    instances, curves = report.get("instances_per_class", {}), report.get("pr", {}).get("per_class", {})
    titles = ["class", "objects", *(f"{kind} AP" for kind in kinds), *(("best F1", "at score") if curves else ())]
    rows = []
    for name in names:
        row: list[Cell] = [name, instances.get(name), *(percent(column.get(name)) for column in columns.values())]
        if curves:
            best = (curves.get(name) or {}).get("best_f1") or {}
            score = best.get("score")
            row += [percent(best.get("f1")), None if score is None else f"{score:.2f}"]
        rows.append(tuple(row))
    measured = [name for name in names if first[name] is not None]
    values = {kind: [column.get(name) for name in measured] for kind, column in columns.items()}
    png = figures.bars(measured, values, title="AP by class", x_label="AP") if measured else None
    text = f"In percent, by {kinds[0]} AP; a dash where the truth has no object."
    if curves:
        text += " Best F1 is at mask IoU 0.50, for predictions of at least the score beside it."
    return Section(
        title="By class",
        text=text,
        tables=(Table(columns=tuple(titles), rows=tuple(rows)),),
        plots=(Plot(png=png, text="AP by class, as in the table"),) if png else (),
    )


def _best_first(per_class: Mapping[str, float | None]) -> list[str]:
    """Classes by descending AP, those without one last."""
    return sorted(per_class, key=lambda name: (per_class[name] is None, -(per_class[name] or 0.0), name))


def _named(figures_: Report) -> Table:
    """All single figures of a section of the report, as one row."""
    found = {name: share for name, share in figures_.items() if name.startswith("A") and not isinstance(share, Mapping)}
    return Table(columns=("", *found), rows=(("mask", *map(percent, found.values())),))


def _by_class(figures_: Report) -> tuple[Table, ...]:
    per_class = figures_.get("per_class") or {}
    return (
        Table(columns=("class", "AP"), rows=tuple((name, percent(per_class[name])) for name in _best_first(per_class))),
    )


def _lvis(figures_: Report) -> Section:
    return Section(
        title="LVIS",
        text="In percent, by the rules of LVIS: categories that were not checked in an image do not count there; r, c "
        "and f are rare, common and frequent categories.",
        tables=(_named(figures_), *_by_class(figures_)),
    )


def _cityscapes(figures_: Report) -> Section:
    return Section(
        title="Cityscapes",
        text="In percent, by the rules of the Cityscapes benchmark.",
        tables=(_named(figures_), *_by_class(figures_)),
    )


def _upper_bound(bound: Report) -> Section:
    rows = tuple(
        (
            name,
            *(percent(row[key], 2) for key in ("mask_iou", "boundary_iou")),
            *(percent(row[key]["AP"], 2) for key in ("mask", "boundary")),
            round(row["numbers"]),
            round(row["bytes"]),
        )
        for name, row in bound["encodings"].items()
    )
    return Section(
        title="Upper bound",
        text=f"How good masks could be at best: the {bound['instances']} masks of the truth, encoded, decoded and "
        "measured against themselves. IoU and AP in percent; numbers and bytes are what a mask takes on average.",
        tables=(
            Table(columns=("encoding", "mask IoU", "boundary IoU", "AP", "boundary AP", "numbers", "bytes"), rows=rows),
        ),
    )


def _counts(report: Report) -> Iterator[Section]:
    rows: list[tuple[Cell, ...]] = [
        (words, report[key]) for key, words in _COUNTS.items() if report.get(key) is not None
    ]
    if "quarantined" in report:
        rows.append(("images that could not be labelled, measured without predictions", report["quarantined"]))
    if matches := report.get("matches"):
        above = f"at score {matches['score']:g} and IoU 0.50"
        rows += [
            (f"found, {above}", matches["found"]),
            (f"missed, {above}", matches["missed"]),
            (f"spurious, {above}", matches["spurious"]),
            ("mean IoU of those found, in percent", percent(matches["mean_iou"])),
        ]
    if rows:
        yield Section(title="Counts", tables=(Table(columns=("", "number"), rows=tuple(rows)),))
