"""Split large JSON files into chunks of whole records, for several processes to parse, in little memory.

Ends of records are found by numpy in one block of bytes at a time: unescaped quotes delimit strings, and
brackets outside of strings give the depth of each comma. The receiver of a chunk parses it.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from launcher.data.compression import BLOCK_BYTES, plain
from launcher.data.encodings import OTHER, UTF8, AsUtf8, Joined, Readable, encoding_of, fault_in, is_utf8
from launcher.errors import DataError

Kind = Literal["array", "lines", "text", "table", "parsed"]

_LARGEST_RECORD_BYTES = 256 << 20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Whole records of a file. ``first_record`` counts from 0, ``first_line`` from 1; ``file``: which input, from 0.

    ``data``: the bytes of the file, or those of a stream of Arrow (``kind`` "table"); "parsed" has ``records`` instead.
    """

    kind: Kind
    first_record: int
    first_line: int
    data: bytes
    file: int = 0
    records: tuple[Record | Reject, ...] = ()


class Origin(NamedTuple):
    """The place that a sample comes from: which of the input files, from 0, and the line or row in it, from 1."""

    file: int
    line: int


class Record(NamedTuple):
    """One record that is JSON: its number from 0, the line on which it begins from 1, its value."""

    number: int
    line: int
    value: Any


@dataclass(frozen=True, kw_only=True)
class Reject:
    """One record that cannot be used, and the reason. ``raw``: its bytes in the file; ``hint``: what to do, if known.

    ``line``: where it begins in a text, from 1; the row of a table.
    """

    number: int
    line: int
    reason: str
    raw: str
    hint: str = ""
    file: int = 0


class Source:
    """A JSON array, JSON Lines or a text, also compressed, read once from beginning to end.

    After reading, ``sha256`` is that of the file's bytes, and ``encoding`` its encoding: ``named``, or what was found.
    ``position`` and ``size`` are in bytes of the file; ``shown`` is its name in errors.
    """

    def __init__(self, path: Path, *, text: bool = False, named: str | None = None, shown: str = "") -> None:
        self.path = path
        self.is_text = text
        self.encoding = UTF8
        self.shown = shown or str(path)
        self._named = named
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
        """Yield chunks of the records in order. Raises DataError for a file that is empty, not JSON, or truncated."""
        with self._file.opened() as stream:
            unpacked = self._decoded(stream)
            yield from self._chunks(_UnixLines(unpacked) if self.is_text else unpacked)

    def _decoded(self, stream: Readable) -> Readable:
        start = _start(stream)
        if not start.strip():
            raise DataError(f"{self.shown} is empty")
        self.encoding = encoding_of(start, self._named, self.shown)
        if is_utf8(self.encoding):
            return Joined(start.removeprefix(_BOM), stream)
        return AsUtf8(Joined(start, stream), self.encoding)

    def _chunks(self, stream: Readable) -> Iterator[Chunk]:
        start = _start(stream).removeprefix(_BOM)
        if self.is_text:
            yield from _cut(self.shown, start, stream, "text", b"\n\n")
        elif start.lstrip().startswith(b"["):
            yield from _array(self.shown, start, stream)
        else:
            yield from _cut(self.shown, start, stream, "lines", b"\n")


class WatchedFile:
    """A file whose bytes are counted and hashed while they are read. ``position`` and ``size`` are in bytes."""

    def __init__(self, path: Path, shown: str) -> None:
        self._path = path
        self._shown = shown
        self._digest = hashlib.sha256()
        self.position = 0
        self.size = _size(path, shown)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @contextmanager
    def opened(self) -> Iterator[Readable]:
        """Open the file and decompress it; at the end read what is left, for the hash. Raises DataError."""
        try:
            with self._path.open("rb", buffering=0) as raw:
                stream = io.BufferedReader(_Watched(raw, self), BLOCK_BYTES)
                yield plain(stream)
                while stream.read(BLOCK_BYTES):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            # gzip's own error is an OSError without a number.
            packed = getattr(error, "errno", None) is None
            raise DataError(
                f"cannot read {self._shown}: {getattr(error, 'strerror', None) or error}",
                hint="was it downloaded whole?" if packed else "",
            ) from error

    def saw(self, block: memoryview) -> None:
        """Count and hash ``block``, which was read from the file."""
        self._digest.update(block)
        self.position += len(block)


class _UnixLines:
    """A text with line feeds alone as line ends, whatever the file has."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        while block.endswith(b"\r") and (more := self._stream.read(1)):
            block += more
        return block.replace(b"\r\n", b"\n")


class _Watched(io.RawIOBase):
    """A file whose bytes are counted and hashed while they are read."""

    def __init__(self, raw: Any, file: WatchedFile) -> None:
        self._raw = raw
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._raw.readinto(buffer)
        self._file.saw(memoryview(buffer)[:count])
        return count


def _size(path: Path, shown: str) -> int:
    try:
        if path.is_dir():
            raise DataError(f"{shown} is a folder", hint="name a file in it")
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {shown}: {error.strerror}") from error


def _start(stream: Readable) -> bytes:
    """Read up to the first block that holds more than white space."""
    start = b""
    while block := stream.read(BLOCK_BYTES):
        start += block
        if start.removeprefix(_BOM).strip():
            break
    return start


def _cut(path: str, data: bytes, stream: Readable, kind: Kind, separator: bytes) -> Iterator[Chunk]:
    """Yield chunks that end with ``separator``, or with the file."""
    line = 1
    record = 0
    while data:
        block = stream.read(max(BLOCK_BYTES, len(data)) if separator not in data else BLOCK_BYTES)
        end = data.rfind(separator) + len(separator) if separator in data else 0
        if not block:
            end = len(data)
        if end:
            yield Chunk(kind=kind, first_record=record, first_line=line, data=data[:end])
            lines = data.count(b"\n", 0, end)
            line += lines
            record += lines
        data = _carried(path, data[end:] + block, line)


def _array(path: str, data: bytes, stream: Readable) -> Iterator[Chunk]:
    """Yield chunks of array elements, without the commas between chunks."""
    opening = data.index(b"[") + 1
    line = 1 + data.count(b"\n", 0, opening)
    data = data[opening:]
    record = 0
    while True:
        commas, closing = split_array(data)
        end = closing if closing is not None else (commas[-1] if len(commas) else None)
        if end is not None:
            chunk = Chunk(kind="array", first_record=record, first_line=line, data=data[:end])
            if closing is None or record or chunk.data.strip():
                yield chunk
            record += len(commas)
            line += data.count(b"\n", 0, end)
            data = data[end + 1 :]
        if closing is not None:
            return _check_end(path, data + stream.read(BLOCK_BYTES), line)
        block = stream.read(max(BLOCK_BYTES, len(data)))
        if not block:
            begin = line + data[: len(data) - len(data.lstrip())].count(b"\n")
            raise DataError(f"{path}:{begin}: the array breaks off in a record that begins here")
        data = _carried(path, data + block, line)


def _check_end(path: str, rest: bytes, line: int) -> None:
    if rest.strip():
        raise DataError(f"{path}:{line}: something follows the end of the array: {_shown(rest.strip()[:40])}")


def _carried(path: str, data: bytes, line: int) -> bytes:
    if len(data) > _LARGEST_RECORD_BYTES:
        raise DataError(f"{path}:{line}: a record of more than 256 MiB begins here; is a quote missing?")
    return data


def split_array(data: bytes) -> tuple[npt.NDArray[np.int64], int | None]:
    """Return the positions of the array's commas and of its closing bracket in ``data``, which begins inside it."""
    # Backslashes come in pairs but for one that escapes what follows it; both replacements keep the length.
    plain = data.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in data else data
    codes = np.frombuffer(plain, dtype=np.uint8)
    outside = np.add.accumulate(codes == ord('"'), dtype=np.uint8) & 1 == 0
    places = np.flatnonzero(_STRUCTURAL[codes] & outside)
    found = codes[places]
    depth = np.cumsum(_DEPTH[found])
    ends = np.flatnonzero(depth < 0)
    closing = int(places[ends[0]]) if len(ends) else None
    commas = places[(depth == 0) & (found == ord(","))]
    return (commas if closing is None else commas[commas < closing]), closing


_DEPTH = np.zeros(256, dtype=np.int32)
_DEPTH[[ord("["), ord("{")]] = 1
_DEPTH[[ord("]"), ord("}")]] = -1
_STRUCTURAL = _DEPTH != 0
_STRUCTURAL[ord(",")] = True


def parse_fast(chunk: Chunk) -> list[Any] | None:
    """Return the values of a chunk of JSON, one per record; None when a record is not JSON or a line is blank."""
    try:
        if chunk.kind == "array":
            values: list[Any] = orjson.loads(b"[" + chunk.data + b"]")
            return values
        return [orjson.loads(line) for line in chunk.data.removesuffix(b"\n").split(b"\n")]
    except orjson.JSONDecodeError:
        return None


def record_lines(chunk: Chunk) -> Sequence[int]:
    """Return the line on which each record of a chunk begins that ``parse_fast`` can read."""
    if chunk.kind != "array":
        return range(chunk.first_line, chunk.first_line + chunk.data.removesuffix(b"\n").count(b"\n") + 1)
    codes = np.frombuffer(chunk.data, dtype=np.uint8)
    starts = np.concatenate([[0], split_array(chunk.data)[0] + 1])
    (visible,) = np.nonzero(codes > ord(" "))
    begins = visible[np.searchsorted(visible, starts).clip(max=len(visible) - 1)]
    (breaks,) = np.nonzero(codes == ord("\n"))
    lines: list[int] = (chunk.first_line + np.searchsorted(breaks, begins)).tolist()
    return lines


def parse(chunk: Chunk) -> Iterator[Record | Reject]:
    """Return the records of a chunk of JSON; those that are not JSON as Reject."""
    if chunk.kind == "array":
        return _parse_array(chunk)
    return _parse_lines(chunk)


def _parse_lines(chunk: Chunk) -> Iterator[Record | Reject]:
    for place, line in enumerate(chunk.data.split(b"\n")):
        if line.strip():
            yield _parse_one(line, chunk.first_record + place, chunk.first_line + place)


def _parse_array(chunk: Chunk) -> Iterator[Record | Reject]:
    line = chunk.first_line
    begin = 0
    ends = (*split_array(chunk.data)[0].tolist(), len(chunk.data))
    for number, end in enumerate(ends, start=chunk.first_record):
        element = chunk.data[begin:end]
        stripped = element.lstrip()
        white_lines = element.count(b"\n", 0, len(element) - len(stripped))
        yield _parse_one(stripped, number, line + white_lines)
        line += white_lines + stripped.count(b"\n")
        begin = end + 1


def _parse_one(data: bytes, number: int, line: int) -> Record | Reject:
    try:
        return Record(number, line, orjson.loads(data))
    except orjson.JSONDecodeError as error:
        fault = fault_in(data)
        reason = f"not JSON: {fault or error.msg}" if data.strip() else "not JSON: nothing between two commas"
        raw = data.decode("utf-8", "backslashreplace").strip()
        return Reject(number=number, line=line, reason=reason, raw=raw, hint=OTHER if fault else "")


def paragraphs(chunk: Chunk) -> Iterator[Record | Reject]:
    """Yield the paragraphs of a chunk of text, which blank lines separate."""
    line = chunk.first_line
    for data in chunk.data.split(b"\n\n"):
        if data.strip():
            try:
                yield Record(number=line, line=line, value={"text": data.decode("utf-8").strip("\n")})
            except UnicodeDecodeError:
                raw = data.decode("utf-8", "backslashreplace")
                yield Reject(number=line, line=line, reason=fault_in(data) or "", raw=raw)
        line += data.count(b"\n") + 2


def _shown(data: bytes) -> str:
    return repr(data.decode("utf-8", "backslashreplace"))
