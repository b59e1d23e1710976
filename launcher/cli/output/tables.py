"""Tables on a terminal; full width, nothing cut, when the output goes into a file or a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click


def print_json(value: Any) -> None:
    """Print ``value`` as JSON, for programs."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print ``rows`` under ``header``, columns as wide as they need to be. "" stands as "-"."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell or "-") for cell in row))
    width = None if sys.stdout.isatty() else 10_000
    Console(file=sys.stdout, highlight=False, width=width, emoji=False).print(table)
