"""What a user says about a source of raw records: where it is, how its files are read, and its share of a mixture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from launcher.common.nearest import name_hint
from launcher.errors import DataError

FileFormat = Literal["json", "csv", "tsv", "parquet", "arrow", "text"]

# What --columns can name: the parts of a conversation, or a text.
PARTS = ("question", "answer", "system", "history", "input", "messages", "tools", "text", "id")
EVERYTHING = "*"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the records of a source are read.

    ``columns``: which field of a record holds which part of a conversation; without them, its keys tell.
    ``ignore``: fields that are left out although they hold text, "*" for all. ``encoding``, ``format``: found out when
    None. ``header``: the names of the columns of a csv or tsv whose first row does not name them. ``quotes``: whether
    quotes in one enclose a field. ``no_tools``: why calls of tools cannot be kept, "" if they can.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    encoding: str | None = None
    format: FileFormat | None = None
    header: tuple[str, ...] = ()
    quotes: bool = True
    no_tools: str = ""

    def ignores(self, name: str) -> bool:
        return name in self.ignore or EVERYTHING in self.ignore

    @property
    def key(self) -> str:
        """Return everything that decides what is read, "" where nothing is said."""
        said = (sorted(self.columns.items()), self.ignore, self.encoding, self.format, self.header, self.quotes)
        return "" if self == Reading(no_tools=self.no_tools) else repr(said)


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One source: ``path`` is a file, a folder, or a pattern of names. ``weight``: its part of a mixture, if any.

    ``shown``: its name in what is said, when it is not the path.
    """

    path: str
    weight: float | None = None
    reading: Reading = field(default_factory=Reading)
    shown: str = ""


Given = Path | Sequence[DataSource]


def sources_of(given: Given) -> Sequence[DataSource]:
    """Return a path as the only source, or sources as they are."""
    return (DataSource(path=str(given)),) if isinstance(given, Path) else given


def checked_columns(pairs: Mapping[str, str]) -> dict[str, str]:
    """Return ``pairs`` of part and column. Raises DataError for an unknown part, and for parts that make nothing."""
    for part in pairs:
        if part not in PARTS:
            hint = name_hint(part, PARTS, f"parts are {', '.join(PARTS)}")
            raise DataError(f"--columns: there is no part {part!r}", hint=hint)
    if pairs and not ("text" in pairs or "messages" in pairs or {"question", "answer"} <= pairs.keys()):
        raise DataError(
            f"--columns names {', '.join(pairs)}: of that nothing can be learned",
            hint="name question and answer, or messages, or text",
        )
    return dict(pairs)


def parsed_columns(text: str) -> dict[str, str]:
    """Return the columns in ``text``: question=COLUMN,answer=COLUMN. Raises DataError."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    wrong = next((part for part, equals, column in pairs if not equals or not column.strip()), None)
    if wrong is not None:
        raise DataError(f"--columns {text}: {wrong!r} names no column", hint="--columns question=COLUMN,answer=COLUMN")
    return checked_columns({part.strip(): column.strip() for part, _, column in pairs})


def listed(text: Iterable[str]) -> tuple[str, ...]:
    """Return the names in ``text``, separated by commas or given one by one."""
    return tuple(name.strip() for part in text for name in part.split(",") if name.strip())
