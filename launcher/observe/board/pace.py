"""Reading files again only when they have changed, and never for more than a small share of the time."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

Value = TypeVar("Value")
Stamp = tuple[int, int, int]

# A value that took a second to make is made again after this many seconds at the earliest.
_REST = 20.0


def stamp(path: Path) -> Stamp | None:
    """Return what changes when the file does; None when there is none, or something that is no file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if stat.S_ISREG(found.st_mode) else None


class Paced(Generic[Value]):
    """A value that follows from files. ``get`` makes it again when ``key`` is another: at once when the first item of
    ``key`` is, else after a rest in proportion to what making it has cost."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._key: tuple[Hashable, ...] | None = None
        self._due = 0.0
        self._value: Value | None = None

    @property
    def is_empty(self) -> bool:
        return self._value is None

    def get(self, key: tuple[Hashable, ...], make: Callable[[], Value]) -> Value:
        """Return the value for ``key``, or while it rests the one before."""
        known, now = self._key, self._clock()
        rests = known is not None and (known == key or (known[0] == key[0] and now < self._due))
        if rests and self._value is not None:
            return self._value
        self._value, self._key = make(), key
        ended = self._clock()
        self._due = ended + _REST * (ended - now)
        return self._value
