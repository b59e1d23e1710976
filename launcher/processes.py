"""Processes by pid *and* start time, so that a pid that was given to somebody else is never signalled."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

# psutil reads start times from /proc in clock ticks (100 a second); two readings of one process agree to a tick.
_START_TOLERANCE_S = 0.02


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

    def send(self, signum: int) -> None:
        """Signal the process if it is still the one that was recorded."""
        if self.find():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)


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
    _wait(stubborn, 5.0)  # a killed process needs a moment to leave; one in uninterruptible sleep needs more
    return stubborn


def _wait(processes: list[ProcessId], timeout_s: float) -> list[ProcessId]:
    deadline = time.monotonic() + timeout_s
    alive = [process for process in processes if process.is_alive()]
    while alive and time.monotonic() < deadline:
        time.sleep(0.02)
        alive = [process for process in alive if process.is_alive()]
    return alive
