"""Read csv and tsv files, row by row: their quotes may enclose line breaks, so that no byte tells where a row ends."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from launcher.data.compression import BLOCK_BYTES
from launcher.data.encodings import MARKING, OTHER, UTF8, Joined, Readable, encoding_of, fault_in, is_utf8
from launcher.data.reading import Reading
from launcher.data.records import Chunk, Record, Reject, WatchedFile
from launcher.errors import DataError

_DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_LARGEST_FIELD_BYTES = 64 << 20
_ROWS_AT_ONCE = 1024


class DelimitedSource:
    """A csv or tsv, read once from beginning to end, with the attributes of ``Source``. ``delimiter``: as found."""

    def __init__(self, path: Path, reading: Reading, *, tabs: bool = False, shown: str = "") -> None:
        self.shown = shown or str(path)
        self.encoding = UTF8
        self.delimiter = "\t" if tabs else ""
        self._reading = reading
        self._file = WatchedFile(path, self.shown)

    @property
    def sha256(self) -> str:
        return self._file.sha256

    @property
    def position(self) -> int:
        return self._file.position

    @property
    def size(self) -> int:
        return self._file.size

    def chunks(self) -> Iterator[Chunk]:
        """Yield chunks of rows in order. Raises DataError for a file that is empty or whose header is no header."""
        # Its default of 128 kB is less than an answer may have.
        csv.field_size_limit(_LARGEST_FIELD_BYTES)
        with self._file.opened() as stream:
            rows = self._rows(self._text(stream))
            row = 0
            while found := tuple(islice(rows, _ROWS_AT_ONCE)):
                yield Chunk(kind="parsed", first_record=row, first_line=found[0].line, data=b"", records=found)
                row += len(found)

    def _text(self, stream: Readable) -> io.TextIOWrapper:
        start = stream.read(BLOCK_BYTES)
        if not start.strip():
            raise DataError(f"{self.shown} is empty")
        self.encoding = encoding_of(start, self._reading.encoding, self.shown)
        codec = "utf-8-sig" if is_utf8(self.encoding) else self.encoding
        raw = io.BufferedReader(_Raw(Joined(start, stream)), BLOCK_BYTES)
        return io.TextIOWrapper(raw, codec, errors=MARKING, newline="")

    def _rows(self, text: io.TextIOWrapper) -> Iterator[Record | Reject]:
        lines = _Lines(text)
        self.delimiter = self.delimiter or _delimiter(lines.first())
        reader = (
            csv.reader(lines, delimiter=self.delimiter, strict=True)
            if self._reading.quotes
            else csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE)
        )
        names = self._reading.header or self._header(reader)
        number, line = 0, reader.line_num + 1
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield self._broken(error, number, line, lines)
                fields = []
            else:
                if fields:
                    yield _row(names, fields, number, line, self.encoding)
            number += 1
            line = reader.line_num + 1

    def _header(self, reader: Iterator[list[str]]) -> tuple[str, ...]:
        try:
            fields = next(reader)
        except (csv.Error, StopIteration) as error:
            raise DataError(
                f"{self.shown}:1: no header: {error}", hint="--csv-quotes none reads quotes as text"
            ) from error
        names = tuple([name.strip() or f"column {place}" for place, name in enumerate(fields, 1)])
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(
                f"{self.shown}:1: the header names {twice[0]!r} twice: {', '.join(names)[:200]}",
                hint="rename one; --csv-header question,answer names the columns of a file that has no header",
            )
        return names

    def _broken(self, error: csv.Error, number: int, line: int, lines: _Lines) -> Reject:
        reason = {"unexpected end of data": "a quote that opens in this row is never closed"}.get(
            str(error), str(error)
        )
        if "field limit" in reason:
            raise DataError(
                f"{self.shown}:{line}: a field of more than 64 MiB begins here; is a quote missing?",
                hint="--csv-quotes none reads quotes as text",
            )
        hint = "double the quotes inside a field; --csv-quotes none reads all quotes as text"
        return Reject(number=number, line=line, reason=reason, raw=lines.last[:1000].rstrip("\r\n"), hint=hint)


class _Lines:
    """The lines of a text; ``last`` is the one that was read last."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._ahead: list[str] = []
        self.last = ""

    def first(self) -> str:
        """Return the first line without taking it."""
        self._ahead = [next(self._text, "")]
        return self._ahead[0]

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.last = self._ahead.pop() if self._ahead else next(self._text)
        return self.last


class _Raw(io.RawIOBase):
    """A stream of bytes for io's own buffers."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        block = self._stream.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def _delimiter(header: str) -> str:
    """Return the delimiter that a header has most often outside of quotes; a comma when it has none."""
    outside = "".join(header.split('"')[::2])
    counts = {mark: outside.count(mark) for mark in _DELIMITERS}
    return max(counts, key=lambda mark: counts[mark])


def delimiter_name(delimiter: str) -> str:
    return _DELIMITERS.get(delimiter, repr(delimiter))


def _row(names: Sequence[str], fields: list[str], number: int, line: int, encoding: str) -> Record | Reject:
    if len(fields) != len(names):
        reason = f"{len(fields)} fields, and the header has {len(names)} ({', '.join(names)[:200]})"
        return Reject(number=number, line=line, reason=reason, raw=repr(fields))
    for name, text in zip(names, fields, strict=True):
        if not text.isascii() and (fault := _fault(text, encoding)):
            raw = repr(fields).encode("utf-8", "backslashreplace").decode()
            return Reject(number=number, line=line, reason=f"{name}: {fault}", raw=raw, hint=OTHER)
    return Record(number, line, dict(zip(names, fields, strict=True)))


def _fault(text: str, encoding: str) -> str | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return fault_in(text.encode("utf-8", "surrogatepass"), encoding)
    return None
