"""`patchlabel review`: the doubtful masks of a run, for people to correct."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click
from click.core import ParameterSource

from pipeline import runs
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
from pipeline.exports.common import check_new
from pipeline.review import packages
from pipeline.store import Store, absolute, join, local_path, redact, scheme
from pipeline.view import View

_VIEW = ("--min-score", "--thresholds", "--taxonomy")


@click.command("review")
@run_argument
@click.option("--budget", required=True, type=click.IntRange(min=1), metavar="N", help="How many images.")
@click.option(
    "--format",
    "format",
    default="labelstudio",
    show_default=True,
    type=click.Choice(packages.FORMATS),
    help="For what.",
)
@click.option("--out", required=True, type=PLACE, metavar="URI", help="The new folder to write.")
@click.option("--images/--no-images", default=True, show_default=True, help="With the images themselves.")
@click.option("--again", is_flag=True, help="With images that people have corrected already.")
@view_options_from(0.5)
@json_option
def review_command(
    run_uri: str, budget: int, format: str, out: str, images: bool, again: bool, view: View, as_json: bool
) -> int:
    """Write the images of a run that are most worth a look, for Label Studio or CVAT, with their masks to correct.

    The worst come first, with some of each class and shard; queue.json says why each one is there.
    For example: patchlabel review RUN --budget 200 --out review/
    """
    labels = runs.opened(Store(), run_uri, view)
    check_new(labels.store, out)
    found = packages.queue(labels, budget, again=again)
    if found.chosen:
        packages.write(labels, found, out, format=format, images=images)
    if as_json:
        print_json(
            {
                "images": len(found.chosen),
                "masks": found.shown,
                "of_images": found.images,
                "of_masks": found.masks,
                "already_corrected": found.passed,
                "share_of_expected_errors": found.share,
            }
        )
        return DONE
    passed = f" ({counted(found.passed, 'image')} corrected already; --again takes those too)" if found.passed else ""
    if not found.chosen:
        click.echo(f"nothing to look at: {counted(found.images, 'image')} with masks{passed}")
        return DONE
    lines = [
        ("queue", f"{len(found.chosen)} of {counted(found.images, 'image')} with masks{passed}"),
        ("masks", f"{found.shown} of {found.masks}"),
    ]
    if found.share is not None:
        lines.append(("errors", f"about {found.share:.0%} of those that the calibration expects in the run"))
    print_lines([*lines, ("package", f"{redact(out)}: queue.json says why each image is there")])
    click.echo("\nnext:")
    for step in _steps(run_uri, format, out, images):
        click.echo(f"  {step}")
    return DONE


def _steps(run_uri: str, format: str, out: str, images: bool) -> Sequence[str]:
    """What to do with the package."""
    apply = f"patchlabel apply {shlex.quote(run_uri)} --corrections FILE{_given()}"
    if format == "cvat":
        task = "make a CVAT task with labels.json (Raw) and the files of images/"
        return [
            task if images else "make a CVAT task with labels.json (Raw) and the images",
            "upload annotations-00000.xml to it (CVAT 1.1), correct, and export it as CVAT for images 1.1",
            apply,
        ]
    return [
        label_studio(out, images),
        "correct, submit, and export the project as JSON; then",
        apply,
    ]


def label_studio(out: str, images: bool) -> str:
    """How a package gets into Label Studio: images on the local disk need a server that may read them."""
    project = "make a project with label_config.xml"
    if not images or scheme(out) not in ("", "file"):
        return f"in Label Studio, {project} and import tasks-*.json"
    folder = local_path(absolute(out)).rstrip("/")
    settings = "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="
    return (
        f"{settings}{shlex.quote(folder)} label-studio start\n"
        f"  there, {project}, add {join(folder, 'images')} as source storage (local files), and import tasks-*.json"
    )


def _given() -> str:
    """The view options of this command, for the next one, which has to see the same masks."""
    context = click.get_current_context()
    options = {option: one for one in context.command.params for option in one.opts if option in _VIEW and one.name}
    given = {
        option: context.params[one.name]
        for option, one in options.items()
        if one.name and context.get_parameter_source(one.name) is ParameterSource.COMMANDLINE
    }
    return "".join(f" {option} {shlex.quote(str(value))}" for option, value in given.items())
