"""Log files of a job: their ends, reading them together in order of time, and following them.

``launcher.jobs.log_writing`` says how they are written. A line without a time (from a rank's own child process, say)
belongs to the moment of the line before it.
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

_TAIL_BYTES = 65536
_POLL_S = 0.2

_ERROR = re.compile(r"\b(?:ERROR|CRITICAL|FATAL)\b|\bE[A-Z0-9]\d{4}\b|^Fatal Python error|^\w*(?:Error|Exception): ")
_TRACEBACK = "Traceback (most recent call last)"

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}

# Programs of engines, whose logs are shown before those of what brings agents to their hosts.
PROGRAMS = ("msrun", "mpirun", "scheduler")

Echo = Callable[[str], object]


def tail(path: Path, lines: int) -> list[str]:
    """The last ``lines`` lines of a log, bytes that are not UTF-8 replaced; reads at most its last 64 KiB."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []


# ------------------------------------------------------------------------------------------------ choosing


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which lines are shown. ``ranks``: None means all, and the engine's. ``since``: seconds since the epoch."""

    ranks: tuple[int, ...] | None = None
    lines: int | None = None
    errors: bool = False
    since: float = 0.0


def parse_ranks(text: str) -> tuple[int, ...]:
    """ "0,3-5" -> (0, 3, 4, 5). Raises SpecError for anything else."""
    try:
        return tuple(sorted(set(numbers(text))))
    except ValueError as error:
        raise SpecError(f"--rank {text}: {error}", hint="--rank 0,3-5") from error


def parse_since(text: str, now: datetime | None = None) -> float:
    """ "10m" (s, m, h, d ago) or an ISO time, local unless it says otherwise. Seconds since the epoch."""
    match = _AGO.fullmatch(text)
    try:
        if match:
            ago = timedelta(seconds=float(match[1]) * _UNIT_S[match[2]])
            return ((now or datetime.now().astimezone()) - ago).timestamp()
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise SpecError(f"--since {text!r} is no time", hint="--since 10m, or --since 2026-01-31T12:00") from None


@dataclass(kw_only=True)
class Source:
    """One log, rotated parts and all, and how its lines are announced among others."""

    name: str
    path: Path
    number: int
    _file: int | None = field(default=None)
    _rest: bytes = field(default=b"")
    _inode: int = field(default=0)
    _skipped: int = field(default=0)

    def parts(self) -> list[Path]:
        """Oldest first."""
        rotated = [
            (int(p.suffix[1:]), p) for p in self.path.parent.glob(f"{self.path.name}.*") if p.suffix[1:].isdigit()
        ]
        return [*(path for _, path in sorted(rotated)), *([self.path] if self.path.is_file() else [])]

    def lines(self) -> Iterator[str]:
        """What there is; after ``skip_to_end`` what there was then."""
        for part in self.parts():
            with contextlib.suppress(OSError), part.open("rb") as file:
                yield from self._lines_of(file)

    def _lines_of(self, file: BinaryIO) -> Iterator[str]:
        bounded = self._file is not None and os.fstat(file.fileno()).st_ino == self._inode
        left = self._skipped if bounded else math.inf
        for line in file:
            left -= len(line)
            if left < 0:
                return
            yield line.rstrip(b"\n").decode("utf-8", "replace")

    def skip_to_end(self) -> None:
        """New lines are those that are whole from now on; ``lines`` gives the others."""
        self._open()
        if self._file is not None:
            size = os.fstat(self._file).st_size
            start = max(0, size - _TAIL_BYTES)
            end = os.pread(self._file, size - start, start)
            self._skipped = start + end.rfind(b"\n") + 1 if b"\n" in end else start
            os.lseek(self._file, self._skipped, os.SEEK_SET)

    def new(self) -> Iterator[str]:
        """Whole lines written since the last call. A log that was put aside is read to its end first."""
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
    """Logs of ``ranks``; of the engine's programs and all ranks when None. Raises JobError for a rank there is not."""
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
    """Give the chosen lines of all chosen logs to ``echo``, in order of time.

    Raises JobError when a rank is not one of the job, or has written nothing though it was asked for.
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
    """The wanted ones of a log's lines, with their time (0 before the first line that has one)."""
    timed = ((when, line) for when, line in _timed(lines) if when >= wanted.since)
    kept = _only_errors(timed) if wanted.errors else timed
    return iter(deque(kept, maxlen=wanted.lines)) if wanted.lines is not None else iter(kept)


def _timed(lines: Iterable[str]) -> Iterator[tuple[float, str]]:
    when = 0.0
    for line in lines:
        when = time_of(line) or when
        yield when, line


def time_of(line: str) -> float | None:
    """When a line was written, in seconds since the epoch, if it says so near its beginning."""
    match = find_stamp(line)
    if match is None:
        return None
    try:
        return datetime.fromisoformat(f"{match[1]}T{match[2]}.{match[3]}").timestamp()
    except ValueError:
        return None


def without_stamp(line: str) -> str:
    """The line as the rank wrote it, without the time that the launcher put before it."""
    return line[STAMP_LENGTH:] if is_stamped(line) else line


def _only_errors(timed: Iterable[tuple[float, str]]) -> Iterator[tuple[float, str]]:
    """Lines that report an error, and whole tracebacks."""
    wanted = _ErrorLines()
    return ((when, line) for when, line in timed if wanted(line))


class _ErrorLines:
    """Says of one line after another of a log whether it belongs to an error."""

    def __init__(self) -> None:
        self._inside = False

    def __call__(self, line: str) -> bool:
        said = without_stamp(line)
        starts = _TRACEBACK in said
        continues = self._inside and (not said.strip() or said.startswith((" ", "\t")))
        chosen = starts or self._inside or bool(_ERROR.search(said))
        self._inside = starts or continues
        return chosen


def follow_logs(
    paths: JobPaths, num_ranks: int, wanted: Wanted, echo: Echo, style: Style, *, now: Callable[[], tuple[int, bool]]
) -> None:
    """Print what there is, then what comes, until the job has ended.

    ``now`` says which attempt is to be shown, and whether the job is still to end. A new attempt's logs follow those
    of the one before; logs that are not there yet are waited for.
    """
    attempt, running = now()
    chosen = sources(paths.of_attempt(attempt), num_ranks, wanted.ranks)
    followed = _Followed(chosen if running else _started(paths, chosen, wanted), wanted, echo, style)
    followed.look_back()
    while running:
        time.sleep(_POLL_S)
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
    """The logs of one attempt that are read on."""

    def __init__(self, chosen: list[Source], wanted: Wanted, echo: Echo, style: Style) -> None:
        self._wanted, self._echo, self._style = wanted, echo, style
        self._logs: dict[str, tuple[Source, _ErrorLines]] = {}
        self.add(chosen)

    def add(self, chosen: list[Source]) -> None:
        """Read these too, from their beginning, but for those that are read already."""
        for source in chosen:
            self._logs.setdefault(source.name, (source, _ErrorLines()))

    def look_back(self) -> None:
        """Show what there is; ``read_on`` goes on behind it."""
        chosen = [source for source, _ in self._logs.values()]
        for source in chosen:
            source.skip_to_end()
        _print(chosen, self._wanted, self._echo, self._style)

    def read_on(self) -> None:
        """Show whole lines that came since."""
        mark = self._style if len(self._logs) > 1 else bare
        for source, is_error in self._logs.values():
            for line in source.new():
                if not self._wanted.errors or is_error(line):
                    self._echo(mark(source, line))

    def close(self) -> None:
        """Read none of them any more."""
        for source, _ in self._logs.values():
            source.close()
        self._logs.clear()
