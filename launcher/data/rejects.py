"""Rejected records: counted, shown, kept in a file; too many of them stop the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import orjson

from launcher.data.files import InputFile
from launcher.data.records import Reject
from launcher.errors import DataError

_SHOWN = 5
_RAW_CHARACTERS = 100_000


def rejects_path(target: Path) -> Path:
    """Return the file for the rejected records of a run that writes ``target``."""
    return target.with_name(f"{target.name}.rejects.jsonl")


class Rejects:
    """The rejected records of one run, written to ``path``, a scratch file, as they come."""

    def __init__(self, files: Sequence[InputFile], path: Path, *, most: int, keep: int = 0) -> None:
        """Allow ``most`` rejects of ``files``; ``keep`` bytes of ``path`` are from before an interruption."""
        self._files = files
        self._most = most
        self._out: BinaryIO = path.open("r+b" if keep else "wb")
        self._out.truncate(keep)
        self._out.seek(keep)
        self._first: list[tuple[InputFile, Reject]] = []
        self._reasons: set[str] = set()
        self._good = 0
        self.count = 0

    def add(self, rejects: Sequence[Reject], file: int, *, good: int) -> None:
        """Keep ``rejects`` of one of the files, which came among ``good`` records.

        Raises DataError, with the first of all, for more than allowed.
        """
        self._good += good
        for reject in rejects:
            self._first = [*self._first, (self._files[file], reject)][:_SHOWN]
            self._reasons.add(reject.reason)
            self._out.write(self._line(reject, self._files[file]))
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

    @property
    def _is_all(self) -> bool:
        """Return whether no record was good: then there is nothing to keep by leaving out the bad ones."""
        return not self._good

    def _problems(self) -> list[str]:
        if self._is_all and self.count > 1 and len(self._reasons) == 1:
            file, first = self._first[0]
            return [f"{file.shown}: all {self.count:,} records read so far are bad in the same way: {first.reason}"]
        lines = [f"{file.place(reject.number, reject.line)}: {reject.reason}" for file, reject in self._first]
        return lines if self.count <= _SHOWN else [*lines, f"... {self.count} bad records so far"]

    def _hint(self) -> str:
        own = next((reject.hint for _, reject in self._first if reject.hint), "mend them")
        if self._is_all:
            return own
        more = max(10, 10 * self.count)
        return f"{own}; or leave out up to {more} of them with --max-rejects {more}"

    def _line(self, reject: Reject, file: InputFile) -> bytes:
        named = {"file": file.shown} if len(self._files) > 1 else {}
        record = {**named, "line": reject.line, "reason": reject.reason, "record": reject.raw[:_RAW_CHARACTERS]}
        return orjson.dumps(record) + b"\n"
