"""The encoding of a text file, found from its beginning, and its bytes as UTF-8.

UTF-8, UTF-16 and UTF-32 are told by a byte order mark or by their zeros. Bytes that are not UTF-8 are taken for GB18030
(which holds GBK and GB2312) only when nearly all that they say lies in GB2312, as Chinese in use does: Latin-1 and
Big5 decode as GB18030 too, but to rare characters.
"""

from __future__ import annotations

import codecs
import re
from typing import Protocol

from launcher.errors import DataError

UTF8 = "UTF-8"
_MARKS = (
    (codecs.BOM_UTF8, UTF8),
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_GB18030 = "GB18030"
_COMMON_SHARE = 0.9
OTHER = "if the whole file is in another encoding, name it: --encoding latin-1, big5, ..."
# Stands for bytes that mean nothing; as UTF-8 it is invalid, so the record that holds it is rejected.
_BAD = "\udcff"
_BAD_BYTES = _BAD.encode("utf-8", "surrogatepass")


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes: ...


def find_encoding(start: bytes) -> str | None:
    """Return the encoding of a text that begins with ``start``; None when it is none of those that are known."""
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    if b"\0" in start[:2]:
        return "UTF-16-BE" if start[:1] == b"\0" else "UTF-16-LE"
    every = start[: start.rfind(b"\n") + 1 or len(start)].split(b"\n")
    lines = [line for line in every if not line.isascii()]
    # What has no end of a line may end in the middle of a character.
    whole = len(every) > 1
    good = sum(_decodes(line, "utf-8", whole=whole) for line in lines)
    if 2 * good >= len(lines):
        return UTF8
    decodable = [line for line in lines if _decodes(line, "gb18030", whole=whole)]
    if 2 * len(decodable) > len(lines) and is_gb18030(b"\n".join(decodable)):
        return _GB18030
    # A few lines that are broken are rejected one by one.
    return UTF8 if good or 2 * len(lines) < len(every) else None


def _decodes(data: bytes, encoding: str, *, whole: bool) -> bool:
    """Return whether ``data`` is a text in ``encoding``; unless ``whole``, its last character may be incomplete."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(data, whole)
    except UnicodeDecodeError:
        return False
    return True


def is_gb18030(data: bytes) -> bool:
    """Return whether ``data`` is Chinese in GB18030, GBK or GB2312."""
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(data)
    except UnicodeDecodeError:
        return False
    beyond = re.sub(r"[\x00-\x7f]", "", text)
    common = len(beyond.encode("gb2312", "ignore")) // 2
    return bool(beyond) and common >= _COMMON_SHARE * len(beyond)


def checked_encoding(name: str) -> str:
    """Return ``name`` if it is an encoding. Raises DataError."""
    try:
        return codecs.lookup(name).name
    except LookupError:
        raise DataError(
            f"--encoding {name}: no such encoding", hint="such as utf-8, utf-16, gb18030, big5, latin-1"
        ) from None


def encoding_of(start: bytes, named: str | None, path: str) -> str:
    """Return the encoding of a file that begins with ``start``: as ``named``, else found. Raises DataError."""
    if named:
        return checked_encoding(named)
    found = find_encoding(start)
    if found is None:
        raise DataError(
            f"{path} is neither UTF-8 nor UTF-16 nor GB18030", hint="name its encoding: --encoding latin-1, big5, ..."
        )
    return found


def is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


class Joined:
    """A stream whose beginning has been read already."""

    def __init__(self, start: bytes, stream: Readable) -> None:
        self._start = start
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        if self._start:
            start, self._start = self._start[:size], self._start[size:]
            return start
        return self._stream.read(size)


class AsUtf8:
    """A stream of text in another encoding as UTF-8. What means nothing in that encoding is invalid in the result."""

    def __init__(self, stream: Readable, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("launcher_mark")

    def read(self, size: int, /) -> bytes:
        while True:
            block = self._stream.read(size)
            text = self._decoder.decode(block, not block)
            if text or not block:
                return text.encode("utf-8", "surrogatepass")


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _BAD, error.end


codecs.register_error("launcher_mark", _mark)
MARKING = "launcher_mark"


def fault_in(data: bytes, encoding: str = "the encoding of the file") -> str | None:
    """Return where and why ``data``, a text of a file in ``encoding``, is not valid UTF-8; None if it is."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        if data.startswith(_BAD_BYTES, error.start):
            return f"a byte at column {_column(data, error.start)} means nothing in {encoding}"
        meant = "; it would be GB18030: --encoding gb18030" if is_gb18030(data) else ""
        return f"byte {data[error.start]:#x} at column {_column(data, error.start)} is not UTF-8{meant}"
    return None


def _column(data: bytes, place: int) -> int:
    return len(data[:place].decode("utf-8", "replace")) + 1
