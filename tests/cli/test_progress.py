"""What a terminal shows while something takes long: a bar that only grows, and a line that counts the seconds."""

from __future__ import annotations

import os
import pty
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import TextIO

import pytest

from launcher.cli.output.progress import progress, waiting


class Screen:
    """The side of a terminal at which a person looks."""

    def __init__(self, master: int, terminal: TextIO, patch: pytest.MonkeyPatch) -> None:
        os.set_blocking(master, False)
        self._master, self._terminal, self._patch = master, terminal, patch

    def turn_on(self) -> None:
        """Make stderr this terminal. In the test itself: pytest sets stderr anew after fixtures."""
        self._patch.setattr(sys, "stderr", self._terminal)

    def read(self) -> str:
        """Return what is new."""
        seen = b""
        with suppress(BlockingIOError):
            while True:  # a terminal gives some 4,000 bytes at a time
                seen += os.read(self._master, 1 << 16)
        return seen.decode()

    def show(self, text: str) -> None:
        """Wait for ``text``."""
        seen = ""
        for _ in range(1000):
            seen += self.read()
            if text in seen:
                return
            time.sleep(0.01)
        raise AssertionError(f"no {text!r} in {seen!r}")


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    """A terminal that can be stderr."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setenv("TERM", "vt100")
        yield Screen(master, terminal, monkeypatch)
    os.close(master)


def test_a_bar_fed_by_threads_never_goes_back_and_ends_at_100_percent(screen: Screen) -> None:
    screen.turn_on()
    blocks = [3, 1, 4, 1, 5] * 40

    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        show = progress(stack, "merge")
        list(pool.map(lambda count: show(count, sum(blocks)), blocks))

    percents = [int(found) for found in re.findall(r"(\d+)%", screen.read())]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert len(set(percents)) > 50


def test_a_line_says_what_is_waited_for_and_goes(screen: Screen) -> None:
    screen.turn_on()
    with waiting("planning the run") as say:
        say("loading x")
        say("")
        say("")
        say("compiling x")

    planning, loading, compiling = (f"{text} ... 0 s" for text in ("planning the run", "loading x", "compiling x"))
    assert screen.read() == "".join(f"\r{text}\x1b[K" for text in (planning, loading, "", compiling, ""))
    say("loading another")  # by whoever kept it: nothing comes
    assert screen.read() == ""


def test_the_line_counts_the_seconds(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    screen.turn_on()
    now = [100.0]
    monkeypatch.setattr("launcher.cli.output.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("launcher.cli.output.progress._TICK_S", 0.01)
    with waiting("importing") as say:
        now[0] = 175.0
        screen.show("importing ... 75 s")
        say("compiling")
        screen.show("compiling ... 0 s")


def test_a_pipe_and_a_dumb_terminal_are_told_nothing(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen.turn_on()
    monkeypatch.setenv("TERM", "dumb")
    with waiting("loading") as say:
        say("compiling")
    assert screen.read() == ""

    monkeypatch.setattr(sys, "stderr", sys.stdout)
    with waiting("loading") as say, ExitStack() as stack:
        say("compiling")
        assert progress(stack, "merge") is None
    assert capsys.readouterr().out == ""
