"""Time as a parameter: the module ``time`` is a clock, and tests pass one that they set themselves."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """A source of time. ``time()``: wall clock, in seconds since the epoch; ``monotonic()`` is never set back."""

    def time(self) -> float: ...

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...
