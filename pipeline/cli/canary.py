"""`patchlabel canary`: what a new model would change in a run, tried on a sample."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import yaml

from pipeline import canary, driver, progress, runs
from pipeline.cli.common import DONE, FAULTY, json_option, print_json, set_option, table_text, view_options_from
from pipeline.config import LabelConfig, load
from pipeline.store import Store, absolute, join, redact
from pipeline.view import View


@click.command("canary")
@click.argument("run_uri")
@click.option("--config", "path", metavar="FILE", help="How the sample is labelled; without it, as the run was.")
@set_option
@click.option("--sample", default=200, show_default=True, type=click.IntRange(min=1), help="How many images.")
@click.option("--out", required=True, metavar="URI", help="Where the sample, its labels and the report go.")
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
    config = canary.config_for(_config(old, path, settings), out)
    sampled = canary.sample(old, sample, out)
    with progress.reporter() as report:
        outcome = driver.run(config, report)
    if not outcome.complete:
        click.echo(progress.summary(outcome), err=True)
        return FAULTY
    result = canary.compare(sampled, old, runs.opened(store, config.output.uri, view), out)
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
    with tempfile.TemporaryDirectory(prefix="patchlabel-") as folder:
        file = Path(folder) / "config of the run"
        given = {key: value for key, value in old.manifest.config.items() if key != "run"}
        file.write_text(yaml.safe_dump(json.loads(json.dumps(given))))
        return load(LabelConfig, str(file), settings)
