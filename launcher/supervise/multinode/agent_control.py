"""The leader's command over the attempt of one host, in place of signals: the control that an agent's ``Attempt`` has.

The cause of a rank's failure is found here, where its process and its log are. The leader decides everything that
depends on all hosts: late ranks, hangs, and the common end.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial

from launcher.common.clock import Clock
from launcher.jobs import JobPaths
from launcher.jobs.events import read_position
from launcher.plan.launch import Launch
from launcher.schedulers import registry
from launcher.supervise.attempt_control import OnReadable
from launcher.supervise.multinode.leader_link import (
    DONE,
    END,
    RUNNING,
    SAVING,
    STARTING,
    STOP,
    LeaderLink,
    RankReport,
    heartbeat_s,
)
from launcher.supervise.rank_states import Rank, RankStates
from launcher.supervise.stacks import dump_stacks
from launcher.supervise.stop_signals import StopRequest, StopSignals


class AgentControl:
    """The control of one host. ``stdin``: a descriptor whose end means that the leader is gone; None if it has none."""

    answers_for_all: bool = False

    def __init__(
        self,
        paths: JobPaths,
        launch: Launch,
        signals: StopSignals,
        link: LeaderLink,
        *,
        stdin: int | None = None,
        clock: Clock = time,
    ) -> None:
        self._paths, self._signals, self._link, self._stdin, self._clock = paths, signals, link, stdin, clock
        # A scheduler that takes the host away sends TERM to every process at once; ranks shall save first.
        taken_away = registry.get(launch.scheduler).takes_hosts_away
        self.end_signal: int = signal.SIGHUP if taken_away else signal.SIGTERM
        self._heartbeat_s = heartbeat_s(launch.limits.lost_s)
        self._report_at = 0.0
        self._states: RankStates | None = None
        self._cut = False
        self._dumped = False
        link.report.state = STARTING

    def descriptors(self) -> Mapping[int, OnReadable]:
        found: dict[int, OnReadable] = {self._signals.wake_fd: self._signals.drain}
        return found if self._stdin is None else {**found, self._stdin: partial(self._hear_leader, self._stdin)}

    def _hear_leader(self, stdin: int) -> bool:
        """Read the line that the leader holds open: it carries no data, and its end means that the leader is gone."""
        try:
            self._cut = not os.read(stdin, 4096)
        except OSError:
            self._cut = True
        return not self._cut

    # ------------------------------------------------------------------------------------------------ reports

    def look(self, states: RankStates) -> None:
        """Report the ranks' progress, and a signal that arrived here, to the leader."""
        self._states = states
        if self._link.report.state == STARTING and states.all_ready:
            self._link.report.state = RUNNING
        passed_on = self._signals.request_to_pass_on()
        if passed_on and self._link.report.stop_signal is None:
            self._link.report.stop_signal = passed_on
            self._link.poke()
        # At the pace of the heartbeats: reading every rank's position at each tick would load the shared folder.
        if self._clock.monotonic() >= self._report_at:
            self._report_at = self._clock.monotonic() + self._heartbeat_s
            self._note_ranks()
        if self._link.command.stacks and not self._dumped:
            self._dumped = True
            dump_stacks(self._paths, states)

    def _note_ranks(self) -> None:
        report, states = self._link.report, self._states
        if states is None:
            return
        report.step_s, report.busy = states.step_time_s(), states.busy
        report.ranks = {
            rank.rank_id: RankReport(state=_state(rank), step=read_position(self._paths.rank_position(rank.rank_id)))
            for rank in states.ranks.values()
        }

    def _say(self, state: str) -> None:
        """Report ``state`` and the ranks' progress at once; do nothing if ``state`` was reported already."""
        if self._link.report.state != state:
            self._note_ranks()
            self._link.report.state = state
            self._link.poke()

    # ------------------------------------------------------------------------------------------------ commands

    def stop_level(self) -> int:
        """Return the leader's command as a stop level.

        A signal to this process is passed on to the leader, who may let all hosts save first. SIGHUP is not a request:
        it means that the process above this one was killed.
        """
        command = self._link.command
        if self._cut or self._link.leader_lost or signal.SIGHUP in self._signals.received:
            return 2
        if command.action == END or command.hurry:
            return 2
        return 1 if command.action == STOP else 0

    def stop_request(self) -> StopRequest:
        command = self._link.command
        return StopRequest(grace_s=command.grace_s, save=command.save and self.stop_level() < 2)

    def stop_step(self, entered: Callable[[], Mapping[int, int]]) -> int | None:
        """Report the ranks' positions; return the step that the leader names, which no rank of any host has begun."""
        self._say(SAVING)
        return self._link.command.stop_at

    def may_leave(self) -> bool:
        """Report that all is saved here; other hosts may still need MindSpore's scheduler, which runs on one host."""
        self._say(DONE)
        return self.stop_level() > 1


def _state(rank: Rank) -> str:
    if rank.done:
        return "done"
    if rank.failed:
        return "failed"
    return "ready" if rank.ready else "begun" if rank.begun else "new"
