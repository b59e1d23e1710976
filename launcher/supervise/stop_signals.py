"""Requests to stop the supervisor: signals, and the options that ``launcher stop`` writes beside them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from launcher.common.signals import handled
from launcher.jobs import JobPaths

# Schedulers are told to send USR1 before the time is up.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


# The guard passes them on under other numbers: a signal to the whole process group arrives twice but is one request.
PASSED_ON: Mapping[int, int] = {number: signal.SIGRTMIN + 1 + index for index, number in enumerate(STOP_SIGNALS)}


@dataclass(frozen=True, kw_only=True)
class StopRequest:
    """A request to stop. ``save``: write a checkpoint first. ``grace_s``: time from TERM to KILL."""

    grace_s: float
    save: bool = False


class StopSignals:
    """Signals that asked this process to stop, in order, and a descriptor that is readable when there are new ones.

    ``passed_on`` came through the guard. One request may come both ways, so the longer of the two lists counts.
    """

    def __init__(self, wake_fd: int) -> None:
        self.wake_fd = wake_fd
        self.direct: list[int] = []
        self.passed_on: list[int] = []

    @property
    def received(self) -> list[int]:
        return max(self.direct, self.passed_on, key=len)

    def stop_level(self) -> int:
        """Return 0 to go on, 1 to stop in order, 2 to stop at once: a second request means no more waiting."""
        return min(len(self.received), 2)

    def request_to_pass_on(self) -> int | None:
        """Return the first signal that an agent reports to its leader; SIGHUP only says that its parent was killed."""
        return next((signum for signum in self.received if signum != signal.SIGHUP), None)

    def drain(self) -> bool:
        """Empty the descriptor; return True, as it never comes to an end."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.wake_fd, 512):
                pass
        return True

    def request(self, paths: JobPaths, grace_s: float) -> StopRequest:
        """Return the request that ``launcher stop`` wrote; a plain signal means no checkpoint and the job's grace."""
        try:
            raw = json.loads(paths.control.read_text(encoding="utf-8"))
            wanted_s = raw.get("grace_s")
            return StopRequest(grace_s=grace_s if wanted_s is None else float(wanted_s), save=bool(raw.get("save")))
        except (OSError, ValueError, TypeError, AttributeError):
            return StopRequest(grace_s=grace_s)


@contextmanager
def catch_stop_signals() -> Iterator[StopSignals]:
    """Note SIGINT, SIGTERM, SIGHUP and SIGUSR1 inside the block, direct or passed on by the guard, and ignore them
    otherwise."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signals = StopSignals(reading)

    def note(signum: int, _frame: FrameType | None) -> None:
        signals.direct.append(signum)

    def note_passed_on(signum: int, _frame: FrameType | None) -> None:
        signals.passed_on.append(STOP_SIGNALS[signum - PASSED_ON[STOP_SIGNALS[0]]])

    try:
        with handled(STOP_SIGNALS, note):
            for passed in PASSED_ON.values():  # for good: one that the guard passes on late would end the process
                signal.signal(passed, note_passed_on)
            # A handler alone does not end a select; a byte in the pipe does.
            wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
            try:
                yield signals
            finally:
                signal.set_wakeup_fd(wakeup)
    finally:
        os.close(reading)
        os.close(writing)
