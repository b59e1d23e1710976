"""Bars for work whose size is known, and lines that count the seconds of work whose size is not."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click

Say = Callable[[str], None]

_TICK_S = 1.0


def progress(stack: ExitStack, label: str) -> Any:
    """A progress bar on stderr that ``stack`` closes; None when nobody watches.

    It is called with what was done since the last call and with what there is to do, from several threads.
    """
    if not sys.stderr.isatty():
        return None
    bar: Any = None
    lock = threading.Lock()  # click's bar counts in several steps

    def show(count: int, total: int) -> None:
        nonlocal bar
        with lock:
            if bar is None:
                made: Any = click.progressbar(length=total, label=f"  {label}", file=sys.stderr)
                bar = stack.enter_context(made)
            bar.update(count)

    return show


@contextmanager
def waiting(first: str = "") -> Iterator[Say]:
    """A line on stderr that says what is being done, and for how many seconds; it goes at the end.

    Yields what changes the line: "" takes it away, before anything else is printed. Nothing is shown when nobody
    watches, or where a terminal cannot clear a line. MindSpore's output may be redirected meanwhile
    (``launcher.upstream.quiet``). Leave it before processes are forked: it has a thread.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield lambda _: None
        return
    sys.stderr.flush()
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="replace") as terminal:
        line = _Line(terminal)
        line.say(first)
        ticker = threading.Thread(target=line.tick, name="waiting", daemon=True)
        ticker.start()
        try:
            yield line.say
        finally:
            line.ended.set()
            ticker.join()
            line.say("")


class _Line:
    """The line of ``waiting``: each text has its own seconds."""

    def __init__(self, terminal: Any) -> None:
        self._terminal, self._lock = terminal, threading.Lock()
        self._text, self._since = "", 0.0
        self.ended = threading.Event()

    def say(self, text: str) -> None:
        with self._lock:
            if text != self._text and not (text and self.ended.is_set()):
                self._text, self._since = text, time.monotonic()
                self._draw()

    def tick(self) -> None:
        """Count the seconds, until the end."""
        while not self.ended.wait(_TICK_S):
            with self._lock:
                if self._text:
                    self._draw()

    def _draw(self) -> None:
        columns = os.get_terminal_size(self._terminal.fileno()).columns or 80
        room = columns - 1 if self._text.isascii() else columns // 2  # wide characters take two columns
        shown = f"{self._text} ... {time.monotonic() - self._since:.0f} s"[:room] if self._text else ""
        self._terminal.write(f"\r{shown}\x1b[K")  # and clears what is right of it
        self._terminal.flush()
