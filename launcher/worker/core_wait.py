"""The time in which a rank was ready to run and no core was free: what tells a busy core from a slow rank."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

# A reading costs some 20 microseconds a thread. MindSpore has hundreds of threads on a large host, so the readings are
# as rare as it takes to stay below this share of the time.
_MOST_SHARE = 0.01


class CoreWait:
    """The seconds that threads of this process waited for a core, summed over threads.

    Linux counts them for each thread in /proc/self/task/*/schedstat: time on a core, time waiting for one (both in
    nanoseconds), number of turns (Documentation/scheduler/sched-stats.rst).
    """

    def __init__(self, folder: Path = Path("/proc/self/task"), clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._waited, self._next = self._read(), -1.0

    def since_last(self) -> float | None:
        """Return the seconds since the last reading; None where Linux does not count, or no reading is due yet."""
        began = self._clock()
        if self._waited is None or began < self._next:
            return None
        before, self._waited = self._waited, self._read()
        ended = self._clock()
        self._next = ended + (ended - began) / _MOST_SHARE
        # Threads that have ended take their time with them.
        return None if self._waited is None else max(0.0, self._waited - before)

    def _read(self) -> float | None:
        try:
            with os.scandir(self._folder) as threads:
                files = [f"{thread.path}/schedstat" for thread in threads]
        except OSError:
            return None
        found = [nanoseconds for file in files if (nanoseconds := _waited(file)) is not None]
        return sum(found) / 1e9 if found else None


def _waited(file: str) -> int | None:
    """Return the nanoseconds in ``file``; None where a thread has ended meanwhile, or Linux does not count."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return int(os.read(handle, 100).split()[1])
    except (OSError, ValueError, IndexError):
        return None
    finally:
        os.close(handle)
