"""`patchlabel export`: the labels of a run in the format of another tool."""

from __future__ import annotations

import click

from pipeline.cli.common import DONE, counted, size
from pipeline.export import EXPORTS, export
from pipeline.store import Store


@click.command("export")
@click.argument("run_uri")
@click.option("--format", "format", required=True, type=click.Choice(list(EXPORTS)), help="What to write.")
@click.option("--out", required=True, metavar="URI", help="Where to; what is there is replaced.")
@click.option(
    "--min-score", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="Leave out masks that score less."
)
def export_command(run_uri: str, format: str, out: str, min_score: float) -> int:
    """Write the labels of a run in the format of another tool."""
    written = export(Store(), run_uri, format=format, out=out, min_score=min_score)
    if written.missing:
        click.echo(f"warning: {counted(written.missing, 'shard')} of the run not done, and so not exported", err=True)
    left_out = f", without {written.quarantined} quarantined" if written.quarantined else ""
    click.echo(
        f"{written.uri}: {counted(written.images, 'image')}{left_out}, {counted(written.instances, 'mask')}, "
        f"{size(written.bytes)}"
    )
    return DONE
