"""`patchlabel quarantine`: what a run has set aside, and why."""

from __future__ import annotations

from dataclasses import asdict

import click

from pipeline import quarantine
from pipeline.cli.common import DONE, counted, json_option, print_json
from pipeline.store import Store, redact


@click.command("quarantine")
@click.argument("run_uri")
@click.option("--images", "with_images", is_flag=True, help="Name each quarantined image, which reads their shards.")
@json_option
def quarantine_command(run_uri: str, with_images: bool, as_json: bool) -> int:
    """Tell what a run has set aside, and why. `--set run.only=quarantined` has jobs.label try those shards again."""
    store = Store()
    found = quarantine.read(store, run_uri)
    rows = quarantine.images(store, run_uri) if with_images else iter(())
    images = ({"key": row.key, "uri": row.uri, "error": row.error} for row in rows)
    if as_json:
        print_json(asdict(found) | ({"quarantined": list(images)} if with_images else {}))
        return DONE
    for failure in found.shards:
        tried = counted(failure.attempts, "attempt")
        click.echo(f"shard  {redact(failure.uri)}: {failure.error.removesuffix('.')} (after {tried})")
    for image in images:
        click.echo(f"image  {image['key']}: {image['error']}")
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.reasons.items())
    click.echo(
        f"{counted(len(found.shards), 'shard')} and {counted(found.images, 'image')} set aside"
        + (f" ({reasons})" if reasons else "")
    )
    return DONE
