"""Time as a parameter: the module ``time`` is a clock, and tests pass one that they set themselves."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """A source of time. ``time()``: wall clock, in seconds since the epoch; ``monotonic()`` is never set back."""

    def time(self) -> float: ...

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


def duration(seconds: float) -> str:
    """Return ``seconds`` as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def local_time(moment: float | str | None) -> str:
    """Return a time, ISO 8601 or seconds since the epoch, on this user's clock: "2026-01-31 12:00:00 +0800".

    "" for none, and for what is no time.
    """
    try:
        when = datetime.fromtimestamp(moment) if isinstance(moment, float) else datetime.fromisoformat(moment or "")
    except (ValueError, TypeError, OverflowError, OSError):
        return ""
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def seconds_text(seconds: float | None) -> str:
    """Return a short time as "0.42 s" or "12.3 s", one above 100 s as m:ss or h:mm:ss; "" for none."""
    if seconds is None:
        return ""
    if seconds >= 100:
        return duration(seconds)
    return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.1f} s"
