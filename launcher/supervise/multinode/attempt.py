"""The attempt as one host has it: the ranks of this host, with the leader's orders in place of signals.

How a rank of this host failed is found here, where its process and its log are. What takes all hosts to know (whether
ranks are late or hang, and when all are done) is left to the leader.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from pathlib import Path

from launcher.common.atomic import write_atomic
from launcher.jobs import JobPaths
from launcher.jobs.events import read_position
from launcher.plan.launch import Launch
from launcher.schedulers import SCHEDULED
from launcher.supervise.attempt import Attempt, Outcome
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
from launcher.supervise.rank_states import Failure, Rank
from launcher.supervise.stacks import dump_stacks
from launcher.supervise.stop_signals import StopRequest, StopSignals

_FOREVER_S = 1e9


class NodeAttempt(Attempt):
    """``stdin``: a descriptor whose end means that the leader is gone; None where it says nothing."""

    def __init__(
        self, paths: JobPaths, launch: Launch, signals: StopSignals, link: LeaderLink, *, stdin: int | None = None
    ) -> None:
        super().__init__(paths, launch, signals, _tell_nobody)
        self.link = link
        self._heartbeat_s = heartbeat_s(launch.limits.lost_s)
        self._report_at = 0.0
        self._cut = False
        self._dumped = False
        if launch.where.get("kind") in SCHEDULED:
            # A scheduler that takes the host away sends TERM to every process at once; ranks shall save first.
            self.end_signal = signal.SIGHUP
        link.report.state = STARTING
        if stdin is not None:
            self._selector.register(stdin, selectors.EVENT_READ, _LeaderLine(stdin))

    def _program_log(self, name: str) -> Path:
        """Of each host its own: one file that two hosts append to loses lines on NFS."""
        return self.paths.log(f"{name}_{self.launch.node_rank}" if self.launch.node_rank else name)

    # ------------------------------------------------------------------------------------------------ reporting

    def _tick(self, timeout_s: float = 0.1) -> None:
        super()._tick(timeout_s)
        if self.link.report.state == STARTING and self.states.all_ready:
            self.link.report.state = RUNNING
        passed_on = self.signals.request_to_pass_on()
        if passed_on and self.link.report.stop_signal is None:
            self.link.report.stop_signal = passed_on
            self.link.poke()
        if time.monotonic() >= self._report_at:
            self._report_at = time.monotonic() + self._heartbeat_s
            self._note_ranks()
        if self.link.command.stacks and not self._dumped:
            self._dumped = True
            dump_stacks(self.paths, self.states)

    def _note_ranks(self) -> None:
        report = self.link.report
        report.step_s, report.busy = self.states.step_time_s(), self.states.busy
        report.ranks = {
            rank.rank_id: RankReport(state=_state(rank), step=read_position(self.paths.rank_position(rank.rank_id)))
            for rank in self.states.ranks.values()
        }

    def _other(self, data: object) -> None:
        if not isinstance(data, _LeaderLine):
            super()._other(data)
            return
        self._cut = data.ended()
        if self._cut:
            self._selector.unregister(data.handle)

    # ------------------------------------------------------------------------------------------------ orders

    def _stops(self) -> int:
        """A signal to this process is passed to the leader, who may let all hosts save first; SIGHUP is no request."""
        command = self.link.command
        if self._cut or self.link.leader_lost or signal.SIGHUP in self.signals.received:
            return 2
        if command.action == END or command.hurry:
            return 2
        return 1 if command.action == STOP else 0

    def _stop_request(self) -> StopRequest:
        return StopRequest(grace_s=self.link.command.grace_s, save=self.link.command.save and self._stops() < 2)

    def _stop_as_asked(self) -> Outcome:
        failure = self.states.first_failure() if self.states.failing else None
        return self._fail(failure) if failure else super()._stop_as_asked()

    def _save_first(self, grace_s: float) -> int | None:
        """Say how far the ranks are; the leader names a step that none of any host has begun."""
        self._note_ranks()
        self.link.report.state = SAVING
        self.link.poke()
        self._for(grace_s, lambda: self.link.command.stop_at is not None or self._stops() > 1 or self.states.failing)
        stop_at = self.link.command.stop_at
        if stop_at is None:
            return None
        with contextlib.suppress(OSError):
            write_atomic(self.paths.stop_at, f"{stop_at}\n", parents=False)
        self._for(grace_s, lambda: self.states.all_done or self._stops() > 1 or self.states.failing)
        if not self.states.all_done:
            return None
        self._leave_together()
        return stop_at

    def _finish(self) -> Outcome:
        """All is saved here; others may still need MindSpore's scheduler, which runs on one of the hosts."""
        self._leave_together()
        return super()._finish()

    def _leave_together(self) -> None:
        self._note_ranks()
        self.link.report.state = DONE
        self.link.poke()
        self._for(_FOREVER_S, lambda: self._stops() > 1)

    # -------------------------------------------------------------------------------------------- left to the leader

    def _late(self) -> Failure | None:
        return None

    def _hanging(self) -> Failure | None:
        return None


def _tell_nobody(_state: str, _watch: object) -> None:
    """The job's states are the leader's to tell."""


class _LeaderLine:
    def __init__(self, handle: int) -> None:
        self.handle = handle

    def ended(self) -> bool:
        try:
            return not os.read(self.handle, 4096)
        except OSError:
            return True


def _state(rank: Rank) -> str:
    if rank.done:
        return "done"
    if rank.failed:
        return "failed"
    return "ready" if rank.ready else "begun" if rank.begun else "new"
