"""Log files of a job: reading their ends, merging them in order of time, and following them.

``launcher.jobs.log_writing`` writes them. A line without a time (for example from a rank's own child process) has the
time of the line before it.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from launcher.common.ranges import numbers
from launcher.errors import JobError, SpecError
from launcher.jobs.log_writing import STAMP_LENGTH, find_stamp, is_stamped
from launcher.jobs.paths import JobPaths
from launcher.jobs.record import JobRecord, read_record

_TAIL_BYTES = 65536
_POLL_S = 0.2

_ERROR = re.compile(r"\b(?:ERROR|CRITICAL|FATAL)\b|\bE[A-Z0-9]\d{4}\b|^Fatal Python error|^\w*(?:Error|Exception): ")
_TRACEBACK = "Traceback (most recent call last)"

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}

# Programs of engines, whose logs are shown before those of the processes that start agents.
PROGRAMS = ("msrun", "mpirun", "scheduler")

Echo = Callable[[str], object]


def tail(path: Path, lines: int, within: int = _TAIL_BYTES) -> list[str]:
    """Return the last ``lines`` lines of a log, bytes that are not UTF-8 replaced; reads at most its last ``within``
    bytes (64 KiB)."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - within))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []


# ------------------------------------------------------------------------------------------------ choosing


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The choice of lines to show. ``ranks``: None for all and the engine. ``since``: seconds since the epoch."""

    ranks: tuple[int, ...] | None = None
    lines: int | None = None
    errors: bool = False
    since: float = 0.0


def parse_ranks(text: str) -> tuple[int, ...]:
    """Return the ranks in a text such as "0,3-5": (0, 3, 4, 5). Raises SpecError for any other text."""
    try:
        return tuple(sorted(set(numbers(text))))
    except ValueError as error:
        raise SpecError(f"--rank {text}: {error}", hint="--rank 0,3-5") from error


def parse_since(text: str, now: datetime | None = None, *, option: str = "--since") -> float:
    """Return the time of "10m" (s, m, h, d ago) or of an ISO time, by default local, in seconds since the epoch.

    Raises SpecError, which names ``option``.
    """
    match = _AGO.fullmatch(text)
    try:
        if match:
            ago = timedelta(seconds=float(match[1]) * _UNIT_S[match[2]])
            return ((now or datetime.now().astimezone()) - ago).timestamp()
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise SpecError(
            f"{option} {text!r} is no time", hint=f"{option} 10m, 2h or 30d, or {option} 2026-01-31T12:00"
        ) from None


@dataclass(kw_only=True)
class Source:
    """One log with its rotated parts. ``name`` marks its lines among those of other logs."""

    name: str
    path: Path
    number: int
    _file: int | None = field(default=None)
    _rest: bytes = field(default=b"")
    _inode: int = field(default=0)
    _skipped: int = field(default=0)

    def parts(self) -> list[Path]:
        """Return the files of the log, the oldest first."""
        rotated = [
            (int(p.suffix[1:]), p) for p in self.path.parent.glob(f"{self.path.name}.*") if p.suffix[1:].isdigit()
        ]
        return [*(path for _, path in sorted(rotated)), *([self.path] if self.path.is_file() else [])]

    def lines(self) -> Iterator[str]:
        """Yield the lines so far; after ``skip_to_end`` only those that existed then."""
        for part in self.parts():
            with contextlib.suppress(OSError), part.open("rb") as file:
                yield from self._lines_of(file)

    def _lines_of(self, file: BinaryIO) -> Iterator[str]:
        # Only the file that is followed grows; parts that were put aside are read whole.
        bounded = self._file is not None and os.fstat(file.fileno()).st_ino == self._inode
        left = self._skipped if bounded else math.inf
        for line in file:
            left -= len(line)
            if left < 0:
                return
            yield line.rstrip(b"\n").decode("utf-8", "replace")

    def skip_to_end(self) -> None:
        """Make ``new`` start with lines completed from now on; ``lines`` yields those before."""
        self._open()
        if self._file is not None:
            size = os.fstat(self._file).st_size
            start = max(0, size - _TAIL_BYTES)
            # Only whole lines count as shown: the rest of an unfinished one is read with its end.
            end = os.pread(self._file, size - start, start)
            self._skipped = start + end.rfind(b"\n") + 1 if b"\n" in end else start
            os.lseek(self._file, self._skipped, os.SEEK_SET)

    def new(self) -> Iterator[str]:
        """Yield whole lines written since the last call. A log that was put aside is read to its end first."""
        # Twice: the old file to its end, then the new file that took its name.
        for _ in range(2):
            if self._file is None:
                self._open()
            if self._file is None:
                return
            while block := os.read(self._file, 1 << 16):
                *lines, self._rest = (self._rest + block).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
            if not self._put_aside():
                return
            self.close()

    def _open(self) -> None:
        with contextlib.suppress(OSError):
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self._inode = os.fstat(self._file).st_ino

    def _put_aside(self) -> bool:
        try:
            return self.path.stat().st_ino != self._inode
        except OSError:
            return False

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def sources(paths: JobPaths, num_ranks: int, ranks: Sequence[int] | None) -> list[Source]:
    """Return the logs of ``ranks``, or of the engine's programs and all ranks if None. Raises JobError for a rank that
    the job does not have."""
    wrong = [rank for rank in ranks or () if rank >= num_ranks]
    if wrong:
        raise JobError(f"job {paths.job_id} has ranks 0 to {num_ranks - 1}, not {wrong[0]}", hint="--rank 0")
    found = [Source(name=f"rank {r}", path=paths.rank_log(r), number=r) for r in (ranks or range(num_ranks))]
    if ranks is not None:
        return found
    others = (path.stem for path in paths.logs.glob("*.log") if not path.stem.startswith("worker_"))
    agents = sorted(name for name in others if name not in PROGRAMS)
    programs = [Source(name=name, path=paths.log(name), number=-1) for name in (*PROGRAMS, *agents)]
    return [*(source for source in programs if source.parts()), *found]


# ------------------------------------------------------------------------------------------------ showing


def print_logs(paths: JobPaths, num_ranks: int, wanted: Wanted, echo: Echo, style: Style | None = None) -> None:
    """Pass the chosen lines of all chosen logs to ``echo``, in order of time.

    Raises JobError when a requested rank is not one of the job or has written nothing.
    """
    _print(_started(paths, sources(paths, num_ranks, wanted.ranks), wanted), wanted, echo, style or plain)


def _started(paths: JobPaths, chosen: list[Source], wanted: Wanted) -> list[Source]:
    if wanted.ranks is not None and not any(source.parts() for source in chosen):
        raise JobError(
            f"{chosen[0].path} does not exist: the rank never started", hint=f"launcher status {paths.job_id}"
        )
    return chosen


def _print(chosen: list[Source], wanted: Wanted, echo: Echo, style: Style) -> None:
    mark = style if len(chosen) > 1 else bare
    streams = [_stream(source, wanted, mark) for source in chosen]
    # Each log is in order of time by itself, so merging needs no log in memory.
    for _, line in heapq.merge(*streams, key=lambda item: item[0]):
        echo(line)


def _stream(source: Source, wanted: Wanted, mark: Style) -> Iterator[tuple[float, str]]:
    for when, line in select(source.lines(), wanted):
        yield when, mark(source, line)


Style = Callable[[Source, str], str]


def plain(source: Source, line: str) -> str:
    return f"{source.name} | {line}"


def bare(_source: Source, line: str) -> str:
    return line


def select(lines: Iterable[str], wanted: Wanted) -> Iterator[tuple[float, str]]:
    """Yield the wanted lines of a log, with their time (0 before the first line that has one)."""
    timed = ((when, line) for when, line in _timed(lines) if when >= wanted.since)
    kept = _only_errors(timed) if wanted.errors else timed
    return iter(deque(kept, maxlen=wanted.lines)) if wanted.lines is not None else iter(kept)


def _timed(lines: Iterable[str]) -> Iterator[tuple[float, str]]:
    when = 0.0
    for line in lines:
        when = time_of(line) or when
        yield when, line


def time_of(line: str) -> float | None:
    """Return the time near the beginning of a line, in seconds since the epoch; None if there is none."""
    match = find_stamp(line)
    if match is None:
        return None
    try:
        return datetime.fromisoformat(f"{match[1]}T{match[2]}.{match[3]}").timestamp()
    except ValueError:
        return None


def without_stamp(line: str) -> str:
    """Return the line as the rank wrote it, without the time that the launcher put before it."""
    return line[STAMP_LENGTH:] if is_stamped(line) else line


def _only_errors(timed: Iterable[tuple[float, str]]) -> Iterator[tuple[float, str]]:
    """Yield lines that report an error, and whole tracebacks."""
    wanted = _ErrorLines()
    return ((when, line) for when, line in timed if wanted(line))


class _ErrorLines:
    """A filter for the lines of one log, called in order: True for a line that belongs to an error."""

    def __init__(self) -> None:
        self._inside = False

    def __call__(self, line: str) -> bool:
        said = without_stamp(line)
        starts = _TRACEBACK in said
        # A traceback ends with the first line that is not indented: the exception itself, which is still shown.
        continues = self._inside and (not said.strip() or said.startswith((" ", "\t")))
        chosen = starts or self._inside or bool(_ERROR.search(said))
        self._inside = starts or continues
        return chosen


def show_logs(
    paths: JobPaths,
    record: JobRecord,
    wanted: Wanted,
    echo: Echo,
    style: Style,
    *,
    attempt: int | None = None,
    follow: bool = False,
) -> None:
    """Print the logs of one attempt, the newest if ``attempt`` is None; ``follow``: until the job, or it, has ended.

    Raises JobError for an attempt that there never was.
    """
    if attempt and attempt > record.attempt:
        raise JobError(f"job {record.job_id} has {record.attempt} attempt(s)", hint=f"--attempt {record.attempt}")
    shown = paths.of_attempt(attempt or record.attempt)
    if not follow:
        print_logs(shown, record.cards, wanted, echo, style)
        return

    def now() -> tuple[int, bool]:
        current = read_record(paths) or record
        running = not current.is_final and paths.record.is_file() and attempt in (None, current.attempt)
        return attempt or current.attempt, running

    follow_logs(shown, record.cards, wanted, echo, style, now=now)


def follow_logs(
    paths: JobPaths, num_ranks: int, wanted: Wanted, echo: Echo, style: Style, *, now: Callable[[], tuple[int, bool]]
) -> None:
    """Print the lines so far, then new ones, until the job has ended.

    ``now`` returns the attempt to show, and True while the job runs. A new attempt's logs follow those of the one
    before; logs that do not exist yet are waited for.
    """
    attempt, running = now()
    chosen = sources(paths.of_attempt(attempt), num_ranks, wanted.ranks)
    followed = _Followed(chosen if running else _started(paths, chosen, wanted), wanted, echo, style)
    # Before the loop: the lines of all logs so far are shown in order of time, those after it as they come.
    followed.look_back()
    while running:
        time.sleep(_POLL_S)
        # Asked before the logs are read: lines written until the job's end are then read after it.
        newest, running = now()
        followed.read_on()
        if newest != attempt:
            attempt = newest
            followed.close()
        followed.add(sources(paths.of_attempt(attempt), num_ranks, wanted.ranks))
        followed.read_on()
    followed.read_on()
    followed.close()


class _Followed:
    """The logs of one attempt that are being followed."""

    def __init__(self, chosen: list[Source], wanted: Wanted, echo: Echo, style: Style) -> None:
        self._wanted, self._echo, self._style = wanted, echo, style
        self._logs: dict[str, tuple[Source, _ErrorLines]] = {}
        self.add(chosen)

    def add(self, chosen: list[Source]) -> None:
        """Follow these logs too, from their beginning, except those already followed."""
        for source in chosen:
            self._logs.setdefault(source.name, (source, _ErrorLines()))

    def look_back(self) -> None:
        """Show the lines so far; ``read_on`` continues behind them."""
        chosen = [source for source, _ in self._logs.values()]
        for source in chosen:
            source.skip_to_end()
        _print(chosen, self._wanted, self._echo, self._style)

    def read_on(self) -> None:
        """Show whole lines written since the last call."""
        mark = self._style if len(self._logs) > 1 else bare
        for source, is_error in self._logs.values():
            for line in source.new():
                if not self._wanted.errors or is_error(line):
                    self._echo(mark(source, line))

    def close(self) -> None:
        """Stop following all logs."""
        for source, _ in self._logs.values():
            source.close()
        self._logs.clear()
