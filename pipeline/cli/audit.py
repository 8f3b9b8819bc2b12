"""`patchlabel audit`: how good the labels of a run are, by people who judge a sample."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click

from pipeline import runs
from pipeline.audit import certificates, packages, page, plans, sampling, verdicts
from pipeline.audit.certificates import Certificate
from pipeline.cli.common import (
    DONE,
    PLACE,
    Number,
    counted,
    json_option,
    print_json,
    print_lines,
    run_argument,
    table_text,
    view_options_from,
)
from pipeline.cli.review import label_studio
from pipeline.errors import UserError
from pipeline.exports.common import check_new, quality_columns
from pipeline.reports.sections import Percent
from pipeline.store import Store, join, redact
from pipeline.view import View

_SHARE = Number(0, 1, min_open=True, max_open=True)


@click.command("audit")
@run_argument
@click.option("--per-class", type=click.IntRange(min=1), metavar="N", help="Draw N masks of each class.")
@click.option("--slice", "slices", metavar="COLUMN=EDGES", help="Draw from each band of a column, as in score=0.7,0.9.")
@click.option(
    "--images", default=0, metavar="N", type=click.IntRange(min=0), help="Draw N images, too, for what is missed."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="The same sample for the same.")
@click.option(
    "--answers",
    multiple=True,
    type=PLACE,
    metavar="FILE",
    help="Certify: Label Studio's JSON, or answers.csv; as often as needed.",
)
@click.option("--target", default=0.9, show_default=True, type=_SHARE, help="The precision that the masks should have.")
@click.option(
    "--out", required=True, type=PLACE, metavar="URI", help="The new folder of the sample; with --answers, that folder."
)
@view_options_from(0.5)
@json_option
def audit_command(
    run_uri: str,
    per_class: int | None,
    slices: str | None,
    images: int,
    seed: int,
    answers: Sequence[str],
    target: float,
    out: str,
    view: View,
    as_json: bool,
) -> int:
    """Draw a random sample of masks for people to judge, and certify the run by their answers.

    For example: patchlabel audit RUN --per-class 100 --out audit/, then patchlabel audit RUN --answers answers.csv
    --out audit/
    """
    if (per_class is None) == (not answers):
        raise click.UsageError("give one of --per-class, to draw a sample, and --answers, to certify by it")
    store = Store()
    if answers:
        if slices is not None or images:
            raise click.UsageError("--slice and --images are for --per-class, which draws the sample")
        plan = plans.read(store, out)
        plans.check(plan, runs.opened(store, run_uri))
        found = certificates.certify(plan, verdicts.read(plan, answers, store), target=target)
        page.write(store, out, found)
        if as_json:
            print_json(found.document())
        else:
            _print(found, out)
        return DONE
    assert per_class is not None
    bands = None if slices is None else sampling.slices(slices)
    labels = runs.opened(store, run_uri, view)
    columns = ("score", "area", *quality_columns(labels))
    if bands is not None and bands.column not in columns:
        raise UserError(f"--slice {slices}: the run has no column {bands.column}; it has {', '.join(columns)}")
    check_new(store, out)
    plan = plans.draw(labels, per_class, seed=seed, bands=bands, scenes=images)
    if plan.masks:
        packages.write(labels, plan, out)
    if as_json:
        print_json({"masks": plan.size, "drawn": len(plan.masks), "state": {"commits": plan.state.commits}})
    elif not plan.masks:
        click.echo("nothing to judge: the run has no masks that count")
    else:
        _print_plan(plan, run_uri, out)
    return DONE


def _print_plan(plan: plans.Plan, run_uri: str, out: str) -> None:
    classes = len({one.category_id for one in plan.strata})
    print_lines(
        [
            ("sample", f"{counted(len(plan.masks), 'mask')} of {plan.size}, of {classes} classes"),
            ("package", redact(out)),
        ]
    )
    again = f"patchlabel audit {shlex.quote(redact(run_uri))} --out {shlex.quote(redact(out))} --answers"
    click.echo(
        f"\nnext:\n  open {redact(join(out, 'judge.html'))} in a browser, answer, and save answers.csv; then\n"
        f"  {again} answers.csv\n"
        f"or, for the masks,\n  {label_studio(out, True)}\n  answer, submit, and export the project as JSON; then\n"
        f"  {again} project.json"
    )


def _print(found: Certificate, out: str) -> None:
    rows = []
    for one in (*found.classes, *found.slices, found.overall):
        share = one.precision
        bounds = None if share.low is None or share.high is None else f"{Percent(share.low)} to {Percent(share.high)}"
        value = None if share.value is None else str(Percent(share.value))
        needed = f": {one.needed} answers" if one.needed is not None else ""
        rows.append((one.name, one.size, one.drawn, share.answered, value, bounds, f"{one.decision}{needed}"))
    target = f"at least {found.target:.0%}?"
    click.echo(table_text(["", "masks", "drawn", "judged", "precision %", "95 % bounds", target], rows))
    if (recall := found.recall) is not None and recall.value is not None:
        images = f"{counted(recall.missed, 'object')} without a mask in {counted(recall.answered, 'image')}"
        click.echo(f"\nrecall {Percent(recall.value)} %: {images}")
    click.echo(f"\n{redact(join(out, 'certificate.html'))}: the certificate")
