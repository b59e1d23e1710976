"""What ranks report: one JSON object a line in ``events/rank_<rank_id>.jsonl``, appended and never rewritten.

Every event has ``time`` (seconds since the epoch), ``rank_id`` and ``event``:

begin   pid, started, ticks, boot              the process runs; nothing is imported yet (see ProcessId)
ready   mindspore, mindformers, from_step      the context is built, ranks have found each other; ``from_step`` steps
                                               of the run were done by attempts before this one
step    step, loss, lr, overflow, grad_norm, step_s, memory_mib   after optimizer step number ``step`` (from 1)
eval    step, loss, seconds                     the held-out loss after that step; without loss: it has begun
save    step, seconds                           a checkpoint was written; without seconds: it is being written
error   type, message, traceback               a Python exception ended the rank
done                                           everything is saved; the process may now end as it likes
exit    code                                   the process has ended; -N: by signal N. Written by its parent

``events/scheduler.jsonl`` has begin, error and exit of MindSpore's scheduler, with rank_id null.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

_BLOCK = 1 << 20


class EventWriter:
    """Appends events to one file. Each line is written with one call, so a reader sees whole lines.

    A full disk or a folder that is gone loses events and never ends a rank. The folder is its supervisor's to make:
    what comes late must not bring back a job that was removed.
    """

    def __init__(self, path: Path, rank_id: int | None) -> None:
        self._rank_id = rank_id
        self._file: Any = None
        with contextlib.suppress(OSError):
            self._file = path.open("ab", buffering=0)

    def write(self, event: str, **fields: Any) -> None:
        record = {"time": round(time.time(), 3), "rank_id": self._rank_id, "event": event, **fields}
        with contextlib.suppress(OSError, AttributeError):
            self._file.write(json.dumps(_plain(record), ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def close(self) -> None:
        if self._file:
            self._file.close()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity as words: JSON has no name for them."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


@dataclass(kw_only=True)
class EventReader:
    """Reads what was appended to one file since the last call.

    The file stays open once it was found, so that events reach us even when the folder is deleted meanwhile.
    """

    path: Path
    _file: Any = field(default=None)
    _rest: bytes = field(default=b"")

    def new(self) -> Iterator[dict[str, Any]]:
        """Events not seen before. A line that is still being written waits for the next call."""
        if self._file is None and not self._open():
            return
        while block := self._file.read(_BLOCK):
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                event = _parse(line)
                if event is not None:
                    yield event

    def _open(self) -> bool:
        with contextlib.suppress(OSError):
            self._file = self.path.open("rb", buffering=0)
        return self._file is not None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events in ``path`` so far; none when the file is missing."""
    reader = EventReader(path=path)
    try:
        return list(reader.new())
    finally:
        reader.close()


# What is read of the end of a long file: some 1,500 steps.
_END_BYTES = 256 << 10


def read_last_events(path: Path) -> list[dict[str, Any]]:
    """The last events in ``path``: all of a short file, of a long one those in its last 256 KiB."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _END_BYTES)
            file.seek(start)
            *lines, _unfinished = file.read().split(b"\n")
    except OSError:
        return []
    events = (_parse(line) for line in lines[1 if start else 0 :])
    return [event for event in events if event is not None]


class Position:
    """The step a rank has entered last, in a file of a few bytes that is rewritten in place: cheap at any rate."""

    def __init__(self, path: Path) -> None:
        self._handle: int | None = None
        with contextlib.suppress(OSError):
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def enter(self, step: int) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._handle, b"%-20d" % step, 0)


def read_position(path: Path) -> int:
    """The step that the rank has entered last, 0 before the first."""
    try:
        return int(path.read_bytes() or b"0")
    except (OSError, ValueError):
        return 0
