"""Tables and JSON on stdout: the same on a terminal and in a pipe."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import click


def print_json(value: Any) -> None:
    """Print ``value`` as JSON, for programs."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # names of files may be any bytes, and terminals may be of any encoding
        text = json.dumps(value, indent=2)
    click.echo(text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Return ``rows`` under ``header``, two blanks between columns; those in ``right`` are of numbers. "" is "-"."""
    lines = [tuple(header), *(tuple(cell or "-" for cell in row) for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_line(cells, widths, right) for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int], right: Collection[int]) -> str:
    gaps = [" " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)]
    padded = (gaps[at] + cell if at in right else cell + gaps[at] for at, cell in enumerate(cells))
    return "  ".join(padded).rstrip()


def _width(text: str) -> int:
    """Return the columns of a terminal that ``text`` takes: two for a Chinese character."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)
