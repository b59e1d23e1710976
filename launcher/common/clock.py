"""Time as a parameter: the module ``time`` is a clock, and tests bring one that they turn themselves."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """``time()`` is the wall clock, in seconds since the epoch; ``monotonic()`` is never set back."""

    def time(self) -> float: ...

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...
