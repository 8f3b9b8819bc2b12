"""`patchlabel export`: the labels of a run in the format of another tool."""

from __future__ import annotations

import click

from pipeline.cli.common import DONE, PLACE, counted, run_argument, size, view_options
from pipeline.exports import EXPORTS, export
from pipeline.store import Store
from pipeline.view import View


@click.command("export")
@run_argument
@click.option("--format", "format", required=True, type=click.Choice(list(EXPORTS)), help="What to write.")
@click.option(
    "--out",
    required=True,
    type=PLACE,
    metavar="URI",
    help="Where to: a file for coco, which is replaced; else a new folder.",
)
@view_options
@click.option("--images", is_flag=True, help="With the images themselves (yolo, cvat, labelstudio, fiftyone, hf).")
@click.option("--polygons", is_flag=True, help="Polygons in the place of masks (cvat, labelstudio).")
def export_command(run_uri: str, format: str, out: str, view: View, images: bool, polygons: bool) -> int:
    """Write the labels of a run in the format of another tool.

    For example: patchlabel export RUN --format coco --out all.json --min-score 0.5
    """
    written = export(Store(), run_uri, format=format, out=out, view=view, images=images, polygons=polygons)
    if written.missing:
        click.echo(f"warning: {counted(written.missing, 'shard')} of the run not done, and so not exported", err=True)
    left_out = f", without {written.quarantined} quarantined" if written.quarantined else ""
    click.echo(
        f"{written.uri}: {counted(written.images, 'image')}{left_out}, {counted(written.instances, 'mask')}, "
        f"{size(written.bytes)}"
    )
    return DONE
