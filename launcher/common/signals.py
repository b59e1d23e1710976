"""Signals that a process handles for a while, and their forwarding to a child process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call ``handler`` for these signals inside the block, which the main thread runs; restore theirs afterwards."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def wait_for_stop(poll_s: float = 0.2) -> None:
    """Return after SIGTERM or SIGINT. For the main thread of a program whose work is in others."""
    # A handler that set a threading.Event could meet its lock held by the very thread that waits on it.
    asked: list[int] = []
    with handled((signal.SIGTERM, signal.SIGINT), lambda number, _: asked.append(number)):
        while not asked:
            time.sleep(poll_s)


def not_ignored(numbers: Iterable[int]) -> list[int]:
    """Leave out what is ignored: nohup has SIGHUP ignored, and so it stays."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


class Forwarding:
    """The forwarding of signals from this process to its child until the child has ended; later ones do nothing.

    ``numbers``: the signal to send for each one received. The child's pid is signalled only while it cannot belong to
    another process.
    """

    def __init__(self, child: int, numbers: Mapping[int, int]) -> None:
        self._child, self._numbers, self._alive = child, numbers, True
        for number in numbers:
            signal.signal(number, self._pass_on)

    def _pass_on(self, signum: int, _frame: FrameType | None) -> None:
        if self._alive:
            os.kill(self._child, self._numbers[signum])

    def wait(self) -> int:
        """Wait for the child's end and return its exit code, -N for a signal.

        The child is not collected: if this process is killed before it reports, its adopter can still read the code.
        """
        end: Any = os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOWAIT)  # only WNOHANG may have none
        self._alive = False
        return int(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status)
