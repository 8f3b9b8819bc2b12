"""`patchlabel doctor`: what is installed and what can be reached."""

from __future__ import annotations

import click

from pipeline import doctor
from pipeline.cli.common import DONE, FAULTY


@click.command("doctor")
@click.option("--uri", metavar="URI", help="A place whose reachability matters, such as s3://bucket/prefix.")
def doctor_command(uri: str | None) -> int:
    """Tell what is installed and what can be reached. Exits with 1 if anything is missing that labeling needs."""
    complete = True
    for finding in doctor.examine(uri):
        click.echo(f"{finding.mark:8} {finding.name:15} {finding.text}")
        complete = complete and finding.mark != "missing"
    return DONE if complete else FAULTY
