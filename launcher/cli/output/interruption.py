"""Signals that ask a command to end: what it was making is cleared away first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from launcher.common.signals import handled, not_ignored
from launcher.errors import JobCancelled

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Interrupted(BaseException):
    """Not an Exception: nothing that deals with errors on the way takes it for one."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


@contextmanager
def interruptible(what: str) -> Iterator[None]:
    """End the block where it stands when INT, TERM or HUP comes; its ``finally`` clauses run, further signals wait.

    what: what is being made, for the message. Raises JobCancelled, whose exit code is 128 plus the signal's number.
    """
    asked = False

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise _Interrupted(signum)

    try:
        with handled(not_ignored(_SIGNALS), on_signal):
            yield
    except _Interrupted as error:
        name = signal.Signals(error.signum).name
        raise JobCancelled(
            f"{name}: {what} is not written", signum=error.signum, hint="run the same command again"
        ) from error
