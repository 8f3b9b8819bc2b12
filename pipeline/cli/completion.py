"""`patchlabel completion`: what makes a shell complete commands, options and values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from pipeline.cli.common import DONE


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> int:
    """Print a script for a shell, which then completes `patchlabel`.

    For example, in ~/.bashrc: eval "$(patchlabel completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind(context.find_root().command, {}, "patchlabel", "_PATCHLABEL_COMPLETE").source())
    return DONE
