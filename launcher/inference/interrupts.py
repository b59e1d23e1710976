"""Ctrl-C while MindSpore runs.

MindSpore puts a handler of its own on SIGINT whenever it compiles or runs a graph, which sends SIGTERM to the process:
no Python code would hear of Ctrl-C. So SIGINT is held back, in every thread, and asked for between two tokens. Must be
entered before anything starts threads (numpy does when it is imported), as threads inherit what is held back.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_HELD = {signal.SIGINT}


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT waits. What it gives says, once for each, whether one came. Then SIGINT is as before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield lambda: signal.sigtimedwait(_HELD, 0) is not None
    finally:
        _restore_handler()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def let_through() -> Iterator[None]:
    """Inside ``held_back``, where MindSpore does not run: Ctrl-C raises KeyboardInterrupt."""
    _restore_handler()
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _restore_handler() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
