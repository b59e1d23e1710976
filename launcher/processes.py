"""Processes by pid *and* start time, so that a pid that was given to somebody else is never signalled.

What belongs to a job is found by descent, never by name: the supervisor and its guard are "child subreapers"
(prctl(2)), so whatever a job starts stays below them, also when its parent has died or it made a session of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

# psutil reads start times from /proc in clock ticks (100 a second); two readings of one process agree to a tick.
_START_TOLERANCE_S = 0.02

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

# A killed process needs a moment to leave; one in uninterruptible sleep (a dead file server) may never.
KILL_TIMEOUT_S = 5.0

# Called with the pid of a child that has ended and its return code (-N: killed by signal N).
OnEnd = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """One process of this host. ``started`` is its start time in seconds since the epoch, as psutil gives it."""

    pid: int
    started: float

    @classmethod
    def of(cls, process: psutil.Process) -> ProcessId:
        """Raises psutil.NoSuchProcess when it is gone."""
        return cls(pid=process.pid, started=process.create_time())

    @classmethod
    def of_pid(cls, pid: int) -> ProcessId:
        """Raises psutil.NoSuchProcess when it is gone."""
        return cls.of(psutil.Process(pid))

    @classmethod
    def current(cls) -> ProcessId:
        return cls.of(psutil.Process())

    def find(self) -> psutil.Process | None:
        """The process, or None when it has ended (a zombie has ended) or its pid now belongs to another."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < _START_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def is_alive(self) -> bool:
        return self.find() is not None

    def is_stopped(self) -> bool:
        """Whether the process is suspended by SIGSTOP or the like; under a debugger it is not."""
        process = self.find()
        with contextlib.suppress(psutil.NoSuchProcess):
            return bool(process and process.status() == psutil.STATUS_STOPPED)
        return False

    def send(self, signum: int) -> None:
        """Signal the process if it is still the one that was recorded."""
        if self.find():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def open_pidfd(self) -> int | None:
        """A file descriptor that is readable once the process has ended; None when it has already."""
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:
            return None
        if self.is_alive():  # asked after opening: what the descriptor holds cannot be given to another any more
            return handle
        os.close(handle)
        return None


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """Have the kernel send ``signum`` to this process when its parent dies. Kept over exec, not over fork."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signum))


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> list[ProcessId]:
    """Every living process below this one."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found.append(ProcessId.of(child))
    return found


def reap(note: OnEnd | None = None) -> None:
    """Collect the children that have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if note:
            note(pid, os.waitstatus_to_exitcode(status))


def kill_descendants(note: OnEnd | None = None) -> list[ProcessId]:
    """KILL whatever is below this process, again until nothing is. Returns what would not die in KILL_TIMEOUT_S."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    left = descendants()
    while left and time.monotonic() < deadline:
        for process in left:
            process.send(signal.SIGKILL)
        time.sleep(0.005)
        reap(note)
        left = descendants()
    reap(note)
    return left


def tree(root: ProcessId) -> list[ProcessId]:
    """``root`` and all its descendants, found while their parents live: orphans cannot be found afterwards."""
    leader = root.find()
    if leader is None:
        return []
    found = [root]
    for child in leader.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(ProcessId.of(child))
    return found


def stop(processes: Iterable[ProcessId], *, grace_s: float) -> list[ProcessId]:
    """TERM, up to ``grace_s`` seconds, then KILL. Returns those that had to be killed."""
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
