"""What the commands share: options, exit codes, and how figures are printed."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from pipeline import calibration, taxonomy
from pipeline.store import Store
from pipeline.view import View

DONE, FAULTY, REFUSED, INTERRUPTED = 0, 1, 2, 130

#: How many faults, names, ... are printed before the rest is only counted.
SHOWN = 20


class _Place(click.types.StringParamType):
    """A path or a URI. One that is empty, as from a variable that is not set, would be the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See click."""
        found: str = super().convert(value, param, ctx)
        if not found.strip():
            self.fail("it is empty", param, ctx)
        return found


class Number(click.FloatRange):
    """A number in a range; NaN, which is in none, and infinity are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See click."""
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{found} is not a finite number", param, ctx)
        return found


PLACE = _Place()

run_argument = click.argument("run_uri", type=PLACE)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
config_option = click.option(
    "--config", "path", required=True, metavar="FILE", help="The YAML of the run; see configs/label/."
)
set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key, as often as needed."
)


def view_options_from(min_score: float) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """The options that say how labels are looked at, which a command gets as `view`; --min-score is so by default."""

    def add(command: Callable[..., int]) -> Callable[..., int]:
        @click.option(
            "--min-score",
            default=min_score,
            show_default=True,
            type=Number(0, 1),
            metavar="X",
            help="Leave out masks that score less.",
        )
        @click.option(
            "--thresholds",
            type=PLACE,
            metavar="FILE",
            help="Leave out masks that are not good enough for this file of `patchlabel calibrate`.",
        )
        @click.option(
            "--taxonomy",
            "classes",
            type=PLACE,
            metavar="FILE",
            help="Rename, merge or drop classes: YAML such as `truck: vehicle`, or `truck: null`.",
        )
        @functools.wraps(command)
        def with_view(*, min_score: float, thresholds: str | None, classes: str | None, **others: Any) -> int:
            store = Store()
            fitted = None if thresholds is None else calibration.read(thresholds, store)
            mapping = None if classes is None else taxonomy.read(classes, store)
            return command(view=View(min_score=min_score, calibration=fitted, taxonomy=mapping), **others)

        return with_view

    return add


view_options = view_options_from(0.0)


def printable(text: str) -> str:
    r"""A text of one line without what a terminal would take for a command, such as in the name of a class.

    >>> printable("a\nb\x1b[2J")
    'a\\nb\\x1b[2J'
    """
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def table_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in columns, figures to the right, what is None as a dash.

    >>> print(table_text(["class", "masks"], [("car", 7), ("bicycle", None)]))
    class    masks
    car          7
    bicycle      -
    """
    lines = [list(columns), *(["-" if cell is None else printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *rest]).rstrip() for line, (_, *rest) in zip(lines, padded, strict=True)
    )


def print_lines(lines: Iterable[tuple[str, str]]) -> None:
    """Names and texts in two columns."""
    for name, text in lines:
        click.echo(f"{name:12} {printable(text)}")


def print_json(value: object) -> None:
    """Something for programs."""
    click.echo(json.dumps(value, indent=2))


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "shard"), counted(2, "shard")
    ('1 shard', '2 shards')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def size(number: float) -> str:
    """Bytes in the unit that suits.

    >>> size(999), size(1234567)
    ('999 B', '1.2 MB')
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number, _ = number / 1000, units.pop(0)
    return f"{number:.{0 if units[0] == 'B' else 1}f} {units[0]}"


@contextmanager
def progress(verb: str) -> Iterator[Callable[[int, int], None]]:
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
