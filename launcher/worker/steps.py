"""The times of a rank's steps: when it enters one, how long it takes, and what the rank waited for before it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from launcher.jobs.events import Position
from launcher.worker.core_wait import CoreWait


class StepClock:
    """The time of a rank's steps and of its waits for input, without what it spends on saving and evaluating.

    MindFormers' callbacks save before ours sees a step's end, and evaluate after it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began, self._ended, self._aside = clock(), math.nan, 0.0

    def put_aside(self, seconds: float) -> None:
        """Take ``seconds`` out of the step, or the wait, that is being timed."""
        self._aside += seconds

    def begin(self) -> float | None:
        """Return the seconds since the last step's end; None before the first."""
        self._began, aside, self._aside = self._clock(), self._aside, 0.0
        return None if math.isnan(self._ended) else max(0.0, self._began - self._ended - aside)

    def end(self) -> float:
        """Return the seconds since the step began."""
        self._ended, aside, self._aside = self._clock(), self._aside, 0.0
        return max(0.0, self._ended - self._began - aside)


class StepWatch:
    """What a step event tells of time. Works for any loop that calls ``enter`` and ``leave`` around each step."""

    def __init__(self, position: Position) -> None:
        self.clock = StepClock()
        self._position, self._cores = position, CoreWait()
        self._begun, self._input_s = time.time(), None  # type: float, float | None

    def enter(self, step: int) -> None:
        """Note that the rank enters ``step``."""
        self._input_s, self._begun = self.clock.begin(), time.time()
        # In a file of its own, not an event: a rank that hangs in a step must be seen to have entered it.
        self._position.enter(step)

    def leave(self) -> dict[str, Any]:
        """Return the fields of the step event that are about time."""
        return {
            "step_s": round(self.clock.end(), 4),
            "input_s": _short(self._input_s),
            "begun": round(self._begun, 4),
            "core_wait_s": _short(self._cores.since_last()),
        }


def _short(seconds: float | None) -> float | None:
    """Return ``seconds`` to 0.1 ms, which keeps events short."""
    return None if seconds is None else round(seconds, 4)
