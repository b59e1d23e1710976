"""One attempt: start the engine's programs, watch until all ranks are done or one failed, leave nothing running.

``launcher.supervise.judge`` decides what is late, hangs, has failed or stops; requests to stop come through its
``AttemptControl``. The code here touches processes: it starts them, notices their ends, and ends them.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher import jobs
from launcher.common.atomic import write_atomic
from launcher.common.clock import Clock
from launcher.common.processes import ProcessId, descendants, die_with_parent, kill_descendants, reap
from launcher.engines import ENGINES
from launcher.engines.base import Program
from launcher.jobs import JobPaths
from launcher.jobs.events import Begin, EventReader, read_position
from launcher.jobs.logs import tail
from launcher.jobs.verdict import Verdict
from launcher.plan.launch import Launch
from launcher.supervise.attempt_control import AttemptControl, OnReadable
from launcher.supervise.early_ranks import EarlyRanks
from launcher.supervise.host_sampler import HostSampler
from launcher.supervise.judge import TICK_S, Action, Judge, Look, Phase, Scope, StopSequence
from launcher.supervise.oom import OomWatch
from launcher.supervise.rank_states import SCHEDULER, Failure, RankStates
from launcher.supervise.stacks import dump_stacks
from launcher.supervise.standby import Standby, inherited_environment
from launcher.supervise.verdict import Findings, find_verdict, signal_name

# While an engine starts its ranks they are looked for this often: one may live for some 20 ms only.
EARLY_TICK_S = 0.01

# mindformers 1.9.0, tools/utils.py, DIRECTORY_PERMISSION.
MINDFORMERS_MODE = 0o750

# The last lines of an engine's output name the rank that failed; all of it may be megabytes.
_ENGINE_LINES = 200

_MIN_FREE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of an attempt. ``state`` is one of SUCCEEDED, FAILED (with a verdict and a time) and CANCELLED.

    ``later``: the reason why its scheduler will run the job again; None when it will not.
    """

    state: str
    verdict: Verdict | None = None
    warnings: tuple[str, ...] = ()
    saved_step: int | None = None
    failed_at: float | None = None
    later: str | None = None


@dataclass(kw_only=True)
class _Child:
    program: Program
    process: ProcessId
    popen: subprocess.Popen[bytes] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class _Watched:
    who: int | str
    process: ProcessId


class Attempt:
    """One start of a job; runs once. ``tell`` receives STARTING, RUNNING and STOPPING, with the ranks' processes."""

    def __init__(
        self,
        paths: JobPaths,
        launch: Launch,
        control: AttemptControl,
        tell: Callable[[str, RankStates], None],
        *,
        standby: Standby | None = None,
        clock: Clock = time,
    ) -> None:
        self.paths, self.launch, self.control, self._tell = paths, launch, control, tell
        self.limits, self._clock = launch.limits, clock
        self._standby = standby or Standby(launch, enabled=False)
        engine = launch.engine if launch.nests_ranks else None
        self.states = RankStates([rank.rank_id for rank in launch.ranks], engine, clock=clock)
        # On several hosts the leader judges late and hanging ranks: that takes the progress of all of them.
        alone = control.answers_for_all
        scope = Scope(failure_first=not alone, evidence=self.states, progress=alone)
        self.judge = Judge(launch.limits, scope, clock=clock)
        self._children: dict[int, _Child] = {}
        # Exit codes by pid: a rank that was a standby may have ended before its first event is read.
        self._ends: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._readers = [EventReader(path=paths.scheduler_events)] if launch.node_rank == 0 else []
        self._readers += [EventReader(path=paths.rank_events(rank.rank_id)) for rank in launch.ranks]
        self._watched: dict[int | str, ProcessId] = {}
        self._early: EarlyRanks | None = None
        self._state = ""
        self._stood_by = False
        self._oom = OomWatch()
        cards = [rank.device_id for rank in launch.ranks] if launch.target == "Ascend" else []
        host = launch.ranks[0].host if launch.ranks else ""
        self._sampler = HostSampler(paths.host_events(launch.node_rank), host, cards, clock=clock)
        self._mode = stat.S_IMODE(paths.root.stat().st_mode)

    def run(self) -> Outcome:
        """Run the whole attempt. However it ends, no process that it started is left."""
        for handle, on_readable in self.control.descriptors().items():
            self._selector.register(handle, selectors.EVENT_READ, on_readable)
        try:
            self._make_folders()
            self._start()
            return self._follow()
        finally:
            self._kill_all()
            self._keep_mode()
            self._close()

    # ------------------------------------------------------------------------------------------------ starting

    def _make_folders(self) -> None:
        self.paths.make_attempt_folders()
        for reader in self._readers:  # open before anything runs: what is read then cannot be taken away
            reader.path.touch()
            list(reader.new())

    def _start(self) -> None:
        # Before the first process: the time-out of the start includes importing MindSpore, which takes most of it.
        self.judge.begin()
        self._set_state(jobs.STARTING)
        for program in self.launch.programs(self.paths):
            self._spawn(program)

    def _spawn(self, program: Program) -> None:
        popen = self._standby.take(program, self.paths) or self._popen(program)
        process = ProcessId.of_pid(popen.pid)
        self._children[popen.pid] = _Child(program=program, process=process, popen=popen)
        self._watch_process(program.name if program.rank_id is None else program.rank_id, process)
        if program.name == self.states.engine:
            ranks, scheduler = list(self.states.ranks), program.name == "msrun" and self.launch.node_rank == 0
            self._early = EarlyRanks(program.name, process, ranks, scheduler=scheduler)

    def _popen(self, program: Program) -> subprocess.Popen[bytes]:
        log = self._program_log(program.name) if program.rank_id is None else self.paths.rank_log(program.rank_id)
        with log.open("ab") as output:
            return subprocess.Popen(
                program.command.argv,
                env={**inherited_environment(program.command), **self._standby.environment(program)},
                cwd=self.paths.work,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A signal to our process group must not reach the ranks: the supervisor alone decides how they end.
                start_new_session=True,
                preexec_fn=self._prepare_child,
            )

    def _program_log(self, name: str) -> Path:
        """Return the log of an engine. Each host has its own: one file that two hosts append to loses lines on NFS."""
        return self.paths.log(f"{name}_{self.launch.node_rank}" if self.launch.node_rank else name)

    def _prepare_child(self) -> None:
        """Prepare the child before its program starts. A signal that is ignored here stays ignored below it."""
        die_with_parent()
        # A scheduler that takes hosts away sends TERM to every process; ranks must survive it long enough to save.
        if self.control.end_signal != signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _watch_process(self, who: int | str, process: ProcessId) -> None:
        """Wake the selector when a process of a rank (by number) or of a program (by name) ends.

        A rank that an engine starts has two processes: the one that the engine knows, and its child, which trains.
        """
        if self._watched.get(who) == process:
            return
        self._watched[who] = process
        if isinstance(who, int):
            self.states.ranks[who].process = process
        handle = process.open_pidfd()
        # The process ended before it could be watched: no descriptor will ever tell.
        if handle is None:
            code = process.exit_code()
            self._gone(who, self._ends.get(process.pid) if code is None else code)
        else:
            self._selector.register(handle, selectors.EVENT_READ, _Watched(who=who, process=process))

    def _gone(self, who: int | str, code: int | None = None) -> None:
        if isinstance(who, int):
            self.states.rank_gone(who, self._clock.time(), code)
        else:
            self.states.program_gone(who, self._clock.time(), code)

    # ------------------------------------------------------------------------------------------------ watching

    def _tick(self, timeout_s: float = TICK_S) -> None:
        """Wait for something to happen, at most ``timeout_s``, and take note of it."""
        for key, _ in self._selector.select(min(timeout_s, EARLY_TICK_S) if self._early else timeout_s):
            self._hear(key.fd, key.data)
        # Before the events are read: a rank writes "done" before it ends, so no end is seen whose "done" is not.
        reap(self._note_end)
        self._read_events()
        self._look_for_ranks()
        self._sampler.look()
        self.control.look(self.states)

    def _hear(self, handle: int, source: _Watched | OnReadable) -> None:
        """Handle a readable descriptor: a process has ended, or the control has something to say."""
        if isinstance(source, _Watched):
            self._selector.unregister(handle)
            os.close(handle)
            self._gone(source.who, source.process.exit_code())
        elif not source():
            self._selector.unregister(handle)

    def _look_for_ranks(self) -> None:
        """Look for ranks below the engine until all are known."""
        if self._early is None:
            return
        for who, process in self._early.look():
            # A rank that has begun reported its training process, which says more than the engine's child above it.
            if isinstance(who, int) and not self.states.ranks[who].begun:
                self._watch_process(who, process)
        if not self._early.missing or all(rank.begun for rank in self.states.ranks.values()):
            self._early = None

    def _hear_engine(self) -> None:
        """Take the engine's word for a rank that ended before we saw it, or together with others."""
        engine = self.states.engine
        told = ENGINES[engine].told("\n".join(tail(self._program_log(engine), _ENGINE_LINES))) if engine else None
        rank_id = told.rank_id if told else None
        if told and self._early:
            rank_id = self._early.rank_of(told)
        # An engine may name a rank of another host; only those of this host are judged here.
        if told and rank_id in self.states.ranks:
            self.states.rank_named(rank_id, self._clock.time(), told.code)

    def _note_end(self, pid: int, code: int) -> None:
        """Note the end of a child, or of an adopted orphan: a rank whose engine died before it could collect it.

        Its exit status is collected here, so nobody else can read it afterwards.
        """
        self._ends[pid] = code
        if child := self._children.get(pid):
            child.popen.returncode = code
        for who in [who for who, process in self._watched.items() if process.pid == pid]:
            self._gone(who, code)

    def _read_events(self) -> None:
        for reader in self._readers:
            for event in reader.new():
                self.states.note(event)
                if isinstance(event, Begin):
                    self._watch_begun(event)

    def _watch_begun(self, event: Begin) -> None:
        """Watch the process that "begin" has named: until then the engine's child above it was watched."""
        rank = None if event.rank_id is None else self.states.ranks.get(event.rank_id)
        if rank and rank.process:
            self._watch_process(rank.rank_id, rank.process)
        # The schedulers of other engines are our own children, which are watched since they were started.
        elif rank is None and self.states.scheduler and self.launch.engine == "msrun":
            self._watch_process(SCHEDULER, self.states.scheduler)

    def _set_state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._tell(state, self.states)

    def _follow(self) -> Outcome:
        """Watch until the judge decides, and carry out the decision."""
        wait_s = TICK_S
        while True:
            self._tick(wait_s)
            decision = self.judge.decide(self.states, self.control.stop_level(), self._slow_look)
            wait_s = decision.wait_s
            if decision.action is Action.STOP:
                return self._stop()
            if decision.action is Action.FINISH:
                return self._finish()
            if decision.action is Action.HANG:
                # Before anything is killed: afterwards there is no stack to read.
                dump_stacks(self.paths, self.states)
                return self._fail(self.judge.no_progress(self._entered(), decision.idle_s))
            if decision.action is Action.FAIL and (failure := decision.failure or self._first_failure()):
                return self._fail(failure)
            if self.states.all_ready:
                self._set_state(jobs.RUNNING)
            if not self._stood_by and self.states.progress_at is not None:
                self._stood_by = True
                self._standby.start(self.paths)

    def _first_failure(self) -> Failure | None:
        self._hear_engine()
        return self.states.first_failure()

    def _wait(self, seconds: float, until: Callable[[], bool]) -> None:
        """Keep watching for ``seconds``, or until ``until`` holds."""
        deadline = self._clock.monotonic() + seconds
        while not until() and (left := deadline - self._clock.monotonic()) > 0:
            self._tick(min(left, TICK_S))

    def _slow_look(self) -> Look:
        """Return the facts for the judge that cost one system call per rank."""
        if self._early:
            self._hear_engine()
        gone = self.paths.is_gone
        if not gone:
            self._keep_mode()
        suspended = frozenset(r.rank_id for r in self.states.ranks.values() if r.process and r.process.is_stopped())
        return Look(
            folder_gone=folder_gone(self.paths) if gone else "", suspended=suspended, num_ranks=len(self.states.ranks)
        )

    def _entered(self) -> dict[int, int]:
        """Return the step that each rank has entered last."""
        return {rank_id: read_position(self.paths.rank_position(rank_id)) for rank_id in self.states.ranks}

    def _keep_mode(self) -> None:
        """Restore the mode of the job's folder: MindFormers makes it 750, which hides the job from other users."""
        with contextlib.suppress(OSError):
            if stat.S_IMODE(self.paths.root.stat().st_mode) == MINDFORMERS_MODE:
                self.paths.root.chmod(self._mode)

    # ------------------------------------------------------------------------------------------------ ends

    def _finish(self) -> Outcome:
        """Give processes time to end by themselves: everything is saved, so their exit codes no longer matter."""
        self._leave_together()
        self._wait(self.limits.leave_s, lambda: self.states.all_gone)
        warnings = [
            f"rank {rank.rank_id} ended with {signal_name(rank.code)} after everything was saved"
            for rank in self.states.ranks.values()
            if rank.code
        ]
        return Outcome(state=jobs.SUCCEEDED, warnings=tuple(warnings))

    def _fail(self, failure: Failure) -> Outcome:
        found_at = self._clock.time()
        # Before the kill, which would make every rank look ended.
        alive = tuple(rank.rank_id for rank in self.states.ranks.values() if rank.gone is None)
        stopped = tuple(rank_id for rank_id in alive if rank_id != failure.rank_id)
        # Before the verdict: logs are complete and exit codes known only when the processes are gone.
        left = self._kill_all()
        findings = Findings(oom=self._oom.killed, stopped=stopped, disk_full=_disk_full(self.paths.root))
        verdict = find_verdict(self.paths, self.launch.ranks, self.states, failure, findings)
        verdict = replace(verdict, failed_at=failure.time, found_at=found_at)
        return Outcome(state=jobs.FAILED, verdict=verdict, warnings=_survivors(left), failed_at=failure.time)

    def _kill_all(self) -> list[ProcessId]:
        """Kill every process of the attempt; those that wait for the next one are none."""
        return kill_descendants(self._note_end, spare=self._standby.processes)

    def _leave_together(self) -> None:
        """Wait until all hosts have saved: ranks of others may still need MindSpore's scheduler, which is on one."""
        while not self.control.may_leave():
            self._tick()

    def _stop(self) -> Outcome:
        """Stop the ranks in order: a checkpoint if one is requested, then TERM, then KILL after the grace period."""
        self._set_state(jobs.STOPPING)
        request = self.control.stop_request()
        phases = [*([Phase.LOCATE, Phase.SAVE] if request.save else []), Phase.TERMINATE]
        sequence = StopSequence(phases, request.grace_s, clock=self._clock)
        saved = self._save_first(sequence) if request.save else None
        if self._phase(sequence) is Phase.TERMINATE:
            self._terminate_ranks()
            self._tick_while(sequence, Phase.TERMINATE)
        return Outcome(state=jobs.CANCELLED, warnings=_survivors(self._kill_all()), saved_step=saved)

    def _phase(self, sequence: StopSequence, *, located: bool = True) -> Phase:
        return sequence.phase(self.states, self.control.stop_level(), located=located)

    def _tick_while(self, sequence: StopSequence, phase: Phase) -> None:
        while self._phase(sequence) is phase:
            self._tick()

    def _save_first(self, sequence: StopSequence) -> int | None:
        """Make all ranks save and end after the same step. Returns that step, None when not all of them did."""
        stop_at = self.control.stop_step(self._entered)
        # On several hosts the leader names the step only when every host has reported its position.
        while self._phase(sequence, located=stop_at is not None) is Phase.LOCATE:
            self._tick()
            stop_at = self.control.stop_step(self._entered)
        if stop_at is None:
            sequence.skip_save()
            return None
        with contextlib.suppress(OSError):
            write_atomic(self.paths.stop_at, f"{stop_at}\n", parents=False)
        self._tick_while(sequence, Phase.SAVE)
        # A checkpoint that only some ranks wrote cannot be resumed from.
        if not self.states.all_done:
            return None
        self._leave_together()
        return stop_at

    def _terminate_ranks(self) -> None:
        """Send the end signal to ranks and their children, but not to their engine, which would KILL them."""
        spared = {child.process.pid for child in self._children.values() if child.program.rank_id is None}
        for process in descendants():
            if process.pid not in spared:
                process.send(self.control.end_signal)

    def _close(self) -> None:
        # Only pidfds are ours to close; the control owns its descriptors.
        for handle in [key.fd for key in self._selector.get_map().values() if isinstance(key.data, _Watched)]:
            self._selector.unregister(handle)
            os.close(handle)
        self._selector.close()
        self._sampler.close()
        for reader in self._readers:
            reader.close()


def folder_gone(paths: JobPaths) -> str:
    return f"the job's folder {paths.root} was removed or renamed: nothing more can be saved"


def _disk_full(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < _MIN_FREE_BYTES
    return False


def _survivors(left: list[ProcessId]) -> tuple[str, ...]:
    return tuple(f"process {process.pid} would not die" for process in left)
