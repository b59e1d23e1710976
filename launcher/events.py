"""What ranks report: one JSON object a line in ``events/rank_<rank_id>.jsonl``, appended and never rewritten.

Every event has ``time`` (seconds since the epoch), ``rank_id`` and ``event``:

begin   pid, started                           the process runs; nothing is imported yet (see ProcessId)
ready   mindspore, mindformers                 the context is built, ranks have found each other
step    step, loss, lr, overflow, grad_norm, step_s   after optimizer step number ``step`` (from 1)
error   type, message, traceback               a Python exception ended the rank
done                                           everything is saved; the process may now end as it likes
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any


class EventWriter:
    """Appends events to one rank's file. Each line is written with one call, so a reader sees whole lines."""

    def __init__(self, path: Path, rank_id: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rank_id = rank_id
        self._file = path.open("ab", buffering=0)

    def write(self, event: str, **fields: Any) -> None:
        record = {"time": round(time.time(), 3), "rank_id": self._rank_id, "event": event, **fields}
        self._file.write(json.dumps(_plain(record), ensure_ascii=False).encode() + b"\n")

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity as words: JSON has no name for them."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


@dataclass(kw_only=True)
class EventReader:
    """Reads what was appended to one rank's file since the last call."""

    path: Path
    _offset: int = field(default=0)

    def new(self) -> Iterator[dict[str, Any]]:
        """Events not seen before. A line that is still being written waits for the next call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            event = _parse(line)
            if event is not None:
                yield event


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events in ``path`` so far; none when the file is missing."""
    return list(EventReader(path=path).new())
