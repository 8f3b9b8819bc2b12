"""What the commands share: `--config FILE --set key=value`, log lines, and exit codes and sentences, not tracebacks."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence

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


def set_up_logging(*, force: bool = False) -> None:
    """Plain log lines of our own on standard error, and no warnings of libraries (unless python's -W asks for them).

    `force` takes the place of whatever logging has been set up.
    """
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=force
    )
    for ours_only in ("jobs", "pipeline", "patchdct"):  # the libraries' own INFO lines are of no use to a user
        logging.getLogger(ours_only).setLevel(logging.INFO)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # which warns of torchvision's use of it
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def guarded(work: Callable[[], int], refused: tuple[type[Exception], ...] = ()) -> int:
    """Run `work`, with logging as by `set_up_logging`.

    An error of ours becomes one sentence and an exit status.

    `refused` are further exceptions that speak of the user's input.
    """
    set_up_logging()
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
