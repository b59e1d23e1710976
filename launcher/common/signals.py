"""Forwarding of signals to a child process."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any


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
