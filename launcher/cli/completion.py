"""``launcher completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete commands, options, job ids, run specs, presets and steps.

    \b
    eval "$(launcher completion bash)"      in ~/.bashrc (bash 4.4 or newer)
    eval "$(launcher completion zsh)"       in ~/.zshrc
    launcher completion fish | source       in ~/.config/fish/config.fish
    """
    made = get_completion_class(shell)
    assert made is not None  # noqa: S101 - click has a class for each of SHELLS
    click.echo(made(context.find_root().command, {}, "launcher", "_LAUNCHER_COMPLETE").source())
