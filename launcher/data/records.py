"""Records of a JSON file: an array of objects, or one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record and the line of the file, from 1, on which it begins (for an array: its number, from 1)."""

    line: int
    value: Any


def read_records(path: Path) -> Iterator[Record]:
    """The records of ``path`` in order. Raises DataError for a file that is missing, empty or not JSON."""
    text = _read_text(path)
    if text.lstrip().startswith("["):
        yield from _array(path, text)
    else:
        yield from _lines(path, text)


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {error.start}") from error
    if not text.strip():
        raise DataError(f"{path} is empty")
    return text


def _array(path: Path, text: str) -> Iterator[Record]:
    for number, value in enumerate(_parse(path, text, first_line=1), start=1):
        yield Record(line=number, value=value)


def _lines(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield Record(line=number, value=_parse(path, line, first_line=number))


def _parse(path: Path, text: str, *, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{first_line + error.lineno - 1}: not JSON: {error.msg} at column {error.colno}"
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}:{first_line}: JSON nested too deeply") from error
