"""Processes by pid, start time *and* boot, so that a pid that was given to another process is never signalled.

Start times are ticks since the boot, as the kernel counts them: setting the clock does not change them, whereas seconds
since the epoch (psutil's create_time) follow every change of the clock.

Processes of a job are found by descent, never by name: the supervisor and its guard are "child subreapers" (prctl(2)),
so every process that a job starts stays below them, even when its parent has died or it made a session of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# For records of versions that wrote no ticks: two readings of one process agree to a tick (100 a second).
_START_TOLERANCE_S = 0.02

# Fields of /proc/PID/stat after the name in parentheses, which may hold blanks (proc(5): 3, 22 and 52).
_STATE, _START_TICKS, _EXIT_CODE = 0, 19, 49
_STAT_BYTES = 4096

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

# A killed process needs a moment to leave; one in uninterruptible sleep (a dead file server) may never.
KILL_TIMEOUT_S = 5.0

# Called with the pid of a child that has ended and its return code (-N: killed by signal N).
OnEnd = Callable[[int, int], None]


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on. Raises ProcessLookupError when there is no process."""
    try:
        handle = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ProcessLookupError(f"no process {pid}") from error
    try:  # a supervisor reads that of hundreds of ranks every second; one read returns all of it
        text = os.read(handle, _STAT_BYTES)
    finally:
        os.close(handle)
    return text.rpartition(b")")[2].decode("ascii").split()


@cache
def _boot() -> str:
    """Return the kernel's boot id, which a restart of the host changes; "" where it is not readable."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _since_epoch(ticks: int) -> float:
    """Return the time that is ``ticks`` after the boot, in seconds since the epoch by the clock as it is now."""
    stat = Path("/proc/stat").read_text(encoding="ascii")
    booted = next(line.split()[1] for line in stat.splitlines() if line.startswith("btime"))
    return ticks / os.sysconf("SC_CLK_TCK") + float(booted)


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """One process of this host. ``ticks``: its start, in clock ticks since the boot with id ``boot``.

    ``started`` is the same in seconds since the epoch, by the clock of that moment: for people, and for records of
    earlier versions, which have nothing else.
    """

    pid: int
    started: float
    ticks: int = 0
    boot: str = ""

    @classmethod
    def of_pid(cls, pid: int) -> ProcessId:
        """Return the process with this pid. Raises ProcessLookupError when it is gone."""
        ticks = int(_stat(pid)[_START_TICKS])
        return cls(pid=pid, started=_since_epoch(ticks), ticks=ticks, boot=_boot())

    @classmethod
    def current(cls) -> ProcessId:
        return cls.of_pid(os.getpid())

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ProcessId:
        """Read a process from a record or event, ignoring keys of other versions. Raises KeyError without a pid."""
        ticks, boot = int(raw.get("ticks", 0)), str(raw.get("boot", ""))
        return cls(pid=raw["pid"], started=raw["started"], ticks=ticks, boot=boot)

    def _state(self) -> str:
        """Return the letter of the process's state (proc(5)); "" when it is gone or its pid now belongs to another."""
        with contextlib.suppress(ProcessLookupError):
            stat = _stat(self.pid)
            return stat[_STATE] if self._began(stat) else ""
        return ""

    def _began(self, stat: list[str]) -> bool:
        ticks = int(stat[_START_TICKS])
        if self.boot:
            return ticks == self.ticks and self.boot == _boot()
        return abs(_since_epoch(ticks) - self.started) < _START_TOLERANCE_S

    def is_alive(self) -> bool:
        """Return False when the process has ended (a zombie has ended) or its pid now belongs to another."""
        return self._state() not in ("", "Z", "X")

    def is_stopped(self) -> bool:
        """Return True if the process is suspended by SIGSTOP or the like; False under a debugger."""
        return self._state() == "T"

    def send(self, signum: int) -> None:
        """Send ``signum`` if the process is still the recorded one."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def open_pidfd(self) -> int | None:
        """Return a file descriptor that is readable once the process has ended; None when it has already."""
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:
            return None
        if self.is_alive():  # asked after opening: what the descriptor holds cannot be given to another any more
            return handle
        os.close(handle)
        return None

    def exit_code(self) -> int | None:
        """Return the exit code as Popen has it, while the process is a zombie; None if it is not, or it is unknown."""
        with contextlib.suppress(ProcessLookupError):
            stat = _stat(self.pid)
            if stat[_STATE] == "Z" and self._began(stat):
                # The kernel shows 0 to processes without the right to look, so 0 says nothing here.
                return os.waitstatus_to_exitcode(int(stat[_EXIT_CODE])) or None
        return None


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """Make the kernel send ``signum`` to this process when its parent dies. Kept over exec, not over fork."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signum))


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> list[ProcessId]:
    """Return every living process below this one."""
    return [process for process in _below(os.getpid()) if process.is_alive()]


def _below(pid: int) -> list[ProcessId]:
    """Return every process below a living one, including zombies. Raises psutil.NoSuchProcess when it is gone."""
    import psutil  # most commands only look whether a recorded process lives

    found = (_of(child.pid) for child in psutil.Process(pid).children(recursive=True))
    return [process for process in found if process]


def _of(pid: int) -> ProcessId | None:
    with contextlib.suppress(ProcessLookupError):
        return ProcessId.of_pid(pid)
    return None


def children(pid: int) -> list[ProcessId]:
    """Return the children of a process in order of start, including zombies; none when it is gone.

    It reads one small file per thread.
    """
    try:
        # The kernel lists children by the thread that started them (proc(5)).
        texts = [file.read_text(encoding="ascii") for file in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    found = [_of(int(word)) for text in texts for word in text.split()]
    return sorted((process for process in found if process), key=lambda process: (process.ticks, process.pid))


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment with which a process was started; empty for one that has ended."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in raw.split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs if name}


def environment_of_ours() -> dict[str, str]:
    """Return our environment plus the path to this package, which may have been found through the working folder."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(dict.fromkeys([package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
    return {**os.environ, "PYTHONPATH": path}


def program_of(pid: int) -> str:
    """Return the name of the program that a process runs or, as a zombie, has run; "" for one that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.partition("(")[2].rpartition(")")[0]


def reap(note: OnEnd | None = None) -> None:
    """Collect the children that have ended; call ``note`` for each."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if note:
            note(pid, os.waitstatus_to_exitcode(status))


def kill_descendants(note: OnEnd | None = None, *, spare: Iterable[ProcessId] = ()) -> list[ProcessId]:
    """Kill all descendants, repeatedly, until there are none. Returns those still alive after KILL_TIMEOUT_S.

    ``spare``: processes that are left alone with all that is below them.
    """
    spare = tuple(spare)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    left = _all_but(spare)
    while left and time.monotonic() < deadline:
        # A process may start others while it is being killed; the next round finds them below us.
        for process in left:
            process.send(signal.SIGKILL)
        time.sleep(0.005)
        reap(note)
        left = _all_but(spare)
    reap(note)
    return left


def _all_but(spare: Iterable[ProcessId]) -> list[ProcessId]:
    kept = {process for root in spare for process in tree(root)}
    return [process for process in descendants() if process not in kept]


def tree(root: ProcessId) -> list[ProcessId]:
    """Return ``root`` and all its descendants. Call it while their parents live: orphans cannot be found afterwards."""
    return [root, *_below(root.pid)] if root.is_alive() else []


def stop(processes: Iterable[ProcessId], *, grace_s: float) -> list[ProcessId]:
    """Send TERM, wait up to ``grace_s`` seconds, then send KILL. Returns the processes that had to be killed."""
    waiting = [process for process in processes if process.is_alive()]
    for process in waiting:
        process.send(signal.SIGTERM)
    stubborn = _wait(waiting, grace_s)
    for process in stubborn:
        process.send(signal.SIGKILL)
    _wait(stubborn, KILL_TIMEOUT_S)
    return stubborn


def _wait(processes: list[ProcessId], timeout_s: float) -> list[ProcessId]:
    deadline = time.monotonic() + timeout_s
    alive = [process for process in processes if process.is_alive()]
    while alive and time.monotonic() < deadline:
        time.sleep(0.02)
        alive = [process for process in alive if process.is_alive()]
    return alive
