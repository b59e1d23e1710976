"""Rejected records: counted, shown, kept in a file; too many of them stop the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import orjson

from launcher.data.records import Reject
from launcher.errors import DataError

_SHOWN = 5
_RAW_CHARACTERS = 100_000


def rejects_path(target: Path) -> Path:
    """Return the file for the rejected records of a run that writes ``target``."""
    return target.with_name(f"{target.name}.rejects.jsonl")


class Rejects:
    """The rejected records of one run, written to ``path``, a scratch file, as they come."""

    def __init__(self, source: Path, path: Path, *, most: int, keep: int = 0) -> None:
        """Allow ``most`` rejects; ``keep`` bytes of ``path`` are from before an interruption."""
        self._source = source
        self._most = most
        self._out: BinaryIO = path.open("r+b" if keep else "wb")
        self._out.truncate(keep)
        self._out.seek(keep)
        self._first: list[Reject] = []
        self.count = 0

    def add(self, rejects: Sequence[Reject]) -> None:
        """Keep ``rejects``. Raises DataError, with the first of them, when there are more than allowed."""
        for reject in rejects:
            self._first = [*self._first, reject][:_SHOWN]
            self._out.write(_line(reject))
        self.count += len(rejects)
        if self.count > self._most:
            raise DataError("\n".join(self._problems()), hint=self._hint())

    def tell(self) -> int:
        """Return how many bytes are on the disk."""
        self._out.flush()
        return self._out.tell()

    def close(self) -> None:
        """Close the file; closing it again does nothing."""
        self._out.close()

    def _problems(self) -> list[str]:
        lines = [f"{self._source}:{reject.line}: {reject.reason}" for reject in self._first]
        return lines if self.count <= _SHOWN else [*lines, f"... {self.count} bad records so far"]

    def _hint(self) -> str:
        more = max(10, 10 * self.count)
        return f"mend them, or leave out up to {more} of them with --max-rejects {more}"


def _line(reject: Reject) -> bytes:
    record = {"line": reject.line, "reason": reject.reason, "record": reject.raw[:_RAW_CHARACTERS]}
    return orjson.dumps(record) + b"\n"
