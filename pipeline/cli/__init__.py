"""The command `patchlabel`: what can be said about a run before, during and after it. `python -m jobs.label` makes it.

Exit status: 0 all is well; 1 something is wrong with the run, the storage or the installation; 2 the input was refused.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from difflib import get_close_matches

import click

from pipeline import __version__, logs
from pipeline.cli.common import DONE, FAULTY, INTERRUPTED, REFUSED
from pipeline.errors import LabelingError, UserError

#: The commands by what they are for: each is `NAME_command` in the module of its name, imported when it is used.
SECTIONS = {
    "Before and during a run": ("plan", "status", "report", "quarantine", "doctor"),
    "Trust": ("calibrate", "review", "apply", "audit", "verify", "canary"),
    "Hand-over": ("export", "gallery"),
    "Upkeep": ("gc", "completion"),
}


class _Commands(click.Group):
    """The commands, which are slow to import together."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in SECTIONS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"pipeline.cli.{cmd_name}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is asked for; of one that does not exist, the likeliest is named."""
        if args and self.get_command(ctx, args[0]) is None:
            near = get_close_matches(args[0], self.list_commands(ctx), 1)
            raise click.UsageError(f"no such command: {args[0]}" + (f"; did you mean {near[0]}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, by sections."""
        for title, names in SECTIONS.items():
            found = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name, one.get_short_help_str(90)) for name, one in found if one is not None])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def commands() -> None:
    """Plan, follow, check and export labeling runs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and turn errors of ours into one sentence and an exit status."""
    logs.set_up(logging.NOTSET)  # so that only warnings show
    try:
        code = commands.main(args=None if argv is None else list(argv), prog_name="patchlabel", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return REFUSED
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = "patchlabel" if context is None else context.command_path
        message = " ".join(error.format_message().split()).rstrip(".")
        return _fail(f"{message}; see {path} --help.", REFUSED)
    except UserError as error:
        return _fail(str(error), REFUSED)
    except LabelingError as error:
        return _fail(str(error), FAULTY)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except SystemError as error:  # Ctrl-C may hit compiled code, which then complains of it
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader has seen enough; what is still to be flushed goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAULTY
    except OSError as error:  # what a store meets is a LabelingError; this is the disk for temporary files
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _fail(f"{tempfile.gettempdir()} is full; set TMPDIR to a folder with more room", FAULTY)
    return int(code or DONE)


def _fail(sentence: str, code: int) -> int:
    click.echo(f"error: {sentence.removesuffix('.')}", err=True)
    return code
