"""Options that say what records are in files, and the files that a command was given."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

from launcher.cli.options.group import option
from launcher.errors import DataError

if TYPE_CHECKING:
    from launcher.data.reading import DataSource, FileFormat

STDIN = "-"


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How records are read."""

    columns: str = option(
        "--columns",
        metavar="PART=FIELD,...",
        default="",
        help="Which field holds the question, answer, system, history, input, messages, tools, text or id.",
    )
    ignore: tuple[str, ...] = option(
        "--ignore", multiple=True, metavar="FIELD,...", help="Fields to leave out although they hold text; '*': all."
    )
    encoding: str | None = option("--encoding", metavar="NAME", help="Encoding of text files. Default: found out.")
    input_format: FileFormat | None = option(
        "--input-format",
        type=click.Choice(["json", "csv", "tsv", "parquet", "arrow", "text"]),
        help="What the files are. Default: by name and content.",
    )
    csv_header: str = option(
        "--csv-header", metavar="NAME,...", default="", help="Names of the columns, where the first row has none."
    )
    csv_quotes: Literal["double", "none"] = option(
        "--csv-quotes",
        type=click.Choice(["double", "none"]),
        default="double",
        show_default=True,
        help='What encloses a field with commas or line breaks; none: " is text.',
    )

    def sources(self, paths: Sequence[str], weights: Sequence[float] = ()) -> tuple[DataSource, ...]:
        """Return ``paths`` as sources. Raises DataError for options that mean nothing."""
        from launcher.data.encodings import checked_encoding
        from launcher.data.reading import DataSource, Reading, listed, parsed_columns

        if weights and len(weights) != len(paths):
            raise DataError(f"--weights has {len(weights)} numbers for {len(paths)} sources", hint="give one for each")
        reading = Reading(
            columns=parsed_columns(self.columns),
            ignore=listed(self.ignore),
            encoding=checked_encoding(self.encoding) if self.encoding else None,
            format=self.input_format,
            header=listed([self.csv_header]),
            quotes=self.csv_quotes == "double",
        )
        weighted: Sequence[float | None] = weights or [None] * len(paths)
        return tuple(DataSource(path=p, weight=w, reading=reading) for p, w in zip(paths, weighted, strict=True))


@contextmanager
def on_disk(sources: Sequence[DataSource]) -> Iterator[tuple[DataSource, ...]]:
    """Yield ``sources`` with a file in place of standard input, which can be read only once."""
    import dataclasses

    if not any(source.path == STDIN for source in sources):
        yield tuple(sources)
        return
    if sys.stdin.isatty():
        raise DataError("- is standard input, and nothing is piped into it", hint="cat FILE | launcher data ... -")
    with tempfile.NamedTemporaryFile(prefix="launcher-stdin-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        put = {"path": file.name, "shown": "standard input"}
        yield tuple(dataclasses.replace(s, **put) if s.path == STDIN else s for s in sources)  # type: ignore[arg-type]
