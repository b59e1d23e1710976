"""Output of answers: text or JSON Lines, in the order of the questions, and a file that can be continued."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.common.rendering import write_atomic
from launcher.errors import DataError, HostError, JobCancelled
from launcher.inference.provenance import differences
from launcher.inference.session import Answer

_MADE_WITH = "made_with"
_BEGIN = b'{"id": '  # of every line
_POLL_S = 0.2


def to_text(answer: Answer, *, alone: bool) -> str:
    """Format the answer, below its question unless it is ``alone``."""
    return answer.text if alone else f"> {answer.prompt}\n{answer.text}"


def to_json(answer: Answer) -> str:
    """Format the answer as one line of JSON."""
    return json.dumps(asdict(answer), ensure_ascii=False)


class InOrder:
    """Passes on items that come in any order in the order of their places, as early as possible."""

    def __init__(self, give: Callable[[Answer], None]) -> None:
        self._give = give
        self._waiting: dict[int, Answer] = {}
        self._next = 0

    def put(self, place: int, answer: Answer) -> None:
        self._waiting[place] = answer
        while self._next in self._waiting:
            self._give(self._waiting.pop(self._next))
            self._next += 1


class OutputFile:
    """A JSON Lines file that a later call continues: answers are appended as they come, and sorted when complete.

    Get one with ``locked``: nobody else writes to it meanwhile. ``lines``: the existing records, by id.
    """

    def __init__(self, path: Path, handle: int) -> None:
        """Read the existing records. Raises DataError when the file holds anything else."""
        self.path = path
        self._handle = handle
        self.lines = self._read()

    def __len__(self) -> int:
        return len(self.lines)

    def check(self, made: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise DataError unless all existing answers were made with the settings in ``made``, by question id."""
        (now, *_) = made.values()
        for name, line in self.lines.items():
            if not isinstance(line.get(_MADE_WITH), dict):
                what = ["it does not say how; only files that --output made do"]
            else:
                what = differences(line[_MADE_WITH], made.get(name, now), same_question=name in made)
            if what:
                raise DataError(
                    f"{self.path} has an answer of id {name!r} that was made in another way: {'; '.join(what)}",
                    hint="give another --output; or ask as before, with ids of their own for other questions",
                )

    def add(self, answers: Sequence[Answer], made: Mapping[str, Mapping[str, Any]]) -> None:
        """Append ``answers`` and sync them to the disk. Raises HostError when that fails."""
        new = {answer.id: {**asdict(answer), _MADE_WITH: made[answer.id]} for answer in answers}
        with _writing(self.path), open(self._handle, "ab", closefd=False) as out:
            out.write(_to_lines(new.values()))
            out.flush()
            os.fsync(self._handle)
        self.lines |= new

    def sort(self, ids: Sequence[str]) -> None:
        """Sort the answers in the order of ``ids``; others stay in front. Nothing can be added afterwards."""
        others = {name: line for name, line in self.lines.items() if name not in set(ids)}
        ordered = others | {name: self.lines[name] for name in ids}
        if [*self.lines] != [*ordered]:
            with _writing(self.path):
                write_atomic(self.path, _to_lines(ordered.values()))

    def _read(self) -> dict[str, dict[str, Any]]:
        with open(self._handle, "rb", closefd=False) as file:
            raw = file.read()
        whole, tail = raw[: raw.rfind(b"\n") + 1], raw[raw.rfind(b"\n") + 1 :]
        try:
            lines = _parse(whole)
            if tail:
                lines = self._mended(lines, tail, len(whole))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.path} exists and holds no answers of launcher infer ({error})", hint="give another --output"
            ) from error
        return lines

    def _mended(self, lines: dict[str, dict[str, Any]], tail: bytes, place: int) -> dict[str, dict[str, Any]]:
        """Cut off half a line that a killed run left, or end a complete one, so that appends begin a new line."""
        try:
            found = _parse(tail)
        except ValueError:
            if tail[: len(_BEGIN)] != _BEGIN[: len(tail)]:
                raise
            found = {}
        with _writing(self.path):
            if found:
                os.write(self._handle, b"\n")
            else:
                os.ftruncate(self._handle, place)
        return lines | found


@contextmanager
def locked(path: Path, *, on_wait: Callable[[], None], interrupted: Callable[[], bool]) -> Iterator[OutputFile]:
    """Open and lock the file at ``path``, which is created if missing, and removed again if it stays empty.

    While another process has it, calls ``on_wait`` once and waits. Raises HostError when it cannot be written,
    DataError when it holds anything else, JobCancelled when ``interrupted``.
    """
    path = Path(os.path.realpath(path))  # a symbolic link stays one
    with _writing(path):
        handle, is_new = _open_locked(path, on_wait, interrupted)
    try:
        yield OutputFile(path, handle)
    finally:
        if is_new and os.fstat(handle).st_size == 0:
            path.unlink(missing_ok=True)
        os.close(handle)


def _open_locked(path: Path, on_wait: Callable[[], None], interrupted: Callable[[], bool]) -> tuple[int, bool]:
    path.parent.mkdir(parents=True, exist_ok=True)
    waits = False
    while True:
        handle, is_new = _open(path)
        is_ours = _try_lock(handle)
        if is_ours and _is_at(handle, path):
            return handle, is_new
        os.close(handle)
        if not is_ours and not waits:
            waits = True
            on_wait()
        if interrupted():
            raise JobCancelled("stopped while it waited for its turn to write", signum=signal.SIGINT)
        time.sleep(_POLL_S)


def _open(path: Path) -> tuple[int, bool]:
    """Return a handle, and whether the file was created."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(path, flags), False


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Return whether ``path`` still is this file: its previous owner may have replaced it by a sorted one."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            f"cannot write {path}: {error.strerror}",
            hint="make that possible, or give another --output; what it has answered is not asked again",
        ) from error


def _to_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Encode JSON Lines in UTF-8. Undecodable bytes of a path become escapes, which JSON reads back unchanged."""
    text = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
    return text.encode("utf-8", "backslashreplace")


def _parse(raw: bytes) -> dict[str, dict[str, Any]]:
    """Parse records by id. Raises ValueError when a line is not a record, or an id comes twice."""
    found: dict[str, dict[str, Any]] = {}
    for line in raw.splitlines():
        record = json.loads(line)
        if not isinstance(record, dict) or not isinstance(record.get("id"), str):
            raise ValueError("a line has no id")
        if found.setdefault(record["id"], record) != record:
            raise ValueError(f"two answers have the id {record['id']!r}")
    return found
