"""`patchlabel gallery`: a run as a page for people."""

from __future__ import annotations

import sys

import click

from pipeline import runs
from pipeline.cli.common import DONE, PLACE, counted, run_argument, size, view_options
from pipeline.gallery import LIMIT, LONGEST, MOST, gallery
from pipeline.store import Store
from pipeline.view import View


@click.command("gallery")
@run_argument
@click.option(
    "--out",
    required=True,
    type=PLACE,
    metavar="DIR",
    help="The folder to write; a gallery that is there is replaced.",
)
@click.option(
    "--limit",
    default=LIMIT,
    metavar="N",
    show_default=True,
    type=click.IntRange(1, MOST),
    help="Show so many images: half of them the worst, half an even sample of the others.",
)
@click.option(
    "--size",
    "longest",
    default=LONGEST,
    metavar="N",
    show_default=True,
    type=click.IntRange(64, 4096),
    help="The longest side of a picture, in pixels.",
)
@click.option("--truth", type=PLACE, metavar="FILE", help="A COCO json to compare with.")
@view_options
def gallery_command(run_uri: str, out: str, limit: int, longest: int, truth: str | None, view: View) -> int:
    """Write a page to look at the labels of a run with, the worst and most uncertain first.

    It needs no server. For example: patchlabel gallery RUN --out gallery/ --truth truth.json
    """
    terminal = sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        if terminal:
            click.echo(f"\rmade {done} of {total} images", nl=False, err=True)

    try:
        labels = runs.opened(Store(), run_uri, view)
        written = gallery(labels, out, limit=limit, longest=longest, truth=truth, progress=show)
    finally:
        if terminal:
            click.echo("\r\x1b[K", nl=False, err=True)
    if written.missing:
        click.echo(f"warning: {counted(written.missing, 'shard')} of the run not done, and so not shown", err=True)
    if written.truth == 0:
        click.echo("warning: no image of the gallery is in the truth, by its key and size", err=True)
    gone = f" ({written.gone} without a picture: see there)" if written.gone else ""
    click.echo(
        f"{written.uri}: {written.images} of {counted(written.of_images, 'image')}{gone}, "
        f"{written.masks} of {counted(written.of_masks, 'mask')}, {size(written.bytes)}"
    )
    return DONE
