"""`patchlabel calibrate`: what scores and quality columns mean, by images whose objects are known."""

from __future__ import annotations

import click
from click.core import ParameterSource

from pipeline import calibrating, calibration, ledger, outputs
from pipeline.calibrating import Result
from pipeline.calibration.figures import BAD_IOU, WORST
from pipeline.cli.common import DONE, PLACE, Number, counted, json_option, print_json, run_argument, table_text
from pipeline.store import Store, redact

_SHARE = Number(0, 1, min_open=True, max_open=True)
_NOTES = {"class": "", "none": "the precision is not reached", "all": "as for all classes: few masks"}


@click.command("calibrate")
@run_argument
@click.option(
    "--truth", required=True, type=PLACE, metavar="FILE", help="A COCO json with the true objects of images of the run."
)
@click.option("--out", type=PLACE, metavar="FILE", help="Where to write the calibration, a small JSON file.")
@click.option(
    "--precision",
    default=0.9,
    show_default=True,
    type=_SHARE,
    metavar="X",
    help="The share of what is kept of a class to be right.",
)
@click.option(
    "--iou",
    default=0.5,
    show_default=True,
    type=_SHARE,
    metavar="X",
    help="From which mask IoU on a mask is right.",
)
@click.option(
    "--report", type=PLACE, metavar="DIR", help="Where to write a page with the reliability diagram and all figures."
)
@click.option("--check", "there", type=PLACE, metavar="FILE", help="Fit nothing: measure this calibration on the run.")
@json_option
@click.pass_context
def calibrate_command(
    ctx: click.Context,
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
    labeler.quality. For example: patchlabel calibrate RUN --truth truth.json --out thresholds.json
    """
    if (out is None) == (there is None):
        raise click.UsageError("give one of --out, to fit a calibration, and --check, to measure one")
    if there is not None:
        for name in ("precision", "iou"):
            if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
                raise click.UsageError(f"--{name} is for --out; --check goes by what its file was fitted for")
    if out == truth:
        raise click.UsageError("--out is the file of --truth, which it would replace; name another one")
    store = Store()
    ledger.read_manifest(store, run_uri)  # before anything is made for what is no run
    if out is not None:
        outputs.check_file(store, out, key="--out", example="thresholds.json")
    if report is not None:
        outputs.check_folder(store, report, key="--report")
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
    rows = [
        (
            one.name,
            "none" if one.threshold is None else f"{one.threshold:.3f}",
            one.masks,
            one.objects,
            one.kept,
            _two(one.precision),
            _two(one.recall),
        )
        for one in fitted.classes
    ]
    table = table_text(("class", "threshold", "masks", "objects", "kept", "precision", "recall"), rows).splitlines()
    notes = ["", *(_NOTES[one.basis] for one in fitted.classes)]
    click.echo("\n".join(f"{line}  {note}".rstrip() for line, note in zip(table, notes, strict=True)) + "\n")
    if out is not None:
        click.echo(f"{redact(out)}: the calibration; for example patchlabel export ... --thresholds {redact(out)}")
    if report is not None:
        click.echo(f"{redact(report)}/calibration.html: the figures with a diagram")


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
