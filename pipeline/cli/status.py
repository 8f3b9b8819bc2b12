"""`patchlabel status`: how far a run is, and what failed."""

from __future__ import annotations

from dataclasses import asdict

import click

from pipeline.cli.common import DONE, counted, json_option, print_json, print_lines, view_options
from pipeline.runs import Status, count, opened, status
from pipeline.store import Store, redact
from pipeline.view import PLAIN, View


@click.command("status")
@click.argument("run_uri")
@view_options
@json_option
def status_command(run_uri: str, view: View, as_json: bool) -> int:
    """Tell how far a run is, and what failed.

    With --min-score, --thresholds or --taxonomy, also how many masks count, by class, which reads all labels.
    """
    store = Store()
    found = status(store, run_uri)
    kept = None if view == PLAIN else count(opened(store, run_uri, view))
    if as_json:
        print_json(asdict(found) | ({} if kept is None else {"view": asdict(kept)}))
        return DONE
    _print_status(found)
    if kept is not None:
        classes = ", ".join(f"{number} {name}" for name, number in kept.classes.items())
        masks = f"{kept.instances} of {found.instances} masks" + (f" ({classes})" if classes else "")
        print_lines([("counting", f"{masks}, in {kept.labelled} images")])
    return DONE


def _corrections(found: Status) -> list[tuple[str, str]]:
    if not found.corrections:
        return []
    return [("corrected", f"{counted(found.corrected, 'image')} in {counted(found.corrections, 'version')}")]


def _print_status(found: Status) -> None:
    taken = f" ({found.taken} taken from another run)" if found.taken else ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.reasons.items())
    rate = "" if found.images_per_second is None else f", {found.images_per_second:.1f} images a second"
    failures = [
        ("failed", f"{redact(failure.uri)}: {failure.error} (attempts: {failure.attempts})")
        for failure in found.failures
    ]
    print_lines(
        [
            ("run", f"{found.run_id} at {found.uri}, of {found.created}"),
            ("shards", f"{found.done} of {found.shards} done{taken}, {found.pending} pending, {found.failed} failed"),
            ("images", f"{found.images}"),
            ("labelled", f"{found.labelled}"),
            ("empty", f"{found.empty}"),
            ("quarantined", f"{found.quarantined}" + (f" ({reasons})" if reasons else "")),
            ("masks", f"{found.instances}"),
            *_corrections(found),
            ("work", f"{found.seconds:.1f} s{rate}"),
            *failures,
        ]
    )
