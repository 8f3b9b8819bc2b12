"""The page of a calibration: how well it sorts masks, how far its probabilities can be believed, its thresholds."""

from __future__ import annotations

from dataclasses import asdict

from pipeline.calibration import Calibration
from pipeline.calibration.figures import BAD_IOU, WORST, Reliability
from pipeline.calibration.fitting import LEAST_MASKS, Figures
from pipeline.reports import figures, webpage
from pipeline.reports.sections import Percent, Plot, Section, Table, percent


def diagram(worth: Figures) -> bytes:
    """The reliability diagram of scores and of probabilities, as PNG."""

    def line(one: Reliability) -> tuple[list[float], list[float], list[int]]:
        return one.predicted.tolist(), one.right.tolist(), one.counts.tolist()

    names = (f"score, ECE {worth.before.error:.3f}", f"probability, ECE {worth.after.error:.3f}")
    lines = dict(zip(names, map(line, (worth.before, worth.after)), strict=True))
    return figures.reliability(lines, title="How often a mask is right, by what is said of it")


def page(subtitle: str, calibration: Calibration, worth: Figures, png: bytes) -> str:
    """The page of a calibration, as HTML.

    Args:
        subtitle: what it was measured on.
        calibration: with the counts of that.
        worth: what it is worth there.
        png: the diagram.
    """
    target, everything = calibration.target, worth.groups[0]
    tiles = [
        (
            "Spearman",
            _two(everything.predicted.spearman),
            f"predicted and true IoU; by score {_two(everything.score.spearman)}",
        ),
        ("ECE", f"{worth.after.error:.3f}", f"of the probability; of the score {worth.before.error:.3f}"),
        ("kept", sum(one.kept for one in calibration.classes), f"of {everything.masks:,} masks, by the thresholds"),
        ("precision", _precision(calibration), f"of what is kept; aimed at {Percent(target.precision)} %"),
    ]
    return webpage.page(
        "Calibration",
        subtitle,
        tiles,
        [
            f"{one.name}: no threshold reaches a precision of {Percent(target.precision)} %; none of its masks is kept."
            for one in calibration.classes
            if one.basis == "none"
        ],
        [_ranking_section(worth), _reliability_section(png), _threshold_section(calibration), _provenance(calibration)],
    )


def _precision(calibration: Calibration) -> Percent | None:
    kept = sum(one.kept for one in calibration.classes)
    return Percent(sum(one.right for one in calibration.classes) / kept) if kept else None


def _ranking_section(worth: Figures) -> Section:
    rows = tuple(
        (
            group.name,
            group.masks,
            group.bad,
            _two(group.score.spearman),
            _two(group.predicted.spearman),
            percent(group.score.worst_bad),
            percent(group.predicted.worst_bad),
            percent(group.possible),
        )
        for group in worth.groups
    )
    return Section(
        title="Sorting masks by quality",
        text="Spearman is the rank correlation with the true IoU: the greatest with an object of the class (0 where "
        f"there is none). A mask is bad below IoU {BAD_IOU:g}. The last three columns: which share of the bad masks is "
        f"among the worst {WORST:.0%} by score, and by predicted IoU, in percent; and which could be at most.",
        tables=(
            Table(
                columns=(
                    "",
                    "masks",
                    "bad",
                    "Spearman, score",
                    "predicted",
                    "bad found, score",
                    "predicted",
                    "possible",
                ),
                rows=rows,
            ),
        ),
    )


def _reliability_section(png: bytes) -> Section:
    return Section(
        title="Reliability",
        text="Masks in bins by what was predicted for them, and the share that was right. On the dashed line a mask of "
        "70 % is right in 70 of 100 cases; a small dot stands for few masks. ECE, the expected calibration error, is "
        "the mean distance from it.",
        plots=(Plot(png=png, text="Reliability diagram of the score and of the probability"),),
    )


def _threshold_section(calibration: Calibration) -> Section:
    basis = {"class": "its own masks", "all": "all classes", "none": "not reached"}
    rows = tuple(
        (
            one.name,
            None if one.threshold is None else f"{one.threshold:.3f}",
            basis[one.basis],
            one.masks,
            one.objects,
            one.kept,
            percent(one.precision),
            percent(one.recall),
        )
        for one in calibration.classes
    )
    target = calibration.target
    return Section(
        title="Thresholds",
        text=f"The least probability from which on {Percent(target.precision, 0)} % of the masks of a class are right "
        f"(IoU {target.iou:g}), with a confidence of {Percent(target.confidence, 0)} %; a class of fewer than "
        f"{LEAST_MASKS} masks has that of all classes. Kept, precision and recall are of images that the threshold was "
        "not chosen on.",
        tables=(Table(columns=("", "threshold", "by", "masks", "objects", "kept", "precision", "recall"), rows=rows),),
    )


def _provenance(calibration: Calibration) -> Section:
    rows = tuple((name, str(value)) for name, value in asdict(calibration.source).items())
    return Section(
        title="What the calibration was fitted to", tables=(Table(columns=("", ""), rows=rows, figures=False),)
    )


def _two(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
