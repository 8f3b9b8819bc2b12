"""What the commands share: `--config FILE --set key=value`, log lines, and exit codes and sentences, not tracebacks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence

from pipeline import logs
from pipeline.errors import LabelingError, UserError

DONE, UNFINISHED, REFUSED = 0, 1, 2


def parse(name: str, description: str, argv: Sequence[str] | None, *extra: tuple[str, str]) -> argparse.Namespace:
    """Parse the options of `python -m NAME`. `extra` adds (option, help) pairs that take a value."""
    parser = parser_of(name, description)
    for option, text in extra:
        parser.add_argument(option, help=text, metavar="FILE")
    return parser.parse_args(argv)


def parser_of(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of `python -m NAME`, with the options that all commands have."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file; see configs/")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="override a key of the config, as often as needed",
    )
    return parser


def guarded(work: Callable[[], int], refused: tuple[type[Exception], ...] = ()) -> int:
    """Run `work`, with logging as by `logs.set_up`.

    An error of ours becomes one sentence and an exit status.

    `refused` are further exceptions that speak of the user's input.
    """
    logs.set_up()
    ours: tuple[type[Exception], ...] = (LabelingError, *refused)
    try:
        return work()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return UNFINISHED
    except ours as error:
        print(f"error: {str(error).removesuffix('.')}", file=sys.stderr)
        return UNFINISHED if isinstance(error, LabelingError) and not isinstance(error, UserError) else REFUSED


def some(values: Iterable[object], most: int = 5) -> str:
    """The first of them, for a sentence: "a, b, ..."."""
    shown = [str(value) for value in values]
    return ", ".join([*shown[:most], *(["..."] if len(shown) > most else [])])
