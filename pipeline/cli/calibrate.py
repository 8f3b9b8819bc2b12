"""`patchlabel calibrate`: what scores and quality columns mean, by images whose objects are known."""

from __future__ import annotations

import click

from pipeline import calibrating, calibration
from pipeline.calibrating import Result
from pipeline.calibration.figures import BAD_IOU, WORST
from pipeline.cli.common import DONE, counted, json_option, print_json
from pipeline.store import Store, redact

_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command("calibrate")
@click.argument("run_uri")
@click.option("--truth", required=True, metavar="FILE", help="A COCO json with the true objects of images of the run.")
@click.option("--out", metavar="FILE", help="Where to write the calibration, a small JSON file.")
@click.option(
    "--precision", default=0.9, show_default=True, type=_SHARE, help="The share of what is kept of a class to be right."
)
@click.option("--iou", default=0.5, show_default=True, type=_SHARE, help="From which mask IoU on a mask is right.")
@click.option("--report", metavar="DIR", help="Where to write a page with the reliability diagram and all figures.")
@click.option("--check", "there", metavar="FILE", help="Fit nothing: measure this calibration on the run.")
@json_option
def calibrate_command(
    run_uri: str,
    truth: str,
    out: str | None,
    precision: float,
    iou: float,
    report: str | None,
    there: str | None,
    as_json: bool,
) -> int:
    """Fit probabilities, predicted IoU and thresholds to a run.

    The run may have more images than the truth. The figures are of images that were not fitted to: each fifth of them
    is judged by what the other four say. Other commands take the file as --thresholds, and a labeling run takes it as
    labeler.quality.
    """
    if (out is None) == (there is None):
        raise click.UsageError("give one of --out, to fit a calibration, and --check, to measure one")
    store = Store()
    if there is None:
        result = calibrating.calibrate(store, run_uri, truth, precision=precision, iou=iou)
    else:
        result = calibrating.check(store, run_uri, truth, calibration.read(there, store, key="--check"))
    calibrating.write(store, result, out=out, report=report)
    if as_json:
        print_json(calibrating.summary(result))
    else:
        _print(result, out, report)
    return DONE


def _print(result: Result, out: str | None, report: str | None) -> None:
    worth, fitted = result.figures, result.calibration
    where = "each judged by what the others say" if result.fitted else "none of which should have been fitted to"
    click.echo(f"{counted(result.images, 'image')} with truth, {where}")
    if result.others:
        click.echo(f"{counted(result.others, 'image')} of the run without truth, passed over")
    click.echo(f"\n{'':42}{'masks':>8}{'Spearman':>18}{f'bad in worst {WORST:.0%}':>26}")
    click.echo(f"{'':42}{'':8}{'score':>8}{'predicted':>10}{'score':>8}{'predicted':>10}{'possible':>9}")
    for group in worth.groups:
        cells = (_two(group.score.spearman), _two(group.predicted.spearman))
        shares = (_two(group.score.worst_bad), _two(group.predicted.worst_bad), _two(group.possible))
        click.echo(
            f"{group.name:42}{group.masks:8}{cells[0]:>8}{cells[1]:>10}{shares[0]:>8}{shares[1]:>10}{shares[2]:>9}"
        )
    click.echo(f"bad: IoU below {BAD_IOU:g} with every object of the class")
    click.echo(f"\nECE {worth.before.error:.4f} of the score, {worth.after.error:.4f} of the probability\n")
    width = max(5, *(len(one.name) for one in fitted.classes))
    click.echo(
        f"{'class':{width}} {'threshold':>10}{'masks':>8}{'objects':>9}{'kept':>8}{'precision':>11}{'recall':>8}"
    )
    for one in fitted.classes:
        least = "none" if one.threshold is None else f"{one.threshold:.3f}"
        note = {"class": "", "none": "  the precision is not reached", "all": "  as for all classes: few masks"}[
            one.basis
        ]
        click.echo(
            f"{one.name:{width}} {least:>10}{one.masks:8}{one.objects:9}{one.kept:8}{_two(one.precision):>11}"
            f"{_two(one.recall):>8}{note}"
        )
    click.echo()
    if out is not None:
        click.echo(f"{redact(out)}: the calibration; for example patchlabel export ... --thresholds {redact(out)}")
    if report is not None:
        click.echo(f"{redact(report)}/calibration.html: the figures with a diagram")


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
