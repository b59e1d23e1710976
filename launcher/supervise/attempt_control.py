"""The command over an attempt: this process's own signals, or the leader of a job on several hosts."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Protocol

from launcher import jobs
from launcher.jobs import JobPaths
from launcher.supervise.rank_states import RankStates
from launcher.supervise.stop_signals import StopRequest, StopSignals

# Called when its descriptor is readable; False when the descriptor is at its end.
OnReadable = Callable[[], bool]


class AttemptControl(Protocol):
    """The questions and reports of an attempt. ``end_signal``: the signal that asks the ranks to end.

    ``answers_for_all``: the job has no ranks elsewhere, so late and hanging ones are judged here.
    """

    end_signal: int
    answers_for_all: bool

    def descriptors(self) -> Mapping[int, OnReadable]:
        """Return the descriptors to watch, each with the function to call when it is readable."""
        ...

    def look(self, states: RankStates) -> None:
        """Note the ranks' progress; called at every tick."""
        ...

    def stop_level(self) -> int:
        """Return 0 to go on, 1 to stop in order, 2 to stop at once."""
        ...

    def stop_request(self) -> StopRequest: ...

    def stop_step(self, entered: Callable[[], Mapping[int, int]]) -> int | None:
        """Return the step after which all ranks of the job save and end; None while it is not known.

        ``entered``: returns the step that each rank has entered last.
        """
        ...

    def may_leave(self) -> bool:
        """Return whether ranks that have saved everything may be ended."""
        ...


class LocalControl:
    """Signals to this process, and the request that ``launcher stop`` wrote."""

    end_signal: int = signal.SIGTERM
    answers_for_all: bool = True

    def __init__(self, paths: JobPaths, signals: StopSignals, grace_s: float) -> None:
        self._paths, self._signals, self._grace_s = paths, signals, grace_s

    def descriptors(self) -> Mapping[int, OnReadable]:
        return {self._signals.wake_fd: self._signals.drain}

    def look(self, states: RankStates) -> None:
        """Do nothing: followers read the ranks' own reports."""

    def stop_level(self) -> int:
        return self._signals.stop_level()

    def stop_request(self) -> StopRequest:
        return self._signals.request(self._paths, self._grace_s)

    def stop_step(self, entered: Callable[[], Mapping[int, int]]) -> int | None:
        """Return a step that no rank can have begun: ranks wait for each other in every one."""
        return jobs.step_to_stop_at(self._paths, max(entered().values()) + 2)

    def may_leave(self) -> bool:
        return True
