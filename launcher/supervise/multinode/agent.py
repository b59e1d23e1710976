"""The agent of one host: ``launcher node``. It reports the host, starts its ranks when told, and obeys the leader.

It is two processes. The upper one only watches that the lower one goes on writing signs of life, and ends everything
when it does not: the lower one is suspended, or the shared folder no longer answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from launcher import jobs
from launcher.cluster.locks import hold
from launcher.cluster.queue import wait_and_hold
from launcher.common.atomic import write_atomic
from launcher.common.processes import adopt_orphans, die_with_parent, kill_descendants
from launcher.common.signals import Forwarding
from launcher.errors import JobFailed, LauncherError
from launcher.jobs import JobPaths
from launcher.jobs.verdict import EN, ZH
from launcher.plan.launch import Launch, Limits, read_launch
from launcher.schedulers.registration import read_inputs, register
from launcher.supervise.attempt import Attempt, Outcome
from launcher.supervise.free_cards import wait_until_free
from launcher.supervise.multinode.agent_control import AgentControl
from launcher.supervise.multinode.host_verdicts import host_verdict, leader_verdict, own_failure
from launcher.supervise.multinode.leader_link import END, ENDED, START, STOP, LeaderLink, heartbeat_s
from launcher.supervise.multinode.status_file import read_status
from launcher.supervise.stop_signals import STOP_SIGNALS, StopSignals, catch_stop_signals

# The watching process waits for this many times ``lost_s`` before it takes silence for a fault.
_PATIENCE = 2.0

_WAIT_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """The options of ``launcher node``. ``attempt``: None waits for one that is led.

    ``watch_stdin``: the end of our stdin means that the leader is gone.
    """

    node_rank: int
    attempt: int | None = None
    watch_stdin: bool = False


def run_agent(paths: JobPaths, options: AgentOptions) -> int:
    """Run the agent until the attempt has ended. Returns an exit code, which is 0 for a reported failure too."""
    adopt_orphans()
    launch = read_launch(paths)
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # Before there is any thread: the one that sends heartbeats would not live on in the child.
    child = os.fork()
    if child == 0:
        os.close(reading)
        # HUP, which is never passed on as such: it tells the death of the watching process from a request to stop.
        die_with_parent(signal.SIGHUP)
        # Not sys.exit: exit handlers and buffers are the parent's, and must not run twice.
        os._exit(_agent(paths, launch, options, writing))
    # With our own end open, the agent's death would not end the pipe.
    os.close(writing)
    # The kernel says with SIGHUP that we were killed, and nobody else does.
    forwarding = Forwarding(child, {**{n: n for n in STOP_SIGNALS}, signal.SIGHUP: signal.SIGTERM})
    if not _watch(reading, launch.limits.lost_s):
        # An agent that hangs in a dead file server handles no other signal.
        os.kill(child, signal.SIGKILL)
    code = forwarding.wait()
    kill_descendants()  # ranks are in sessions of their own, and outlive an agent that was killed
    return code if code >= 0 else 1


def _watch(pulse: int, lost_s: float) -> bool:
    """Wait for the agent's end and return True; return False when it is silent for too long."""
    deadline = time.monotonic() + max(60.0, lost_s * _PATIENCE)  # the first heartbeat follows the look at this host
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([pulse], [], [], left)[0]:
            continue
        # The end of the pipe: the agent has ended, so there is no more to watch.
        if not os.read(pulse, 4096):
            return True
        deadline = time.monotonic() + lost_s * _PATIENCE
    return False


def _agent(paths: JobPaths, launch: Launch, options: AgentOptions, pulse: int) -> int:
    adopt_orphans()
    try:
        with catch_stop_signals() as signals:
            return Agent(paths, launch, options, signals, pulse).run()
    except LauncherError as error:
        print(f"error: {error.message}\n  hint: {error.hint}", flush=True)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 1


class Agent:
    def __init__(
        self, paths: JobPaths, launch: Launch, options: AgentOptions, signals: StopSignals, pulse: int
    ) -> None:
        self.launch, self.options, self.signals = launch, options, signals
        self.paths = paths.of_attempt(options.attempt or led_attempt(paths, launch.limits))
        lost_s = launch.limits.lost_s
        self.link = LeaderLink(self.paths, options.node_rank, lost_s=lost_s, pulse=pulse)

    def run(self) -> int:
        self._register()  # the first heartbeat says that the report lies there
        self.link.start()
        # A failure is an outcome too: the leader must learn of it from the report, not from silence.
        outcome = self._outcome()
        # Before the state says ENDED: the leader reads the report only after that.
        self._write_end(outcome)
        self.link.report.state = ENDED
        self.link.close()
        if self._leader_gone():
            self._take_over()
        return 0

    def _register(self) -> None:
        found = register(self.launch.target, read_inputs(self.paths))
        here = self.paths.node_here(self.options.node_rank)
        write_atomic(here, json.dumps(found.to_dict()) + "\n", parents=False)

    def _outcome(self) -> Outcome:
        """Return the outcome of the attempt; whatever happens, no rank is left running."""
        try:
            if not self._told_to_start():
                return Outcome(state=jobs.CANCELLED)
            # Written by the leader before it commands START, so it is complete.
            own = Launch.from_json(self.paths.node_start(self.options.node_rank).read_text(encoding="utf-8"))
            with self._cards(own) as held:
                return self._attempt(own) if held else Outcome(state=jobs.CANCELLED)
        except LauncherError as error:
            return self._own_failure(error.message)
        except Exception as error:
            traceback.print_exc()
            return self._own_failure(f"{type(error).__name__}: {error}")

    def _attempt(self, own: Launch) -> Outcome:
        # The driver gives a card back a while after the process of the last attempt ended.
        if own.target == "Ascend" and self.paths.attempt > 1:
            wait_until_free([rank.device_id for rank in own.ranks], give_up=self._stopped)
        stdin = 0 if self.options.watch_stdin else None
        control = AgentControl(self.paths, own, self.signals, self.link, stdin=stdin)
        outcome = Attempt(self.paths, own, control, _tell_nobody).run()
        # The attempt saw a stop; only here is it known that nobody asked for one.
        return self._killed() if outcome.state == jobs.CANCELLED and self._is_orphan() else outcome

    def _is_orphan(self) -> bool:
        """Return True if the process that watches this one was killed while the job was to go on."""
        return signal.SIGHUP in self.signals.received and self.link.command.action == START

    def _killed(self) -> Outcome:
        how = {EN: "its agent was killed; what it had started was stopped", ZH: "agent 被终止；其启动的进程已停止"}
        place = self.launch.nodes[self.options.node_rank]
        verdict = host_verdict(place, self.launch.ranks, how, kind="host_lost")
        return Outcome(state=jobs.FAILED, verdict=verdict, failed_at=time.time())

    def _told_to_start(self) -> bool:
        while self.link.command.action != START:
            if self._stopped():
                return False
            time.sleep(_WAIT_POLL_S)
        return True

    def _stopped(self) -> bool:
        gone = self.options.watch_stdin and stdin_ended()
        self.link.report.stop_signal = self.signals.request_to_pass_on()
        return gone or self.link.leader_lost or self.link.command.action in (STOP, END) or bool(self.signals.received)

    @contextmanager
    def _cards(self, own: Launch) -> Iterator[bool]:
        """Hold the locks on this host's cards. Yields False when the job was stopped while it waited for them."""
        if not own.wait_for_locks:
            with hold(own.locks, holder=f"job {self.paths.job_id}"):
                yield True
            return
        names, holder = own.locks, f"job {self.paths.job_id}"
        with wait_and_hold(names, holder=holder, tell=self._say, give_up=self._stopped, priority=own.priority) as held:
            self.link.report.note = None
            yield held

    def _say(self, note: str) -> None:
        self.link.report.note = note

    # ------------------------------------------------------------------------------------------------ the end

    def _own_failure(self, message: str) -> Outcome:
        place = self.launch.nodes[self.options.node_rank]
        return Outcome(state=jobs.FAILED, verdict=own_failure(place, message), failed_at=time.time())

    def _write_end(self, outcome: Outcome) -> None:
        if self.paths.is_gone:  # it stays removed
            return
        document = {
            "state": outcome.state,
            "verdict": outcome.verdict.to_dict() if outcome.verdict else None,
            "warnings": outcome.warnings,
            "saved_step": outcome.saved_step,
            "failed_at": outcome.failed_at,
        }
        with contextlib.suppress(OSError):
            end = self.paths.node_end(self.options.node_rank)
            write_atomic(end, json.dumps(document, ensure_ascii=False) + "\n", parents=False)

    def _leader_gone(self) -> bool:
        """Return True if nobody else will write the job's end: the guard of a killed leader may still do so."""
        while not self.link.leader_lost:
            # A leader that commanded an end, or lives while nobody stopped us, writes the job's end itself.
            if self.link.command.action in (STOP, END) or not self._stopped():
                return False
            time.sleep(_WAIT_POLL_S)
            self.link.refresh()
        return True

    def _take_over(self) -> None:
        """Write the job's end, unless another agent was faster."""
        record = jobs.read_record_as_written(self.paths)
        if record is None or record.is_final:
            return
        with contextlib.suppress(FileExistsError, OSError):
            # O_EXCL is atomic on NFS too: of all agents that notice, one writes.
            os.close(os.open(self.paths.takeover, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            verdict = leader_verdict(record.host, self.launch.limits.lost_s)
            code = JobFailed.exit_code
            ended = replace(record, state=jobs.FAILED, ended=jobs.now(), exit_code=code, verdict=verdict.to_dict())
            jobs.write_record(self.paths, ended)


def _tell_nobody(_state: str, _states: object) -> None:
    """Do nothing: the leader reports the job's states."""


def stdin_ended() -> bool:
    """Return True if our stdin has ended: the process that held it is gone."""
    if not select.select([0], [], [], 0)[0]:
        return False
    try:
        return not os.read(0, 4096)
    except OSError:
        return True


def led_attempt(paths: JobPaths, limits: Limits) -> int:
    """Return the number of the job's attempt, once there is one whose leader shows signs of life.

    Raises LauncherError when there is none in ``register_s``.
    """
    deadline = time.monotonic() + limits.register_s
    seen: dict[int, Any] = {}
    while time.monotonic() < deadline:
        record = jobs.read_record_as_written(paths)
        if record and not record.is_final:
            status = read_status(paths.of_attempt(record.attempt).leader_status)
            heartbeat = status.get("heartbeat") if status else None
            # Two heartbeats that differ: a status file alone may be what a leader left that is dead.
            if heartbeat is not None and seen.setdefault(record.attempt, heartbeat) != heartbeat:
                return record.attempt
        time.sleep(heartbeat_s(limits.lost_s) / 2)
    raise LauncherError(f"no leader runs for job {paths.job_id}", hint=f"launcher resume {paths.job_id}")
