"""`patchlabel canary`: what a new model would change in a run, tried on a sample."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import click

from pipeline import canary, driver, outputs, progress, runs
from pipeline.cli.common import (
    DONE,
    FAULTY,
    INTERRUPTED,
    PLACE,
    counted,
    json_option,
    print_json,
    run_argument,
    set_option,
    table_text,
    view_options_from,
)
from pipeline.config import LabelConfig, load, load_mapping
from pipeline.errors import UserError
from pipeline.store import Store, absolute, join, redact
from pipeline.view import View


@click.command("canary")
@run_argument
@click.option(
    "--config", "path", type=PLACE, metavar="FILE", help="How the sample is labelled; without it, as the run was."
)
@set_option
@click.option(
    "--sample", default=200, show_default=True, type=click.IntRange(min=1), metavar="N", help="How many images."
)
@click.option("--out", required=True, type=PLACE, metavar="URI", help="Where the sample, its labels and the report go.")
@view_options_from(0.5)
@json_option
def canary_command(
    run_uri: str, path: str | None, settings: Sequence[str], sample: int, out: str, view: View, as_json: bool
) -> int:
    """Label a sample of a run by another model, and tell what changes.

    For example: patchlabel canary RUN --set labeler.weights=new.pth --out canary/

    Writes canary.html and canary.json. Run again, it goes on where it stopped.
    """
    logging.getLogger("pipeline").setLevel(logging.INFO)
    store, out = Store(), absolute(out)
    old = runs.opened(store, run_uri, view)
    config = canary.config_for(_config(old, path, settings), out, store)
    outputs.check_folder(store, out, key="--out")
    sampled = canary.sample(old, sample, out)
    with progress.reporter() as report:
        outcome = driver.run(config, report)
    if not outcome.complete:
        click.echo(progress.summary(outcome), err=True)
        return INTERRUPTED if outcome.interrupted == "SIGINT" else FAULTY
    result = canary.compare(sampled, old, runs.opened(store, config.output.uri, view), out)
    if result.unreadable:
        click.echo(f"warning: {counted(result.unreadable, 'image')} of the sample could not be labelled", err=True)
    if as_json:
        print_json(result.document())
        return DONE
    table = canary.table(result)
    click.echo(table_text(table.columns, table.rows))
    changed = f"{result.changed} of {result.images} images change"
    click.echo(f"{changed}; pictures and figures: {redact(join(out, 'canary.html'))}")
    return DONE


def _config(old: runs.Labels, path: str | None, settings: Sequence[str]) -> LabelConfig:
    """The config that is named, or that of the run, with these settings."""
    if path is not None:
        return load(LabelConfig, path, settings)
    given = {key: value for key, value in old.manifest.config.items() if key != "run"}
    shown = f"the config of {redact(old.uri)}"
    try:
        return load_mapping(LabelConfig, given, shown, settings)
    except UserError as error:
        said = str(error)
        raise UserError(f"{said}; give one with --config" if said.startswith(shown) else said) from error
