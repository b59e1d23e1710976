"""Compressed files as streams of what they hold: gzip, and zstandard by way of pyarrow."""

from __future__ import annotations

import gzip
import io
from typing import Any, BinaryIO

BLOCK_BYTES = 1 << 19
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
SUFFIXES = (".gz", ".zst")


def plain(stream: Any) -> BinaryIO:
    """Return the bytes of ``stream``, a buffered file, decompressed if its beginning says that it is compressed."""
    start = stream.peek(4)[:4]
    found: BinaryIO = stream
    if start.startswith(_GZIP):
        found = io.BufferedReader(gzip.GzipFile(fileobj=stream), BLOCK_BYTES)
    elif start == _ZSTD:
        import pyarrow

        found = _Zstandard(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd"))  # type: ignore[assignment]
    return found


class _Zstandard:
    """Reads of pyarrow's stream, whose errors become those of a file."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        data: bytes = self._stream.read(size)
        return data


def uncompressed_name(name: str) -> str:
    """Return ``name`` without the suffix of a compression."""
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name
