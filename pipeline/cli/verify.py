"""`patchlabel verify`: whether a run keeps its promises."""

from __future__ import annotations

from dataclasses import asdict

import click

from pipeline.cli.common import DONE, FAULTY, SHOWN, counted, json_option, print_json, progress
from pipeline.store import Store
from pipeline.verify import Report, verify


@click.command("verify")
@click.argument("run_uri")
@json_option
def verify_command(run_uri: str, as_json: bool) -> int:
    """Check a run: every image accounted for, every file as committed, every mask sound. Exits with 1 if not."""
    with progress("checked") as show:
        report = verify(Store(), run_uri, progress=show)
    if as_json:
        print_json(asdict(report))
    else:
        _print_report(report)
    return FAULTY if report.faults else DONE


def _print_report(report: Report) -> None:
    for fault in report.faults[:SHOWN]:
        click.echo(str(fault))
    if (more := len(report.faults) - SHOWN) > 0:
        click.echo(f"and {more} more; --json names all")
    click.echo(
        f"{report.committed} of {counted(report.shards, 'shard')}, {counted(report.images, 'image')}, "
        f"{counted(report.instances, 'mask')}: {counted(len(report.faults), 'fault') if report.faults else 'all sound'}"
    )
