"""A status file: one small JSON document that is rewritten in place, with a checksum against half-read writes."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MOST_BYTES = 1 << 20


class StatusFile:
    """The writing side of a status file. It is opened for each write, because NFS sends the data on close."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, document: Mapping[str, Any]) -> None:
        """Rewrite the file. Raises OSError when the folder cannot be written."""
        body = json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode()
        # A longer document of before, which may be another process's, goes on behind the end of the line.
        text = b"%08x %s\n" % (zlib.crc32(body), body)
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # One write of the whole document, without truncation: a reader never finds the file empty.
            os.pwrite(handle, text, 0)
        finally:
            os.close(handle)


def read_status(path: Path) -> dict[str, Any] | None:
    """Return the document in a status file; None when there is none yet, or it is being written at this moment."""
    with contextlib.suppress(OSError, ValueError):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            raw = os.read(handle, _MOST_BYTES)
        finally:
            os.close(handle)
        checksum, _, body = raw.partition(b"\n")[0].rstrip().partition(b" ")
        if int(checksum, 16) == zlib.crc32(body):
            document = json.loads(body)
            return document if isinstance(document, dict) else None
    return None
