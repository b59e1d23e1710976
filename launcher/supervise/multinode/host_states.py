"""The state of every host as read from its status file, and the first of the hosts' failures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launcher import jobs
from launcher.common.clock import Clock
from launcher.jobs.verdict import Verdict
from launcher.plan.launch import Launch, NodePlace
from launcher.schedulers.base import AgentStart
from launcher.schedulers.registration import Registration
from launcher.supervise.judge import HostFacts, LifeSigns
from launcher.supervise.multinode.leader_link import DONE, SAVING


class HostState:
    """One host as the leader sees it.

    ``status``: its agent's last report. ``ahead_s``: estimate of its clock minus ours. ``end``: the report on the
    attempt's end there. ``left_at``, ``left_code``: time and exit code of the end of the process that started it.
    """

    def __init__(self, place: NodePlace, lost_s: float, *, clock: Clock = time) -> None:
        self.place, self._clock = place, clock
        self.signs = LifeSigns(lost_s, clock=clock)
        self.status: dict[str, Any] = {}
        self.start: AgentStart | None = None
        self.here: Registration | None = None
        self.end: dict[str, Any] | None = None
        self.lost: Verdict | None = None
        self.lost_at = 0.0
        self.left_at: float | None = None
        self.left_code: int | None = None
        self.ahead_s: float | None = None
        self.ready = False
        self.steps = 0
        self._least_s: float | None = None

    @property
    def name(self) -> str:
        return self.here.name if self.here else self.place.name

    @property
    def over(self) -> bool:
        return self.end is not None or self.lost is not None

    @property
    def failed(self) -> bool:
        return self.lost is not None or (self.end is not None and self.end["state"] == jobs.FAILED)

    @property
    def state(self) -> str:
        return str(self.status.get("state", ""))

    @property
    def ranks(self) -> dict[int, tuple[str, int]]:
        """Return the state of each rank and the step that it has entered last."""
        return {int(rank_id): (state, step) for rank_id, (state, step) in self.status.get("ranks", {}).items()}

    def note(self, status: dict[str, Any]) -> bool:
        """Take the contents of its status file; return True if they are new."""
        if not self.signs.note(status.get("heartbeat")):
            return False
        self.status = status
        self._note_clock(float(status["time"]) - self._clock.time(), status.get("ahead_most_s"))
        ranks = status.get("ranks", {}).values()
        self.ready = bool(ranks) and all(state in ("ready", "done") for state, _ in ranks)
        self.steps = sum(step for _, step in ranks)
        return True

    def _note_clock(self, least_s: float, most_s: float | None) -> None:
        """Narrow down the difference between its clock and ours.

        Delays are never negative. So the largest difference seen here is a lower bound, and the smallest that the host
        saw an upper bound; the estimate is the middle of the two.
        """
        self._least_s = least_s if self._least_s is None else max(self._least_s, least_s)
        self.ahead_s = self._least_s if most_s is None else (self._least_s + float(most_s)) / 2

    def our_time(self, their_time: float) -> float:
        return their_time - (self.ahead_s or 0.0)

    def facts(self, patience_s: float) -> HostFacts:
        """Return the facts for the judge. ``patience_s``: the time that a last report may take to arrive."""
        return HostFacts(
            registered=self.here is not None,
            ended=self.end is not None,
            cancelled=self.end is not None and self.end["state"] == jobs.CANCELLED,
            silent=self.signs.lost,
            left_s=None if self.left_at is None else self._clock.monotonic() - self.left_at,
            patience_s=patience_s,
        )


@dataclass(frozen=True, kw_only=True)
class HostFailure:
    """A failure on one host. ``failed_at``: by our clock."""

    host: HostState
    verdict: Verdict
    failed_at: float


class HostStates:
    """The hosts of an attempt: the facts on which the leader's judge decides."""

    def __init__(self, launch: Launch, *, clock: Clock = time) -> None:
        self._ranks, self._clock = launch.ranks, clock
        self.hosts = [HostState(place, launch.limits.lost_s, clock=clock) for place in launch.nodes]
        self.progress_at: float | None = None
        self._progress = (0, False)

    def __iter__(self) -> Iterator[HostState]:
        return iter(self.hosts)

    def __len__(self) -> int:
        return len(self.hosts)

    def note_progress(self) -> None:
        """Compare the ranks' steps with those of the last look; while the first step compiles, all are 0."""
        progress = (sum(host.steps for host in self), self.busy)
        if progress[0] and (progress != self._progress or self.progress_at is None):
            self.progress_at = self._clock.monotonic()
        self._progress = progress

    # ------------------------------------------------------------------------------------------------ for the judge

    @property
    def all_ready(self) -> bool:
        return all(host.ready for host in self)

    @property
    def all_done(self) -> bool:
        return all(host.state == DONE or host.over for host in self)

    @property
    def all_gone(self) -> bool:
        """Return True if no host runs the job any more; one whose agent never came runs nothing of it."""
        return all(host.over or not host.here for host in self)

    @property
    def all_saving(self) -> bool:
        return all(host.state in (SAVING, DONE) or host.over for host in self)

    @property
    def failing(self) -> bool:
        return any(host.failed for host in self)

    @property
    def busy(self) -> bool:
        return any(host.status.get("busy") for host in self)

    def step_time_s(self) -> float | None:
        """Return the step time of the slowest host."""
        return max((host.status.get("step_s") or 0.0 for host in self), default=0.0) or None

    def unready(self) -> dict[int, bool]:
        """Return the ranks that are not ready, and whether each has begun; one without any report has not."""
        states = {rank_id: state for host in self for rank_id, (state, _) in host.ranks.items()}
        found = {rank.rank_id: states.get(rank.rank_id, "new") for rank in self._ranks}
        return {rank_id: state == "begun" for rank_id, state in found.items() if state in ("new", "begun")}

    # ------------------------------------------------------------------------------------------------ for the leader

    @property
    def all_registered(self) -> bool:
        return all(host.here for host in self)

    @property
    def any_over(self) -> bool:
        return any(host.over for host in self)

    @property
    def stop_signal(self) -> int:
        """Return the signal that asked an agent to stop, 0 for none."""
        return next((int(host.status["stop_signal"]) for host in self if host.status.get("stop_signal")), 0)

    def entered(self) -> dict[int, int]:
        """Return the step that each rank has entered last, as of its host's last report."""
        return {rank_id: step for host in self for rank_id, (_, step) in host.ranks.items()}

    def fastest_step_s(self) -> float:
        return min((host.status.get("step_s") or 1.0 for host in self), default=1.0)

    def saved_step(self) -> int | None:
        """Return the step that all hosts saved after; None when they did not all save the same."""
        steps = {host.end["saved_step"] if host.end and not host.lost else None for host in self}
        return steps.pop() if len(steps) == 1 else None

    def warnings(self) -> list[str]:
        return [warning for host in self if host.end for warning in host.end["warnings"]]

    def first_failure(self) -> HostFailure | None:
        """Return the earliest failure by our clock, no matter when its report arrived."""
        return min(self._failures(), key=lambda failure: failure.failed_at, default=None)

    def _failures(self) -> Iterator[HostFailure]:
        for host in self:
            if host.lost:
                yield HostFailure(host=host, verdict=host.lost, failed_at=host.lost_at)
            elif host.end and host.end["state"] == jobs.FAILED:
                failed_at = host.our_time(host.end["failed_at"] or self._clock.time())
                yield HostFailure(host=host, verdict=_verdict(host.end["verdict"]), failed_at=failed_at)


def _verdict(raw: Mapping[str, Any]) -> Verdict:
    """Read a verdict that an agent wrote; keys of other versions are ignored."""
    return Verdict(**jobs.known_keys(Verdict, raw))
