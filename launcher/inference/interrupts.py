"""Ctrl-C while MindSpore runs, which answers on Ascend.

MindSpore installs its own SIGINT handler whenever it compiles or runs a graph; the handler sends SIGTERM to the
process, so no Python code would see Ctrl-C. Therefore SIGINT is blocked in every thread and polled between two tokens.
Must be entered before anything starts threads (importing numpy does), because threads inherit the signal mask.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_HELD = {signal.SIGINT}


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Block SIGINT inside. The yielded function returns True once per SIGINT that came. Restores SIGINT at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield lambda: signal.sigtimedwait(_HELD, 0) is not None
    finally:
        _restore_handler()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def let_through() -> Iterator[None]:
    """Unblock SIGINT inside ``held_back`` where MindSpore does not run: Ctrl-C raises KeyboardInterrupt."""
    _restore_handler()
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _restore_handler() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
