"""The command `patchlabel`: what can be said about a run before, during and after it. `python -m jobs.label` makes it.

Exit status: 0 all is well; 1 something is wrong with the run, the storage or the installation; 2 the input was refused.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click

from pipeline import __version__, doctor, ledger, quarantine
from pipeline.config import LabelConfig, load
from pipeline.errors import LabelingError, UserError
from pipeline.export import EXPORTS, export
from pipeline.founding import changes, located, planned_shards
from pipeline.orphans import Collected, collect
from pipeline.plan import Planned
from pipeline.records import Shard
from pipeline.runs import Status, status
from pipeline.shard_list import ShardList
from pipeline.store import Store, join, redact
from pipeline.verify import Report, verify

DONE, FAULTY, REFUSED, INTERRUPTED = 0, 1, 2, 130
_FAULTS_SHOWN = 20
_NAMES_SHOWN = 20
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def commands() -> None:
    """Plan, follow, check and export labeling runs."""


@commands.command("plan")
@click.option("--config", "path", required=True, metavar="FILE", help="The YAML of the run; see configs/label/.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key, as often as needed.")
@_json_option
def plan_command(path: str, settings: Sequence[str], as_json: bool) -> int:
    """Tell what a run would label, and how far it is where it has begun. Writes nothing."""
    config, store = located(load(LabelConfig, path, settings)), Store()
    formats: Counter[str] = Counter()
    images: int | None = 0
    size = 0

    def counted(all_planned: Iterable[Planned]) -> Iterator[Shard]:
        nonlocal images, size
        for planned in all_planned:
            images = None if images is None or planned.images is None else images + planned.images
            size += planned.shard.bytes
            formats[planned.shard.format] += 1
            yield planned.shard

    with _notes() as notes:
        shards = ShardList.of(counted(planned_shards(config, store)))
    found = {
        "input": [redact(uri) for uri in config.input.uris],
        "shards": len(shards),
        "formats": formats,
        "images": images,
        "bytes": size,
        "notes": notes,
        "output": redact(config.output.uri),
        "output_formats": config.output.formats,
        "run": _run_there(config, store, shards),
    }
    if as_json:
        _print_json(found)
    else:
        _print_plan(found)
    return DONE


@commands.command("status")
@click.argument("run_uri")
@_json_option
def status_command(run_uri: str, as_json: bool) -> int:
    """Tell how far a run is, and what failed."""
    found = status(Store(), run_uri)
    if as_json:
        _print_json(asdict(found))
    else:
        _print_status(found)
    return DONE


@commands.command("verify")
@click.argument("run_uri")
@_json_option
def verify_command(run_uri: str, as_json: bool) -> int:
    """Check a run: every image accounted for, every file as committed, every mask sound. Exits with 1 if not."""
    with _progress("checked") as progress:
        report = verify(Store(), run_uri, progress=progress)
    if as_json:
        _print_json(asdict(report))
    else:
        _print_report(report)
    return FAULTY if report.faults else DONE


@commands.command("export")
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
        click.echo(f"warning: {_number(written.missing, 'shard')} of the run not done, and so not exported", err=True)
    left_out = f", without {written.quarantined} quarantined" if written.quarantined else ""
    click.echo(
        f"{written.uri}: {_number(written.images, 'image')}{left_out}, {_number(written.instances, 'mask')}, "
        f"{_size(written.bytes)}"
    )
    return DONE


@commands.command("quarantine")
@click.argument("run_uri")
@click.option("--images", "with_images", is_flag=True, help="Name each quarantined image, which reads their shards.")
@_json_option
def quarantine_command(run_uri: str, with_images: bool, as_json: bool) -> int:
    """Tell what a run has set aside, and why. `--set run.only=quarantined` has jobs.label try those shards again."""
    store = Store()
    found = quarantine.read(store, run_uri)
    rows = quarantine.images(store, run_uri) if with_images else iter(())
    images = ({"key": row.key, "uri": row.uri, "error": row.error} for row in rows)
    if as_json:
        _print_json(asdict(found) | ({"quarantined": list(images)} if with_images else {}))
        return DONE
    for failure in found.shards:
        tried = _number(failure.attempts, "attempt")
        click.echo(f"shard  {redact(failure.uri)}: {failure.error.removesuffix('.')} (after {tried})")
    for image in images:
        click.echo(f"image  {image['key']}: {image['error']}")
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.reasons.items())
    click.echo(
        f"{_number(len(found.shards), 'shard')} and {_number(found.images, 'image')} set aside"
        + (f" ({reasons})" if reasons else "")
    )
    return DONE


@commands.command("gc")
@click.argument("run_uri")
@click.option(
    "--older-than", default="1d", show_default=True, metavar="AGE", help="What is younger stays: 90s, 30m, 12h, 7d."
)
@click.option("--dry-run", is_flag=True, help="Remove nothing; only tell what would be.")
@_json_option
def gc_command(run_uri: str, older_than: str, dry_run: bool, as_json: bool) -> int:
    """Remove what dead attempts left behind and no commit names. The run may go on meanwhile."""
    found = collect(Store(), run_uri, older_than_s=_age(older_than), dry_run=dry_run)
    if as_json:
        _print_json(asdict(found) | {"dry_run": dry_run})
    else:
        _print_collected(found, "would remove" if dry_run else "removed")
    return DONE


@commands.command("doctor")
@click.option("--uri", metavar="URI", help="A place whose reachability matters, such as s3://bucket/prefix.")
def doctor_command(uri: str | None) -> int:
    """Tell what is installed and what can be reached. Exits with 1 if anything is missing that labeling needs."""
    complete = True
    for finding in doctor.examine(uri):
        click.echo(f"{finding.mark:8} {finding.name:15} {finding.text}")
        complete = complete and finding.mark != "missing"
    return DONE if complete else FAULTY


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and turn errors of ours into one sentence and an exit status."""
    try:
        code = commands.main(args=None if argv is None else list(argv), prog_name="patchlabel", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return REFUSED
    except click.ClickException as error:
        return _fail(f"{error.format_message().rstrip('.')}; see patchlabel --help.", REFUSED)
    except UserError as error:
        return _fail(str(error), REFUSED)
    except LabelingError as error:
        return _fail(str(error), FAULTY)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader has seen enough; what is still to be flushed goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAULTY
    return int(code or DONE)


def _fail(sentence: str, code: int) -> int:
    click.echo(f"error: {sentence.removesuffix('.')}", err=True)
    return code


def _run_there(config: LabelConfig, store: Store, planned: ShardList) -> dict[str, Any] | None:
    """The run that is where the output would go, if any: how far it is, and in what the config and the input differ."""
    if not store.exists(join(config.output.uri, "manifest.json")):
        return None
    manifest = ledger.read_manifest(store, config.output.uri)
    pending = len(ledger.pending(manifest, ledger.listing(store, config.output.uri).ids))
    return {
        "run_id": manifest.run_id,
        "created": manifest.created,
        "shards": len(manifest.shards),
        "done": len(manifest.shards) - pending,
        "pending": pending,
        "differences": changes(config, manifest),
        "shards_not_in_it": len(planned.without(ShardList.of(manifest.shards).ids)),
    }


def _print_plan(found: dict[str, Any]) -> None:
    formats = ", ".join(f"{count} {format}" for format, count in found["formats"].items())
    run = found["run"]
    lines = [
        ("input", ", ".join(found["input"])),
        ("shards", f"{found['shards']} ({formats})"),
        ("images", "unknown until they are read" if found["images"] is None else str(found["images"])),
        ("size", _size(found["bytes"])),
        *(("note", note) for note in found["notes"]),
        ("output", f"{found['output']} ({', '.join(found['output_formats'])})"),
    ]
    if run is None:
        lines.append(("run", "none there yet"))
    else:
        lines.append(
            ("run", f"{run['run_id']} of {run['created']}: {run['done']} shards done, {run['pending']} pending")
        )
        lines += [("differs", difference) for difference in run["differences"]]
        if run["shards_not_in_it"]:
            lines.append(("note", f"{_number(run['shards_not_in_it'], 'shard')} of this input not part of that run"))
    _print_lines(lines)


def _print_status(found: Status) -> None:
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.reasons.items())
    rate = "" if found.images_per_second is None else f", {found.images_per_second:.1f} images a second"
    failures = [
        ("failed", f"{redact(failure.uri)}: {failure.error} (attempts: {failure.attempts})")
        for failure in found.failures
    ]
    _print_lines(
        [
            ("run", f"{found.run_id} at {found.uri}, of {found.created}"),
            ("shards", f"{found.done} of {found.shards} done, {found.pending} pending, {found.failed} failed"),
            ("images", f"{found.images}"),
            ("labelled", f"{found.labelled}"),
            ("empty", f"{found.empty}"),
            ("quarantined", f"{found.quarantined}" + (f" ({reasons})" if reasons else "")),
            ("masks", f"{found.instances}"),
            ("work", f"{found.seconds:.1f} s{rate}"),
            *failures,
        ]
    )


def _print_report(report: Report) -> None:
    for fault in report.faults[:_FAULTS_SHOWN]:
        click.echo(str(fault))
    if (more := len(report.faults) - _FAULTS_SHOWN) > 0:
        click.echo(f"and {more} more; --json names all")
    click.echo(
        f"{report.committed} of {_number(report.shards, 'shard')}, {_number(report.images, 'image')}, "
        f"{_number(report.instances, 'mask')}: {_number(len(report.faults), 'fault') if report.faults else 'all sound'}"
    )


def _print_collected(found: Collected, verb: str) -> None:
    for name in found.names[:_NAMES_SHOWN]:
        click.echo(name)
    if (more := len(found.names) - _NAMES_SHOWN) > 0:
        click.echo(f"and {more} more; --json names all")
    click.echo(
        f"{verb} {_number(found.data, 'data object')} of no commit, "
        f"{_number(found.unfinished, 'write')} that did not come to an end, "
        f"{_number(found.records, 'record')} of shards that are done by now: {_size(found.bytes)}"
    )


def _print_lines(lines: Iterable[tuple[str, str]]) -> None:
    for name, text in lines:
        click.echo(f"{name:12} {text}")


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


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


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _size(number: float) -> str:
    """Bytes in the unit that suits.

    >>> _size(999), _size(1234567)
    ('999 B', '1.2 MB')
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number, _ = number / 1000, units.pop(0)
    return f"{number:.{0 if units[0] == 'B' else 1}f} {units[0]}"


@contextmanager
def _notes() -> Iterator[list[str]]:
    """What the package logs meanwhile, as a list."""
    notes: list[str] = []

    class _Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    logger, keeper = logging.getLogger("pipeline"), _Keeper()
    level = logger.level
    logger.addHandler(keeper)
    logger.setLevel(logging.INFO)
    try:
        yield notes
    finally:
        logger.removeHandler(keeper)
        logger.setLevel(level)


@contextmanager
def _progress(verb: str) -> Iterator[Callable[[int, int], None]]:
    """A function to report progress to, which keeps one line of a terminal up to date."""
    terminal = sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        if terminal:
            click.echo(f"\r{verb} {done} of {total} shards", nl=False, err=True)

    try:
        yield show
    finally:
        if terminal:
            click.echo("\r\x1b[K", nl=False, err=True)


if __name__ == "__main__":
    sys.exit(main())
