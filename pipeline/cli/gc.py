"""`patchlabel gc`: remove what dead attempts left behind."""

from __future__ import annotations

import math
from dataclasses import asdict

import click

from pipeline.cli.common import DONE, SHOWN, counted, json_option, print_json, size
from pipeline.errors import UserError
from pipeline.orphans import Collected, collect
from pipeline.store import Store

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@click.command("gc")
@click.argument("run_uri")
@click.option(
    "--older-than", default="1d", show_default=True, metavar="AGE", help="What is younger stays: 90s, 30m, 12h, 7d."
)
@click.option("--dry-run", is_flag=True, help="Remove nothing; only tell what would be.")
@json_option
def gc_command(run_uri: str, older_than: str, dry_run: bool, as_json: bool) -> int:
    """Remove what dead attempts left behind and no commit names. The run may go on meanwhile."""
    found = collect(Store(), run_uri, older_than_s=_age(older_than), dry_run=dry_run)
    if as_json:
        print_json(asdict(found) | {"dry_run": dry_run})
    else:
        _print_collected(found, "would remove" if dry_run else "removed")
    return DONE


def _print_collected(found: Collected, verb: str) -> None:
    for name in found.names[:SHOWN]:
        click.echo(name)
    if (more := len(found.names) - SHOWN) > 0:
        click.echo(f"and {more} more; --json names all")
    click.echo(
        f"{verb} {counted(found.data, 'data object')} of no commit, "
        f"{counted(found.unfinished, 'write')} that did not come to an end, "
        f"{counted(found.records, 'record')} of shards that are done by now: {size(found.bytes)}"
    )


def _age(text: str) -> float:
    """An age in seconds.

    >>> _age("90s"), _age("1.5h")
    (90.0, 5400.0)
    """
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * _UNITS_S[unit]
    except (ValueError, KeyError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UserError(f"--older-than {text}: an age is a number and s, m, h or d, such as 90s, 30m, 12h or 7d.")
    return seconds
