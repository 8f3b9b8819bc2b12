"""`patchlabel apply`: what people have corrected, laid over a run."""

from __future__ import annotations

import getpass

import click

from pipeline import corrections
from pipeline.cli.common import (
    DONE,
    PLACE,
    counted,
    json_option,
    print_json,
    print_lines,
    run_argument,
    view_options_from,
)
from pipeline.review import applying
from pipeline.review.applying import Applied
from pipeline.store import Store, redact
from pipeline.view import View


@click.command("apply")
@run_argument
@click.option(
    "--corrections",
    "file",
    type=PLACE,
    metavar="FILE",
    help="Label Studio's JSON, CVAT for images 1.1 (XML or ZIP) or COCO JSON.",
)
@click.option("--undo", type=click.IntRange(min=1), metavar="N", help="Take version N of the corrections back.")
@click.option("--by", metavar="NAME", help="Who answers for it; without it, the user of this machine.")
@click.option("--dry-run", is_flag=True, help="Tell what would change, and write nothing.")
@view_options_from(0.5)
@json_option
def apply_command(
    run_uri: str, file: str | None, undo: int | None, by: str | None, dry_run: bool, view: View, as_json: bool
) -> int:
    """Lay the corrections of people over a run, as a new version that every reader honours; nothing is lost.

    Give the options by which the masks were shown (--min-score, --thresholds, --taxonomy): of an image that is
    corrected, the masks that people have left are all that counts.
    For example: patchlabel apply RUN --corrections project-1.json --by anna
    """
    if (file is None) == (undo is None):
        raise click.UsageError("give one of --corrections, to apply a file, and --undo, to take a version back")
    store, by = Store(), by or _user()
    if undo is not None:
        if dry_run:
            raise click.UsageError("--dry-run is for --corrections")
        version = corrections.undo(store, run_uri, undo, by=by)
        if as_json:
            print_json({"version": version.number, "undoes": undo})
        else:
            click.echo(f"version {version.number} takes version {undo} back, which stays in the history")
        return DONE
    assert file is not None
    found = applying.apply(store, run_uri, file, by=by, view=view, dry_run=dry_run)
    if as_json:
        print_json(
            {
                "format": found.format,
                "version": found.number,
                "already": found.before,
                "counts": dict(found.counts),
                "not_looked_at": found.left_out,
                "overlaid": found.overlaid,
            }
        )
    else:
        _print(found, file, run_uri, dry_run)
    return DONE


def _print(found: Applied, file: str, run_uri: str, dry_run: bool) -> None:
    if found.before is not None:
        click.echo(f"{redact(file)} is version {found.before} of the corrections already; nothing was written")
        return
    counts = found.counts
    hidden = f", {counts['hidden']} dropped that were not shown" if counts["hidden"] else ""
    left_out = f", {found.left_out} not looked at and left as they are" if found.left_out else ""
    print_lines(
        [
            ("images", f"{counts['images']} looked at{left_out}"),
            ("masks", f"{', '.join(f'{counts[kind]} {kind}' for kind in applying.KINDS if kind != 'hidden')}{hidden}"),
        ]
    )
    if found.overlaid:
        click.echo(
            f"warning: {counted(found.overlaid, 'image')} corrected by others since they were shown; this comes on top",
            err=True,
        )
    if dry_run:
        click.echo("a dry run: nothing was written")
    elif found.number is None:
        click.echo("nobody has looked at an image in this file; nothing was written")
    else:
        click.echo(
            f"version {found.number} of the corrections; export, gallery and training show it from now on\n"
            f"to take it back: patchlabel apply {redact(run_uri)} --undo {found.number}"
        )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "unknown"
