"""The supervisor: runs a job's attempts and decides on another; the only writer of job.json while it lives."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from launcher import jobs
from launcher.cluster.locks import hold
from launcher.cluster.queue import wait_and_hold
from launcher.common.processes import ProcessId, adopt_orphans
from launcher.errors import JobFailed, LauncherError
from launcher.jobs import REQUEUED, JobPaths, JobRecord
from launcher.jobs.events import EventWriter
from launcher.jobs.verdict import EN, Verdict
from launcher.plan.launch import Launch, read_launch, write_launch
from launcher.plan.resume import beginning, left_behind, prepare_attempt
from launcher.schedulers import registry
from launcher.supervise.attempt import Attempt, Outcome
from launcher.supervise.attempt_control import LocalControl
from launcher.supervise.free_cards import wait_until_free
from launcher.supervise.rank_states import Failure, RankStates
from launcher.supervise.restarts import Decision, restarts_so_far
from launcher.supervise.spare_hosts import Next, decide_next, suspect_of
from launcher.supervise.standby import Standby
from launcher.supervise.stop_signals import StopSignals, catch_stop_signals
from launcher.supervise.verdict import Findings, find_verdict, with_restart

if TYPE_CHECKING:
    from launcher.supervise.multinode.leader import Leader

_RESERVE_BYTES = 64 << 10
_PAUSE_LOOK_S = 0.2


def supervise(paths: JobPaths, guard: ProcessId) -> int:
    """Run the job at ``paths`` to its end and record it in job.json. Returns the exit code recorded there."""
    # Ranks of an engine that dies become our children: their exit codes reach us, not init.
    adopt_orphans()
    record = JobRecord.from_json(paths.record.read_text(encoding="utf-8"))
    record = replace(record, supervisor=ProcessId.current(), guard=guard)
    with catch_stop_signals() as signals:
        return Supervisor(paths.of_attempt(record.attempt), read_launch(paths), record, signals).run()


class Supervisor:
    """Carries one job through its attempts."""

    def __init__(self, paths: JobPaths, launch: Launch, record: JobRecord, signals: StopSignals) -> None:
        self.paths, self.launch, self.record, self.signals = paths, launch, record, signals
        self.standby = Standby(launch, enabled=launch.limits.max_restarts > 0)

    def run(self) -> int:
        self._reserve()  # first of all: the job itself may fill the disk
        self._write(replace(self.record, started=jobs.now()))
        try:
            with self._cards() as held:
                outcome = self._attempts() if held else Outcome(state=jobs.CANCELLED)
        except LauncherError as error:
            outcome = Outcome(state=jobs.FAILED, verdict=self._own_failure(error.message))
        except Exception as error:
            traceback.print_exc()
            outcome = Outcome(state=jobs.FAILED, verdict=self._own_failure(f"{type(error).__name__}: {error}"))
        self.standby.end()
        # Cards and locks are given back by now: the scheduler may start the job anew on this host at once.
        if outcome.later and self._put_off(outcome):
            return REQUEUED
        return self._conclude(outcome)

    def _put_off(self, outcome: Outcome) -> bool:
        """Leave the job to its scheduler, which runs it again. The record is written first: being told, the scheduler
        ends this process."""
        saved = "" if outcome.saved_step is None else f"; saved at step {outcome.saved_step}"
        before = self.record
        warnings = (*before.warnings, *outcome.warnings)
        self._write(replace(before, state=jobs.PLANNED, note=f"{outcome.later}{saved}", host="", warnings=warnings))
        if registry.get(self.launch.scheduler).requeue():
            return True
        self.record = before  # nobody will go on with it, so it ends here like any other
        return False

    @contextmanager
    def _cards(self) -> Iterator[bool]:
        """Hold the locks on the job's cards. Yields False when the job was stopped while it waited for them."""
        names, holder = self.launch.locks, f"job {self.record.job_id}"
        if not self.launch.wait_for_locks:
            with hold(names, holder=holder):
                yield True
            return
        stopped = lambda: self.signals.stop_level() > 0 or self.paths.is_gone  # noqa: E731
        priority = self.launch.priority
        with wait_and_hold(names, holder=holder, tell=self._say, give_up=stopped, priority=priority) as held:
            self._say(None)  # it no longer waits for cards
            yield held

    def _say(self, note: str | None) -> None:
        if note != self.record.note:
            self._write(replace(self.record, note=note))

    def _attempts(self) -> Outcome:
        outcome = self._attempt()
        while outcome.verdict is not None and not self._may_not_go_on():
            following = decide_next(self.paths, self.launch, self.record, outcome.verdict)
            told = self._with(outcome, following)
            if not following.decision.again:
                return told
            if not self._pause(following.decision):
                return outcome  # the job was stopped meanwhile: there is no restart to tell of
            self._replace_host(following)
            self._next_attempt(told)
            outcome = self._attempt()
        return outcome

    def _with(self, outcome: Outcome, following: Next) -> Outcome:
        """Return ``outcome`` with the decision on a restart in its verdict, where restarts were asked for."""
        if outcome.verdict is None or not self.launch.limits.max_restarts:
            return outcome
        with EventWriter(self.paths.supervisor_events, None) as events:
            events.report(following.event)
        return replace(outcome, verdict=replace(outcome.verdict, restart=following.decision.why))

    def _replace_host(self, following: Next) -> None:
        """Write the hosts of the next attempt where a resume reads them too."""
        launch = following.of(self.launch)
        if launch != self.launch:
            write_launch(self.paths, launch)
            self.launch = launch

    def _pause(self, decision: Decision) -> bool:
        """Wait before a restart. Returns False when the job was stopped meanwhile."""
        until = time.monotonic() + decision.pause_s
        while (left := until - time.monotonic()) > 0 and not self._may_not_go_on():
            self._say(decision.why[EN])
            time.sleep(min(_PAUSE_LOOK_S, left))
        return not self._may_not_go_on()

    def _attempt(self) -> Outcome:
        self.standby.needed = restarts_so_far(self.record.earlier) < self.launch.limits.max_restarts
        self.standby.taken = False
        attempt = self._make_attempt()
        outcome = attempt.run()
        if self.standby.taken and attempt.states.progress_at is None:
            self.standby.end()  # should it be their fault, the next attempt starts like the first
        self.record = replace(self.record, processes=_processes(attempt.states))
        if outcome.verdict is None:
            return outcome
        suspect = suspect_of(outcome.verdict, self.launch, attempt.launch)
        return replace(outcome, verdict=replace(outcome.verdict, suspect=suspect))

    def _make_attempt(self) -> Attempt | Leader:
        """Return an attempt on this host, or one on several hosts that is led from here."""
        if not self.launch.nodes:
            control = LocalControl(self.paths, self.signals, self.launch.limits.grace_s)
            return Attempt(self.paths, self.launch, control, self._tell, standby=self.standby)
        from launcher.supervise.multinode.leader import Leader

        return Leader(self.paths, self.launch, self.signals, self._tell)

    # ------------------------------------------------------------------------------------------------ restarts

    def _may_not_go_on(self) -> bool:
        return self.signals.stop_level() > 0 or self.paths.is_gone or not self._can_bring_agents_back()

    def _can_bring_agents_back(self) -> bool:
        """Return True if another attempt can have agents: they end with their attempt."""
        return not self.launch.nodes or registry.get(self.launch.scheduler).restarts_agents

    def _next_attempt(self, outcome: Outcome) -> None:
        verdict = outcome.verdict
        self.record = jobs.next_attempt(replace(self.record, verdict=verdict.to_dict() if verdict else None))
        self.paths = self.paths.of_attempt(self.record.attempt)
        prepare_attempt(self.paths, self.record.cards)
        if left_behind(self.paths, self.record.cards):
            told_of = (*self.record.warnings, beginning(self.paths, self.record.cards))
            self.record = replace(self.record, warnings=told_of)
        # The old port may still be held by connections that linger, or by a scheduler that is on its way out.
        self.launch = self.launch.with_free_port()
        self._write(self.record)
        # The driver gives a card back a while after its process ended. On several hosts agents wait for their own.
        if self.launch.target == "Ascend" and not self.launch.nodes:
            cards = [rank.device_id for rank in self.launch.ranks]
            wait_until_free(cards, give_up=lambda: self.signals.stop_level() > 0)

    # ------------------------------------------------------------------------------------------------ the record

    def _tell(self, state: str, states: RankStates) -> None:
        self._write(replace(self.record, state=state, processes=_processes(states)))

    def _conclude(self, outcome: Outcome) -> int:
        code = {jobs.SUCCEEDED: 0, jobs.FAILED: JobFailed.exit_code}.get(outcome.state)
        if code is None:
            # As a shell has it: 128 + the signal that asked first.
            code = 128 + next(iter(self.signals.received), signal.SIGTERM)
        verdict = with_restart(outcome.verdict).to_dict() if outcome.verdict else None
        note = None if outcome.saved_step is None else f"saved at step {outcome.saved_step}"
        record = replace(
            self.record,
            state=outcome.state,
            ended=jobs.now(),
            exit_code=code,
            verdict=verdict,
            warnings=(*self.record.warnings, *outcome.warnings),
            note=note,
        )
        # Before the last record is written: the reserve's blocks are its room on a full disk.
        for file in (self.paths.reserve, self.paths.control):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        self._write(record)
        return code

    def _write(self, record: JobRecord) -> None:
        """Write job.json. On a full disk the reserve is given up; without room even then the record goes to the log.

        A job folder that was removed is not made again.
        """
        self.record = record
        if self.paths.is_gone:
            return
        # Three times: once as it is, once with the reserve given up, once after others had time to free something.
        for attempt in range(3):
            try:
                jobs.write_record(self.paths, record)
                return
            except OSError:
                with contextlib.suppress(OSError):
                    self.paths.reserve.unlink(missing_ok=True)
                time.sleep(0.05 * attempt)
        print(f"cannot write {self.paths.record}: {record.to_json()}", flush=True)

    def _reserve(self) -> None:
        with contextlib.suppress(OSError):
            # Random bytes: a file system that compresses or leaves out zeros would reserve nothing.
            self.paths.reserve.write_bytes(os.urandom(_RESERVE_BYTES))

    def _own_failure(self, message: str) -> Verdict:
        failure = Failure(kind="foreign", time=time.time(), detail=message)
        return find_verdict(self.paths, self.launch.ranks, RankStates(0, None), failure, Findings())


def _processes(states: RankStates) -> dict[str, ProcessId]:
    return {f"rank_{rank.rank_id}": rank.process for rank in states.ranks.values() if rank.process}
