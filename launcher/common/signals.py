"""Signals on their way to a child process."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any


class Forwarding:
    """Signals to this process go to its child until that has ended; later ones do nothing.

    ``numbers``: what comes as which signal. The child's pid is signalled only while it cannot belong to another.
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

        The child is not collected: should we be killed before we have said how it ended, whoever adopts it can tell.
        """
        end: Any = os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOWAIT)  # only WNOHANG may have none
        self._alive = False
        return int(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status)
