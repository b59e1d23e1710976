"""One attempt: start the engine's programs, watch until all ranks are done or one failed, leave nothing running."""

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
from dataclasses import dataclass, field
from pathlib import Path

from launcher import jobs
from launcher.common.atomic import write_atomic
from launcher.common.processes import ProcessId, descendants, die_with_parent, kill_descendants, reap
from launcher.engines import ENGINES
from launcher.engines.base import FOREIGN, Program
from launcher.jobs import JobPaths
from launcher.jobs.events import EventReader, read_position
from launcher.jobs.logs import tail
from launcher.jobs.verdict import Verdict
from launcher.plan.launch import HANG_FACTOR, MIN_HANG_TIMEOUT_S, Launch
from launcher.supervise.early_ranks import EarlyRanks
from launcher.supervise.oom import OomWatch
from launcher.supervise.rank_states import ENGINE_LEAVES_S, SCHEDULER, SCHEDULER_FOLLOWS_S, Failure, RankStates
from launcher.supervise.stacks import dump_stacks
from launcher.supervise.stop_signals import StopRequest, StopSignals
from launcher.supervise.verdict import Findings, find_verdict, signal_name

# Reports of ranks are read this often; ends of processes wake the supervisor at once.
TICK_S = 0.1

# While an engine starts its ranks they are looked for this often: one may live for some 20 ms only.
EARLY_TICK_S = 0.01

# mindformers 1.9.0, tools/utils.py, DIRECTORY_PERMISSION.
MINDFORMERS_MODE = 0o750

# What is read of an engine's own output.
_ENGINE_LINES = 200

# After the first failure others may come in that were earlier: the verdict waits this long for them.
SETTLE_S = 0.2

# How often slow checks are made: suspended ranks, hangs.
SLOW_TICK_S = 1.0

# An evaluation or a checkpoint may take so many times as long as a step before it counts as a hang.
BUSY_FACTOR = 10

_MIN_FREE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended. ``state`` is one of SUCCEEDED, FAILED (with a verdict, and when) and CANCELLED.

    ``later``: its scheduler will run the job again, and why.
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
    """Runs once. ``tell`` is called with STARTING, RUNNING and STOPPING, and with the ranks' processes."""

    def __init__(
        self, paths: JobPaths, launch: Launch, signals: StopSignals, tell: Callable[[str, RankStates], None]
    ) -> None:
        self.paths, self.launch, self.signals, self._tell = paths, launch, signals, tell
        self.limits = launch.limits
        self.end_signal = signal.SIGTERM
        self.states = RankStates([rank.rank_id for rank in launch.ranks], launch.engine if launch.nests_ranks else None)
        self._children: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._readers = [EventReader(path=paths.scheduler_events)] if launch.node_rank == 0 else []
        self._readers += [EventReader(path=paths.rank_events(rank.rank_id)) for rank in launch.ranks]
        self._watched: dict[int | str, ProcessId] = {}
        self._early: EarlyRanks | None = None
        self._state = ""
        self._oom = OomWatch()
        self._slow_at = 0.0
        self._stopped_since: dict[int, float] = {}
        self._gone_before = False
        self._mode = stat.S_IMODE(paths.root.stat().st_mode)

    def run(self) -> Outcome:
        """The whole attempt. However it ends, nothing that it started is left."""
        self._selector.register(self.signals.wake_fd, selectors.EVENT_READ, None)
        try:
            self._make_folders()
            self._start()
            return self._follow()
        finally:
            kill_descendants(self._note_end)
            self._keep_mode()
            self._close()

    # ------------------------------------------------------------------------------------------------ starting

    def _make_folders(self) -> None:
        self.paths.make_attempt_folders()
        for reader in self._readers:  # open before anything runs: what is read then cannot be taken away
            reader.path.touch()
            list(reader.new())

    def _start(self) -> None:
        self._began = time.time()
        self._set_state(jobs.STARTING)
        for program in self.launch.programs(self.paths):
            self._spawn(program)

    def _spawn(self, program: Program) -> None:
        log = self._program_log(program.name) if program.rank_id is None else self.paths.rank_log(program.rank_id)
        environment = {key: value for key, value in os.environ.items() if key not in FOREIGN}
        with log.open("ab") as output:
            popen = subprocess.Popen(
                program.command.argv,
                env={**environment, **program.command.env},
                cwd=self.paths.work,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self._prepare_child,
            )
        process = ProcessId.of_pid(popen.pid)
        self._children[popen.pid] = _Child(program=program, process=process, popen=popen)
        self._watch_process(program.name if program.rank_id is None else program.rank_id, process)
        if program.name == self.states.engine:
            ranks, scheduler = list(self.states.ranks), program.name == "msrun" and self.launch.node_rank == 0
            self._early = EarlyRanks(program.name, process, ranks, scheduler=scheduler)

    def _program_log(self, name: str) -> Path:
        return self.paths.log(name)

    def _prepare_child(self) -> None:
        """Runs in the child, before its program. A signal that is ignored there stays ignored below it."""
        die_with_parent()
        if self.end_signal != signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _watch_process(self, who: int | str, process: ProcessId) -> None:
        """Be woken when a process of a rank (by number) or of a program (by name) ends.

        A rank that an engine starts has two: the one that the engine knows, and its child, which trains.
        """
        if self._watched.get(who) == process:
            return
        self._watched[who] = process
        if isinstance(who, int):
            self.states.ranks[who].process = process
        handle = process.open_pidfd()
        if handle is None:
            self._gone(who, process.exit_code())
        else:
            self._selector.register(handle, selectors.EVENT_READ, _Watched(who=who, process=process))

    def _gone(self, who: int | str, code: int | None = None) -> None:
        if isinstance(who, int):
            self.states.rank_gone(who, time.time(), code)
        else:
            self.states.program_gone(who, time.time(), code)

    # ------------------------------------------------------------------------------------------------ watching

    def _tick(self, timeout_s: float = TICK_S) -> None:
        """Wait for something to happen, at most ``timeout_s``, and take note of it."""
        for key, _ in self._selector.select(min(timeout_s, EARLY_TICK_S) if self._early else timeout_s):
            if isinstance(key.data, _Watched):
                self._selector.unregister(key.fd)
                os.close(key.fd)
                self._gone(key.data.who, key.data.process.exit_code())
            else:
                self._other(key.data)
        reap(self._note_end)
        self._read_events()
        self._look_for_ranks()

    def _other(self, data: object) -> None:
        """Take note of a descriptor that is no process's."""
        self.signals.drain()

    def _look_for_ranks(self) -> None:
        """Below the engine, until all are known."""
        if self._early is None:
            return
        for who, process in self._early.look():
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
        if told and rank_id in self.states.ranks:
            self.states.rank_named(rank_id, time.time(), told.code)

    def _note_end(self, pid: int, code: int) -> None:
        """A child has ended, or an orphan that we adopted: ranks of an engine that died before it could look.

        Collected here, nobody else can tell any more how it ended.
        """
        if child := self._children.get(pid):
            child.popen.returncode = code
        for who in [who for who, process in self._watched.items() if process.pid == pid]:
            self._gone(who, code)

    def _read_events(self) -> None:
        for reader in self._readers:
            for event in reader.new():
                self.states.note(event)
        for rank in self.states.ranks.values():
            if rank.process:
                self._watch_process(rank.rank_id, rank.process)
        if self.states.scheduler and self.launch.engine == "msrun":
            self._watch_process(SCHEDULER, self.states.scheduler)

    def _set_state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._tell(state, self.states)

    def _follow(self) -> Outcome:
        while True:
            self._tick()
            if self._stops():
                return self._stop_as_asked()
            if self.states.all_done:
                return self._finish()
            failure = self._settled_failure() if self.states.failing else self._slow_checks()
            if failure:
                return self._fail(failure)
            if self.states.all_ready:
                self._set_state(jobs.RUNNING)

    def _for(self, seconds: float, until: Callable[[], bool]) -> bool:
        """Watch on for ``seconds``, or until something is so; returns whether it is."""
        deadline = time.monotonic() + seconds
        while not until() and (left := deadline - time.monotonic()) > 0:
            self._tick(min(left, TICK_S))
        return until()

    def _settled_failure(self) -> Failure | None:
        self._for(SETTLE_S, lambda: False)
        states = self.states
        self._for(ENGINE_LEAVES_S, lambda: not states.unexplained)
        if states.in_doubt:
            self._for(SCHEDULER_FOLLOWS_S, lambda: not (states.in_doubt and states.scheduler_was_spared))
        if not states.scheduler_was_spared:
            self._for(ENGINE_LEAVES_S, lambda: not states.in_doubt)
        self._hear_engine()
        return states.first_failure()

    # ------------------------------------------------------------------------------------------------ slow checks

    def _slow_checks(self) -> Failure | None:
        if time.monotonic() < self._slow_at:
            return None
        self._slow_at = time.monotonic() + SLOW_TICK_S
        if self._early:
            self._hear_engine()
        return self._folder_gone() or self._suspended() or self._late() or self._hanging()

    def _folder_gone(self) -> Failure | None:
        """The job's folder at two looks: nothing more can be saved, and no command would find the job."""
        was_gone, self._gone_before = self._gone_before, self.paths.is_gone
        if not self._gone_before:
            self._keep_mode()
            return None
        return Failure(kind="foreign", time=time.time(), detail=folder_gone(self.paths)) if was_gone else None

    def _keep_mode(self) -> None:
        """MindFormers makes the job's folder 750, which hides the job from others that could see it before."""
        with contextlib.suppress(OSError):
            if stat.S_IMODE(self.paths.root.stat().st_mode) == MINDFORMERS_MODE:
                self.paths.root.chmod(self._mode)

    def _suspended(self) -> Failure | None:
        """A rank that is suspended while another runs; all at once were suspended on purpose."""
        now = time.monotonic()
        stopped = {r.rank_id for r in self.states.ranks.values() if r.process and r.process.is_stopped()}
        self._stopped_since = {rank_id: self._stopped_since.get(rank_id, now) for rank_id in stopped}
        if not stopped or len(stopped) == len(self.states.ranks) > 1:
            return None
        rank_id = min(stopped, key=lambda rank_id: self._stopped_since[rank_id])
        if now - self._stopped_since[rank_id] < self.limits.stopped_s:
            return None
        return Failure(kind="stopped", time=time.time(), rank_id=rank_id, detail=f"{self.limits.stopped_s:.0f}")

    def _late(self) -> Failure | None:
        if self.states.all_ready or time.time() - self._began < self.limits.start_timeout_s:
            return None
        late = [rank for rank in self.states.ranks.values() if not rank.ready]
        first = next((rank for rank in late if not rank.begun), late[0])
        behind = tuple(rank.rank_id for rank in late if rank is not first)
        detail = f"{self.limits.start_timeout_s:.0f}"
        return Failure(kind="no_start", time=time.time(), rank_id=first.rank_id, behind=behind, detail=detail)

    def hang_timeout_s(self) -> float:
        """How long no step may be finished; an evaluation or a checkpoint may take much longer."""
        timeout_s = self.limits.hang_timeout_s
        if timeout_s is None:
            timeout_s = max(MIN_HANG_TIMEOUT_S, HANG_FACTOR * (self.states.step_time_s() or 0.0))
        return timeout_s * (BUSY_FACTOR if self.states.busy else 1)

    def _hanging(self) -> Failure | None:
        last = self.states.last_progress
        if last is None or time.time() - last < self.hang_timeout_s():
            return None
        entered = {rank_id: read_position(self.paths.rank_position(rank_id)) for rank_id in self.states.ranks}
        ahead = max(entered.values())
        behind = tuple(rank_id for rank_id, step in entered.items() if step < ahead)
        dump_stacks(self.paths, self.states)
        who = behind[0] if len(behind) == 1 else None
        detail = f"{time.time() - last:.0f}"
        return Failure(kind="no_progress", time=time.time(), rank_id=who, behind=behind, detail=detail)

    # ------------------------------------------------------------------------------------------------ ends

    def _finish(self) -> Outcome:
        """All is saved. Processes may end by themselves for a while; how they end does not matter any more."""
        self._for(self.limits.leave_s, lambda: self.states.all_gone)
        warnings = [
            f"rank {rank.rank_id} ended with {signal_name(rank.code)} after everything was saved"
            for rank in self.states.ranks.values()
            if rank.code
        ]
        return Outcome(state=jobs.SUCCEEDED, warnings=tuple(warnings))

    def _fail(self, failure: Failure) -> Outcome:
        alive = tuple(rank.rank_id for rank in self.states.ranks.values() if rank.gone is None)
        stopped = tuple(rank_id for rank_id in alive if rank_id != failure.rank_id)
        left = kill_descendants(self._note_end)
        findings = Findings(oom=self._oom.killed, stopped=stopped, disk_full=_disk_full(self.paths.root))
        verdict = find_verdict(self.paths, self.launch.ranks, self.states, failure, findings)
        return Outcome(state=jobs.FAILED, verdict=verdict, warnings=_survivors(left), failed_at=failure.time)

    def _stops(self) -> int:
        """How often this attempt was asked to stop; from the second time on it does so at once."""
        return self.signals.count

    def _stop_request(self) -> StopRequest:
        return self.signals.request(self.paths, self.limits.grace_s)

    def _stop_as_asked(self) -> Outcome:
        """TERM to the ranks, KILL after the grace; at once when asked again. First a checkpoint, if that is wanted."""
        self._set_state(jobs.STOPPING)
        request = self._stop_request()
        saved = self._save_first(request.grace_s) if request.save else None
        if self._stops() < 2 and not self.states.all_gone:
            self._terminate_ranks()
            self._for(request.grace_s, lambda: self.states.all_gone or self._stops() > 1)
        return Outcome(state=jobs.CANCELLED, warnings=_survivors(kill_descendants(self._note_end)), saved_step=saved)

    def _terminate_ranks(self) -> None:
        """The end signal to ranks and what they started; not to their engine, which would KILL them."""
        spared = {child.process.pid for child in self._children.values() if child.program.rank_id is None}
        for process in descendants():
            if process.pid not in spared:
                process.send(self.end_signal)

    def _save_first(self, grace_s: float) -> int | None:
        """Have all ranks end after the same step, which makes them save. Returns that step, None if they did not."""
        entered = max(read_position(self.paths.rank_position(rank_id)) for rank_id in self.states.ranks)
        # No rank can have begun that step: ranks wait for each other in every one.
        stop_at = jobs.step_to_stop_at(self.paths, entered + 2)
        with contextlib.suppress(OSError):
            write_atomic(self.paths.stop_at, f"{stop_at}\n", parents=False)
        self._for(grace_s, lambda: self.states.all_done or self._stops() > 1 or self.states.failing)
        return stop_at if self.states.all_done else None

    def _close(self) -> None:
        for handle in [key.fd for key in self._selector.get_map().values() if isinstance(key.data, _Watched)]:
            self._selector.unregister(handle)
            os.close(handle)
        self._selector.close()
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
