"""The writing of a rank's log: every line with its time, nothing cut, and long logs put aside.

A rank appends to ``worker_<rank_id>.log``. When that is long it becomes ``worker_<rank_id>.log.1``, the next one .2,
and so on; nothing is thrown away. MindSpore and MindFormers put a time on their lines; a line without one gets one
when Python code writes it. Output that bypasses Python (a child process, a crash inside C++) is left unchanged.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

# "2026-11-24 09:23:35,750 - mindformers..." and "[WARNING] ME(7:8,MainProcess):2026-11-24-09:23:35.750.113 [...]".
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[ T-](\d\d:\d\d:\d\d)[.,](\d{3})")
_STAMP_WITHIN = 120

_OWN_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} ")
STAMP_LENGTH = len("2026-11-24T09:23:35.750 ")


def find_stamp(line: str) -> re.Match[str] | None:
    """Return date, time and milliseconds near the beginning of a line, whichever program wrote them."""
    return _STAMP.search(line, 0, _STAMP_WITHIN)


def is_stamped(line: str) -> bool:
    """Return True if the line begins with a time that the launcher wrote."""
    return _OWN_STAMP.match(line) is not None


class StampedStream(io.TextIOWrapper):
    """A text stream whose lines begin with local time in milliseconds, unless they have a time of their own."""

    def __init__(self, handle: int) -> None:
        super().__init__(
            open(handle, "wb", buffering=0, closefd=False),  # noqa: SIM115 - lives as long as the process
            encoding="utf-8",
            errors="backslashreplace",
            newline="\n",
            write_through=True,
        )
        self._within_line = False

    def write(self, text: str) -> int:
        if text:
            super().write("".join(map(self._stamped, text.splitlines(keepends=True))))
        return len(text)

    def _stamped(self, piece: str) -> str:
        begins, self._within_line = not self._within_line, not piece.endswith("\n")
        if not begins or piece == "\n" or find_stamp(piece):
            return piece
        return f"{datetime.now().isoformat(timespec='milliseconds')} {piece}"


def stamp_lines() -> None:
    """Put a time on every line that Python code of this process prints from now on."""
    sys.stdout, sys.stderr = StampedStream(1), StampedStream(2)


ROTATE_BYTES = 64 << 20
_ROTATE_POLL_S = 1.0


def write_to(log: Path) -> None:
    """Append this process's stdout and stderr to ``log`` from now on; leave them unchanged if it cannot be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        # The descriptors, not sys.stdout: C++ code and child processes write to them too.
        for number in (1, 2):
            os.dup2(handle, number)
        os.close(handle)


def rotate(log: Path) -> bool:
    """Rename ``log``, to which this process writes, to the next number and begin a new one. No line is lost."""
    number = 1 + max((int(p.suffix[1:]) for p in log.parent.glob(f"{log.name}.*") if p.suffix[1:].isdigit()), default=0)
    try:
        # Until write_to replaces the descriptors, lines go to the renamed file: none is lost.
        log.rename(log.with_name(f"{log.name}.{number}"))
    except OSError:
        return False
    write_to(log)
    return True


def keep_small(log: Path) -> None:
    """Rotate ``log``, from now on, whenever it is longer than $LAUNCHER_LOG_MIB MiB (64)."""
    limit = int(os.environ.get("LAUNCHER_LOG_MIB", "0")) << 20 or ROTATE_BYTES

    def watch() -> None:
        while True:
            time.sleep(_ROTATE_POLL_S)
            with contextlib.suppress(OSError):
                if os.fstat(1).st_size > limit:
                    rotate(log)

    threading.Thread(target=watch, name="launcher-logs", daemon=True).start()
