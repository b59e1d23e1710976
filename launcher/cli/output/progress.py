"""A progress bar for work whose size is known."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

import click


def progress(stack: ExitStack, label: str) -> Any:
    """A progress bar on stderr that ``stack`` closes; None when nobody watches."""
    if not sys.stderr.isatty():
        return None
    bar: Any = None

    def show(count: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            made: Any = click.progressbar(length=total, label=f"  {label}", file=sys.stderr)
            bar = stack.enter_context(made)
        bar.update(count - bar.pos)  # click adds what it is given

    return show


def say_loading(name: str) -> None:
    """Say on a terminal that the model ``name`` is being loaded, which takes seconds."""
    if sys.stderr.isatty():
        click.echo(f"loading {name} ...", err=True)
