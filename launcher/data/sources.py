"""All files of a run as one stream of chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from launcher.data.encodings import UTF8
from launcher.data.files import InputFile
from launcher.data.records import Chunk, Source


class Chunked(Protocol):
    """What gives chunks: one file, or all of them."""

    @property
    def position(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    def chunks(self) -> Iterator[Chunk]: ...


def open_file(file: InputFile) -> Chunked:
    """Return the reader of ``file``. Raises DataError when it is not there."""
    reading = file.reading
    if file.format in ("csv", "tsv"):
        from launcher.data.delimited import DelimitedSource

        return DelimitedSource(file.path, reading, tabs=file.format == "tsv", shown=file.shown)
    if file.format in ("parquet", "arrow"):
        from launcher.data.tables import TableSource

        return TableSource(file.path, reading, shown=file.shown)
    return Source(file.path, text=file.format == "text", named=reading.encoding, shown=file.shown)


class Sources:
    """The files of a run, read in order. ``position`` and ``size`` are in bytes.

    ``notes``: what was found out about files, such as an encoding, as far as they are read.
    """

    def __init__(self, files: Sequence[InputFile]) -> None:
        self._files = files
        self._readers = [open_file(file) for file in files]
        self._notes: dict[int, str] = {}

    @property
    def position(self) -> int:
        return sum(reader.position for reader in self._readers)

    @property
    def size(self) -> int:
        return sum(reader.size for reader in self._readers)

    @property
    def sha256(self) -> str:
        return joined_sha256([reader.sha256 for reader in self._readers])

    @property
    def notes(self) -> list[str]:
        return [note for _, note in sorted(self._notes.items())]

    @property
    def left_out(self) -> set[str]:
        """Return the columns of tables that are not read because they are to be ignored."""
        return {name for reader in self._readers for name in getattr(reader, "left_out", ())}

    def chunks(self, source: int | None = None) -> Iterator[Chunk]:
        """Yield the chunks of all files in order, or of those of one source. Raises DataError."""
        for number, file in enumerate(self._files):
            if source in (None, file.source):
                yield from self._of(number)

    def _of(self, number: int) -> Iterator[Chunk]:
        file, reader = self._files[number], self._readers[number]
        for chunk in reader.chunks():
            yield replace(chunk, file=number)
        note = _note(file, reader)
        if note:
            self._notes[number] = f"{file.shown}: {note}"


def joined_sha256(parts: Sequence[str]) -> str:
    """Return one hash of several files: that of the file itself when it is one."""
    return parts[0] if len(parts) == 1 else hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _note(file: InputFile, reader: Chunked) -> str:
    encoding, delimiter = getattr(reader, "encoding", UTF8), getattr(reader, "delimiter", "")
    parts = [f"read as {encoding}"] if encoding != UTF8 and not file.reading.encoding else []
    if delimiter and delimiter != {"csv": ",", "tsv": "\t"}.get(file.format):
        from launcher.data.delimited import delimiter_name

        parts.append(f"fields end with a {delimiter_name(delimiter)}")
    if left := getattr(reader, "left_out", ()):
        parts.append(f"{', '.join(left)} {'is' if len(left) == 1 else 'are'} left out")
    return ", ".join(parts)


def plain_file(path: Path) -> InputFile:
    """Return ``path`` as the only input, of a kind that its name tells. Raises DataError."""
    from launcher.data.files import find_files
    from launcher.data.reading import DataSource

    return find_files([DataSource(path=str(path))]).files[0]
