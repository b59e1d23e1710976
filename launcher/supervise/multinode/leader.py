"""The leader of an attempt on several hosts: starts agents, checks hosts, sends commands, finds the first failure.

It reads one small file per host and none per rank. Times that hosts report are corrected by the difference of their
clocks to ours, so the first failure is found even where a clock is off by a minute. ``launcher.supervise.judge``
decides what is late, hangs, has failed, is lost or stops, as for one host.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from launcher import jobs
from launcher.common.atomic import write_atomic
from launcher.common.clock import Clock
from launcher.common.json_files import json_or_empty
from launcher.errors import LauncherError
from launcher.jobs import JobPaths
from launcher.jobs.logs import tail
from launcher.jobs.verdict import EN, ZH, Verdict
from launcher.plan.launch import Launch
from launcher.schedulers import registry
from launcher.schedulers.registration import CLOCK_S, Registration, problems
from launcher.supervise.attempt import Outcome, folder_gone
from launcher.supervise.judge import Action, Decision, Judge, Look, Loss, Phase, Scope, StopSequence, judge_host
from launcher.supervise.multinode.agent_processes import AgentProcesses, Agents
from launcher.supervise.multinode.host_states import HostState, HostStates
from launcher.supervise.multinode.host_verdicts import (
    cut,
    foreign,
    hang_verdict,
    host_verdict,
    late_host,
    program_verdict,
    silent,
    with_others,
)
from launcher.supervise.multinode.leader_link import END, ENDED, START, STOP, LeaderCommand, heartbeat_s
from launcher.supervise.multinode.rendezvous import bind_hosts, cluster_of
from launcher.supervise.multinode.status_file import StatusFile, read_status
from launcher.supervise.rank_states import Failure, RankStates
from launcher.supervise.stop_signals import StopSignals
from launcher.supervise.verdict import describe_exit, stack_of

if TYPE_CHECKING:
    from launcher.common.rendering import RenderedFile

# Beyond the grace, for KILL and for files to come.
_SLACK_S = 10.0

# Up to this many hosts a look at all of them is cheap, and frequent looks show a failure sooner.
_FEW_HOSTS = 200

# After the process that started an agent has ended, the agent's last report may still be on its way.
_LAST_REPORT_S = 2.0
_NO_REPORT_S = 0.2


class Leader:
    """One attempt on several hosts; runs once, like ``Attempt`` on one host. ``tell`` receives the job's states."""

    def __init__(
        self,
        paths: JobPaths,
        launch: Launch,
        signals: StopSignals,
        tell: Callable[[str, RankStates], None],
        *,
        agents: Agents | None = None,
        clock: Clock = time,
    ) -> None:
        self.paths, self.launch, self.signals, self._tell = paths, launch, signals, tell
        self.limits, self._clock = launch.limits, clock
        self._scheduler = registry.get(launch.scheduler)
        self.states = RankStates((), None, clock=clock)  # of ranks it hears through their hosts alone
        self.hosts = HostStates(launch, clock=clock)
        # Agents have gathered the evidence on their own ranks; a scheduler that answers a failure with signals to all
        # other hosts has not stopped the job.
        self.judge = Judge(launch.limits, Scope(failure_first=True), clock=clock)
        self._agents = agents or AgentProcesses()
        self._command, self._status_file = LeaderCommand(), StatusFile(paths.leader_status)
        self._heartbeat_s = heartbeat_s(launch.limits.lost_s)
        self._look_s = min(self._heartbeat_s / 2, 0.1 if len(self.hosts) <= _FEW_HOSTS else 1.0)
        self._heartbeat_at = self._polled_at = 0.0
        self._state = ""
        self._warnings: list[str] = []

    def run(self) -> Outcome:
        """Run the whole attempt. However it ends, nothing is left on hosts that can be reached."""
        try:
            self._make_folders()
            self._start_agents()
            # Each returns an outcome as soon as the attempt is over, else None.
            return self._gather() or self._begin() or self._follow()
        finally:
            self._end_all()

    # ------------------------------------------------------------------------------------------------ starting

    def _make_folders(self) -> None:
        """Make folders and status files before anybody looks for them: NFS remembers a missing file for a while."""
        self.paths.make_attempt_folders()
        self.paths.nodes.mkdir(exist_ok=True)
        for host in self.hosts:
            self.paths.node_status(host.place.node_rank).touch()
        with contextlib.suppress(OSError):
            # A request to stop the attempt before this one must not stop this one.
            self.paths.control.write_text("", encoding="utf-8")
        self._send(self._command)
        self._set_state(jobs.STARTING)

    def _start_agents(self) -> None:
        for start in self._agents.start(self.launch, self.paths):
            for node_rank in start.node_ranks:
                self.hosts.hosts[node_rank].start = start

    def _gather(self) -> Outcome | None:
        """Wait until all hosts have reported. Returns an outcome if they do not, else None."""
        self._wait(
            self.limits.register_s, lambda: self.hosts.all_registered or self.hosts.any_over or self._stop_level()
        )
        if self._stop_level():
            return self._stop()
        if self.hosts.any_over:
            return self._fail()
        missing = [host for host in self.hosts if not host.here]
        if missing:
            how = f"it did not report within {self.limits.register_s:.0f} s"
            return self._host_fails(missing[0], {EN: how, ZH: f"{self.limits.register_s:.0f} 秒内未上报"}, "no_start")
        return None

    def _begin(self) -> Outcome | None:
        found = [host.here for host in self.hosts if host.here]
        faults = problems(self.launch.nodes, self.launch.ranks, found)
        if faults:
            return self._refuse("the hosts cannot run this job together", faults)
        try:
            self.launch = bind_hosts(self.launch, found)
            self._write_rank_table(found)
        except LauncherError as error:
            return self._refuse(error.message, [error.hint] if error.hint else [])
        # From here on hosts go by the names and addresses that they reported.
        for host, place in zip(self.hosts, self.launch.nodes, strict=True):
            host.place = place
        write_atomic(self.paths.start, self.launch.to_json(), parents=False)
        # Each agent reads its share alone; the command to start comes last, when all of them lie there.
        for share in self.launch.for_nodes():
            self.paths.node_start(share.node_rank).write_text(share.to_json(), encoding="utf-8")
        self._send(replace(self._command, action=START))
        self.judge.begin()
        return None

    def _write_rank_table(self, found: list[Registration]) -> None:
        """Write the rank table of the cards that were found, after the same checks as for a user's table."""
        if self.launch.target != "Ascend":
            return
        from launcher.cluster.rank_table import check_text, render_rank_table
        from launcher.common.rendering import environment

        file = self._schedulers_table() or render_rank_table(environment(), cluster_of(self.launch, found))
        report = check_text(file.text, file.path).for_kind(found[0].kind)
        errors = [f"{problem.code} {problem.path} {problem.detail}" for problem in report.of_level("E")]
        if errors:
            raise LauncherError("the rank table of the cards that were found is wrong", hint="; ".join(errors[:5]))
        write_atomic(self.paths.root / file.path, file.text)

    def _schedulers_table(self) -> RenderedFile | None:
        """Return the scheduler's own rank table, once it is there; the scheduler knows best which cards it gave out."""
        from launcher.common.rendering import RenderedFile

        if self._scheduler.rank_table() is None:
            return None
        self._wait(self.limits.register_s, lambda: self._scheduler.rank_table() != "" or self.signals.stop_level())
        text = self._scheduler.rank_table()
        return RenderedFile(path="rank_table.json", text=text) if text else None

    def _refuse(self, message: str, lines: list[str]) -> Outcome:
        return Outcome(state=jobs.FAILED, verdict=foreign(message, lines))

    # ------------------------------------------------------------------------------------------------ watching

    def _send(self, command: LeaderCommand) -> None:
        self._command = replace(command, heartbeat=self._command.heartbeat + 1, time=self._clock.time())
        with contextlib.suppress(OSError):
            self._status_file.write(asdict(self._command))
        self._heartbeat_at = self._clock.monotonic() + self._heartbeat_s

    def _tick(self, timeout_s: float) -> None:
        self._clock.sleep(timeout_s)
        # The leader polls instead of selecting, so the wake-up pipe must be emptied before it is full.
        if self.signals.received:
            self.signals.drain()
        now = self._clock.monotonic()
        if now - self._polled_at > self.limits.lost_s / 2:  # we were stopped or stuck ourselves: that is no silence
            for host in self.hosts:
                host.signs.excuse()
        self._polled_at = now
        self._note_ends()
        self._look_at_hosts()
        if now >= self._heartbeat_at:
            self._send(self._command)  # agents take silence for our death
            self._read_control()

    def _note_ends(self) -> None:
        for start, code in self._agents.ended():
            for node_rank in start.node_ranks:
                host = self.hosts.hosts[node_rank]
                host.left_at, host.left_code = self._clock.monotonic(), code

    def _look_at_hosts(self) -> None:
        watched = [host for host in self.hosts if not host.over]
        for host in watched:
            self._read(host)
        # Only after all were read: an agent that ended may have told of a request to stop in the same report.
        told_to_run = self._command.action == START and not self._stop_level()
        for host in watched:
            self._judge(host, told_to_run)
        self.hosts.note_progress()

    def _read(self, host: HostState) -> None:
        """Read the files that the host's agent has written."""
        status = read_status(self.paths.node_status(host.place.node_rank))
        if status and host.note(status) and host.here is None:
            self._note_here(host)
        # A new name may be hidden on NFS: the report is looked for when the agent has said that it has written it.
        if host.state == ENDED or host.left_at is not None:
            host.end = json_or_empty(self.paths.node_end(host.place.node_rank)) or None

    def _judge(self, host: HostState, told_to_run: bool) -> None:
        """Note the loss of ``host`` if it is lost."""
        loss = judge_host(host.facts(_patience_s(host)), told_to_run=told_to_run)
        if loss is Loss.GAVE_UP:
            how = {EN: "its agent was cut off from us and has ended", ZH: "agent 与主控的连接中断，已退出"}
            self._lose(host, how, 0.0)
        elif loss is Loss.LEFT:
            self._note_cut(host)
        elif loss is Loss.SILENT:
            self._lose(host, silent(host.signs.silent_s), host.signs.silent_s)

    def _note_here(self, host: HostState) -> None:
        raw = json_or_empty(self.paths.node_here(host.place.node_rank))
        if raw:
            host.here = Registration.from_dict(raw)
            ahead_s = host.ahead_s or 0.0
            if abs(ahead_s) > CLOCK_S:
                side = "ahead of" if ahead_s > 0 else "behind"
                self._warnings.append(
                    f"the clock of {host.name} is {abs(ahead_s):.0f} s {side} this host's; times of events are "
                    "corrected for it, times in logs are not"
                )

    def _note_cut(self, host: HostState) -> None:
        """Judge a host whose agent left no report before the process that started it ended."""
        start, code = host.start, host.left_code
        if start and len(start.node_ranks) > 1 and code is not None and code < 0:
            # One srun holds all agents: when it is killed no host has failed, and all ends follow from that.
            host.lost, host.lost_at = program_verdict(start.name, describe_exit(code), describe_exit(code, ZH)), 0.0
            return
        line_cut = start is not None and code == start.cut_code
        if start and line_cut and host.here and start.limit_s and not self._still_connected(host):
            self._lose(host, cut(start.limit_s, start.line), start.limit_s)
            return
        how = "its agent was killed" if line_cut else f"its agent has ended with {code} and no report"
        if not host.here:
            how = f"no agent could be started there (exit code {code})"
        # It ended before the wait for its last report began, so that much earlier than now.
        self._lose(host, {EN: how, ZH: f"agent 异常退出（{code}）"}, _LAST_REPORT_S)

    def _still_connected(self, host: HostState) -> bool:
        """Return False for a host that was lost, True for one on which only the agent was killed: both end the line."""
        return self._scheduler.is_connected(self.launch, self.paths, host.place.address)

    def _lose(self, host: HostState, how: dict[str, str], since_s: float) -> None:
        """Mark ``host`` as lost since ``since_s`` ago, so that consequences on other hosts count as later."""
        lines = tail(self.paths.log(host.start.name), 6) if host.start and not host.status.get("ranks") else []
        host.lost = host_verdict(
            host.place, self.launch.ranks, how, kind="host_lost", lines=lines, retry=bool(host.here)
        )
        host.lost_at = self._clock.time() - since_s

    def _read_control(self) -> None:
        """Read the request of ``launcher stop``, which cannot signal us from another host and so writes a file."""
        if not self.signals.stop_level() and self._control_text():
            self.signals.direct.append(signal.SIGTERM)

    def _wait(self, seconds: float, until: Callable[[], object]) -> None:
        """Keep watching for ``seconds``, or until ``until`` returns something true."""
        deadline = self._clock.monotonic() + seconds
        while not until() and self._clock.monotonic() < deadline:
            self._tick(self._look_s)

    def _stop_level(self) -> int:
        """Return 0 to go on, 1 to stop in order, 2 to stop at once."""
        # A batch system signals whichever process it likes: what an agent got counts as if it had come to us.
        if (passed_on := self.hosts.stop_signal) and not self.signals.received:
            self.signals.direct.append(passed_on)
        if not self.signals.received:
            return 0
        return 2 if self._hurried else 1

    def _set_state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._tell(state, self.states)

    def _follow(self) -> Outcome:
        """Watch until the judge decides, and carry out the decision."""
        while True:
            self._tick(self._look_s)
            decision = self.judge.decide(self.hosts, self._stop_level(), self._slow_look)
            if decision.action is not Action.GO_ON:
                return self._carry_out(decision)
            if self.hosts.all_ready:
                self._set_state(jobs.RUNNING)

    def _carry_out(self, decision: Decision) -> Outcome:
        if decision.action is Action.STOP:
            return self._stop()
        if decision.action is Action.FINISH:
            return self._finish()
        if decision.action is Action.HANG:
            return self._fail_of_hang(decision.idle_s)
        return self._fail_of(decision.failure) if decision.failure else self._fail()

    def _slow_look(self) -> Look:
        return Look(folder_gone=folder_gone(self.paths) if self.paths.is_gone else "")

    def _fail_of(self, failure: Failure) -> Outcome:
        """Fail for a fault that shows by silence: a folder that is gone, or a rank that is late."""
        if failure.rank_id is None:
            return self._refuse(failure.detail, [])  # agents, which hear of us through that folder, end by themselves
        host = self.hosts.hosts[self.launch.ranks[failure.rank_id].node_rank]
        return self._host_fails(host, late_host(failure.rank_id, failure.detail), failure.kind)

    def _fail_of_hang(self, idle_s: float) -> Outcome:
        """Fail because of a hang, with the stack of a rank that holds the others up."""
        entered = self.hosts.entered()
        failure = self.judge.no_progress(entered, idle_s)
        # The stacks first: agents that are told to stop kill the ranks at once.
        self._send(replace(self._command, stacks=True))
        self._wait(2 * self._heartbeat_s + 1.0, lambda: False)
        lines = stack_of(self.paths, next(iter(failure.behind), 0))
        return self._fail(hang_verdict(self.launch, failure, max(entered.values(), default=0), lines))

    # ------------------------------------------------------------------------------------------------ ends

    def _finish(self) -> Outcome:
        self._send(replace(self._command, action=END))
        self._wait(self.limits.leave_s + _SLACK_S, lambda: all(host.over for host in self.hosts))
        return Outcome(state=jobs.SUCCEEDED, warnings=(*self._warnings, *self.hosts.warnings()))

    def _host_fails(self, host: HostState, how: dict[str, str], kind: str) -> Outcome:
        last_words = tail(self.paths.log(host.start.name), 6) if host.start and not host.here else []
        return self._fail(host_verdict(host.place, self.launch.ranks, how, kind=kind, lines=last_words))

    def _fail(self, verdict: Verdict | None = None) -> Outcome:
        """Stop the other hosts; then take the earliest failure of all as the first, even if it was noticed late.

        ``verdict``: a judgement from silence; a failure before it explains it and replaces it.
        """
        judged_at = self._clock.time()
        # In a hurry: ranks that wait for a dead one in a collective reach no step to save after.
        self._send(replace(self._command, action=STOP, hurry=True))
        # An agent that cannot answer is judged lost within lost_s, so the wait ends by then.
        wait_s = max(self.limits.lost_s, _SLACK_S) + 2 * self._heartbeat_s
        self._wait(wait_s, lambda: self.hosts.all_gone)
        first = self.hosts.first_failure()  # reports that came meanwhile may tell of an earlier one
        if first is not None and (verdict is None or first.failed_at < judged_at):
            # By our clock, as the time when it was noticed: the host's own may differ.
            verdict = replace(first.verdict, failed_at=first.failed_at)
        # Hosts that ended for reasons of their own were not stopped by us.
        others = [
            host.name
            for host in self.hosts
            if not (first and host is first.host) and host.end and host.end["state"] == jobs.CANCELLED
        ]
        verdict = replace(with_others(verdict or foreign("a host has ended", []), others), found_at=judged_at)
        return Outcome(state=jobs.FAILED, verdict=verdict, warnings=tuple(self._warnings))

    def _stop(self) -> Outcome:
        """Stop all hosts; if a checkpoint is wanted, after the same step and after all have saved."""
        self._set_state(jobs.STOPPING)
        request = self.signals.request(self.paths, self.limits.grace_s)
        # Before ranks were told to start there is nothing to save; a user who wants it saved says so.
        save = (request.save or not self._stopped_by_user()) and self._command.action == START
        self._send(replace(self._command, action=STOP, grace_s=request.grace_s, save=save))
        if save:
            self._save_first(StopSequence([Phase.LOCATE, Phase.SAVE], request.grace_s, clock=self._clock))
        else:
            grace_s = request.grace_s + _SLACK_S  # agents count the grace themselves; KILL takes a while more
            sequence = StopSequence([Phase.TERMINATE], grace_s, clock=self._clock)
            self._tick_while(sequence, Phase.TERMINATE)
        # Agents that are still in their grace are ended now; without an answer they are lost.
        self._send(replace(self._command, hurry=True))
        self._wait(request.grace_s * save + _SLACK_S, lambda: self.hosts.all_gone)
        return self._stopped()

    def _save_first(self, sequence: StopSequence) -> None:
        """Make all ranks save after a step that none has begun, once every agent has reported its ranks' positions."""
        self._tick_while(sequence, Phase.LOCATE)
        self._send(replace(self._command, stop_at=self._stop_step()))
        self._tick_while(sequence, Phase.SAVE)

    def _tick_while(self, sequence: StopSequence, phase: Phase) -> None:
        while sequence.phase(self.hosts, self._stop_level(), located=self.hosts.all_saving) is phase:
            self._tick(self._look_s)

    def _stopped_by_user(self) -> bool:
        """Return True if ``launcher stop`` or Ctrl-C asked to stop; else a scheduler did, which leaves time to save."""
        return (not self._scheduler.takes_hosts_away and not self.hosts.stop_signal) or bool(self._control_text())

    def _control_text(self) -> str:
        with contextlib.suppress(OSError):
            return self.paths.control.read_text(encoding="utf-8").strip()
        return ""

    def _stopped(self) -> Outcome:
        lost = [f"{host.name} did not answer when the job was stopped" for host in self.hosts if host.lost]
        warnings = (*self._warnings, *lost)
        # A job that saved nothing before its time limit would be queued again for ever.
        if verdict := self._scheduler.in_vain(self.launch, self.paths):
            return Outcome(state=jobs.FAILED, verdict=verdict, warnings=warnings)
        later = self._scheduler.requeue_note(self.launch, self.paths)
        return Outcome(state=jobs.CANCELLED, saved_step=self.hosts.saved_step(), warnings=warnings, later=later)

    @property
    def _hurried(self) -> bool:
        """Return True if a user asked twice; a scheduler's second signal is only the time limit after its warning."""
        if not self._scheduler.takes_hosts_away:
            return self.signals.stop_level() > 1
        with contextlib.suppress(ValueError, AttributeError):
            return bool(json.loads(self._control_text() or "{}").get("at_once"))
        return False

    def _stop_step(self) -> int:
        """Return a step that no rank can have begun when it learns of it, given that reports arrive with a delay."""
        entered = max(self.hosts.entered().values(), default=0)
        # The report is up to a heartbeat old, and the command another one on its way; twice that for safety.
        steps_meanwhile = int(4 * self._heartbeat_s / max(self.hosts.fastest_step_s(), 0.001))
        return jobs.step_to_stop_at(self.paths, entered + 2 + steps_meanwhile)

    def _end_all(self) -> None:
        """End all agents: by command, by silence of our status file, by cutting their lines, and finally by KILL."""
        if self._command.action not in (STOP, END) or not self._command.hurry:
            self._send(replace(self._command, action=END, hurry=True))
        self._wait(_SLACK_S, lambda: all(host.over or host.signs.heartbeat is None for host in self.hosts))
        # The end of its stdin has an agent clear up by itself; killing what holds the line would end that line alone.
        self._agents.let_go()
        self._wait(1.0, lambda: self._agents.all_ended)
        # After the agents: a shared connection that is closed first would cut off those that still clear up.
        self._scheduler.close(self.launch, self.paths)
        self._agents.kill()


def _patience_s(host: HostState) -> float:
    """Return the time that a last report may take to arrive; none comes after a cut line or a killed process."""
    code = host.left_code
    line_cut = host.start is not None and code == host.start.cut_code
    return _NO_REPORT_S if line_cut or (code or 0) < 0 else _LAST_REPORT_S
