"""The judge: decides what is late, hangs, has failed, is lost, or stops, for one host's ranks and for all hosts alike.

Nothing here touches a process or a file, and nothing waits: facts, limits and a clock come in, a decision goes out.
``Attempt`` asks it about the ranks of its host, ``Leader`` about all hosts, and both carry out what it says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from launcher.common.clock import Clock
from launcher.plan.launch import HANG_FACTOR, MIN_HANG_TIMEOUT_S, Limits
from launcher.supervise.rank_states import ENGINE_LEAVES_S, SCHEDULER_FOLLOWS_S, Failure

# Facts are looked at this often when nothing happens; an end of a process wakes the supervisor at once.
TICK_S = 0.1

# How often checks are made that cost a system call a rank (is it suspended?) or can wait (does it hang?).
SLOW_TICK_S = 1.0

# After the first failure others may come in that were earlier: the verdict waits this long for them.
OTHERS_FOLLOW_S = 0.2

# An evaluation or a checkpoint may take so many times as long as a step before it counts as a hang.
BUSY_FACTOR = 10


class Facts(Protocol):
    """The facts known about the ranks: ``RankStates`` of one host, ``HostStates`` of many.

    ``busy``: some rank evaluates or writes a checkpoint, during which no step finishes. ``progress_at``: the time of
    the last progress of any rank, by the judge's monotonic clock; None before the first step, which compiles.
    """

    progress_at: float | None

    @property
    def all_ready(self) -> bool: ...

    @property
    def all_done(self) -> bool: ...

    @property
    def all_gone(self) -> bool: ...

    @property
    def failing(self) -> bool: ...

    @property
    def busy(self) -> bool: ...

    def step_time_s(self) -> float | None: ...

    def unready(self) -> Mapping[int, bool]:
        """Return the ranks that are not ready, and whether each has begun."""
        ...


class Evidence(Protocol):
    """Facts that an engine may still supply about a failure; see ``RankStates``."""

    @property
    def in_doubt(self) -> bool: ...

    @property
    def unexplained(self) -> bool: ...

    @property
    def scheduler_was_spared(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Look:
    """The findings of the slow checks. ``suspended``: ranks stopped by SIGSTOP, out of ``num_ranks``."""

    folder_gone: str = ""
    suspended: frozenset[int] = frozenset()
    num_ranks: int = 0


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The questions that a judge decides.

    ``failure_first``: a failure counts even while the job is being stopped. ``evidence``: the first failure is unknown
    until the engine has had time to leave. ``progress``: late and hanging ranks are judged here.
    """

    failure_first: bool = False
    evidence: Evidence | None = None
    progress: bool = True


class Action(Enum):
    """FAIL: with a failure, or with the first one of the facts. HANG: dump the stacks, then fail."""

    GO_ON = auto()
    FINISH = auto()
    STOP = auto()
    FAIL = auto()
    HANG = auto()


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A decision of the judge. ``wait_s``: ask again within this time. ``idle_s``: with HANG, time without progress."""

    action: Action
    failure: Failure | None = None
    wait_s: float = TICK_S
    idle_s: float = 0.0


_GO_ON = Decision(action=Action.GO_ON)


class Judge:
    """The judge of one attempt, from ``begin`` on, which is called when its ranks are started."""

    def __init__(self, limits: Limits, scope: Scope, *, clock: Clock = time) -> None:
        self._limits, self._scope, self._clock = limits, scope, clock
        self._began = self._slow_at = clock.monotonic()
        self._gathering: EvidenceWait | None = None
        self._suspended_since: dict[int, float] = {}
        self._gone_before = False

    def begin(self) -> None:
        self._began = self._clock.monotonic()

    def decide(self, facts: Facts, stop_level: int, look: Callable[[], Look]) -> Decision:
        """Return what to do now. ``stop_level``: see ``StopSignals``. ``look`` is called for slow checks only."""
        failing = facts.failing
        # A judge of agents' reports need not wait: each agent has gathered the evidence on its own host.
        if failing and self._scope.failure_first and (stop_level or self._scope.evidence is None):
            return Decision(action=Action.FAIL)
        # A failure that was noticed before the request to stop stays one while evidence is gathered.
        if stop_level and self._gathering is None:
            return Decision(action=Action.STOP)
        if facts.all_done:
            return Decision(action=Action.FINISH)
        return self._gather() if failing else self._slow_checks(facts, look)

    def _gather(self) -> Decision:
        """Wait until everything that may explain the failure has arrived."""
        if self._gathering is None:
            self._gathering = EvidenceWait(self._scope.evidence, clock=self._clock)
        left_s = self._gathering.left_s()
        if left_s > 0:
            return Decision(action=Action.GO_ON, wait_s=min(left_s, TICK_S))
        self._gathering = None
        return Decision(action=Action.FAIL)

    def _slow_checks(self, facts: Facts, look: Callable[[], Look]) -> Decision:
        self._gathering = None  # what looked like a failure was explained by an end in order
        now = self._clock.monotonic()
        if now < self._slow_at:  # a look at /proc and at a file server costs more than a tick is worth
            return _GO_ON
        self._slow_at = now + SLOW_TICK_S
        seen = look()
        # These two explain why nothing moves, so they come before late ranks and hangs.
        failure = self._folder_gone(seen) or self._suspended(seen, now)
        if failure is None and self._scope.progress:
            failure = self._late(facts, now)
            if failure is None and (idle_s := self._idle_s(facts, now)) is not None:
                return Decision(action=Action.HANG, idle_s=idle_s)
        return Decision(action=Action.FAIL, failure=failure) if failure else _GO_ON

    def _failure(self, kind: str, detail: str, rank_id: int | None = None, behind: Sequence[int] = ()) -> Failure:
        now = self._clock.time()
        return Failure(kind=kind, time=now, rank_id=rank_id, behind=tuple(behind), detail=detail)

    def _folder_gone(self, seen: Look) -> Failure | None:
        """Return a failure when two looks in a row miss the job's folder; renaming it and back is no failure."""
        was_gone, self._gone_before = self._gone_before, bool(seen.folder_gone)
        return self._failure("foreign", seen.folder_gone) if was_gone and seen.folder_gone else None

    def _suspended(self, seen: Look, now: float) -> Failure | None:
        """Find a rank that is suspended while another runs; when all are suspended, somebody did it on purpose."""
        self._suspended_since = {rank_id: self._suspended_since.get(rank_id, now) for rank_id in seen.suspended}
        if not seen.suspended or len(seen.suspended) == seen.num_ranks > 1:
            return None
        # The one that was stopped first: the others may have been stopped because of it.
        rank_id = min(sorted(seen.suspended), key=lambda rank_id: self._suspended_since[rank_id])
        if now - self._suspended_since[rank_id] < self._limits.stopped_s:
            return None
        return self._failure("stopped", f"{self._limits.stopped_s:.0f}", rank_id)

    def _late(self, facts: Facts, now: float) -> Failure | None:
        """Find the rank that holds the others up: preferably one that has not even begun."""
        if now - self._began < self._limits.start_timeout_s or facts.all_ready:
            return None
        late = facts.unready()
        if not late:
            return None
        # A rank that began waits in its set-up for one that did not: blame that one, not the waiting.
        first = next((rank_id for rank_id, begun in late.items() if not begun), next(iter(late)))
        behind = [rank_id for rank_id in late if rank_id != first]
        return self._failure("no_start", f"{self._limits.start_timeout_s:.0f}", first, behind)

    def hang_timeout_s(self, facts: Facts) -> float:
        """Return the longest time without progress that is allowed; longer during an evaluation or a checkpoint."""
        timeout_s = self._limits.hang_timeout_s
        if timeout_s is None:
            timeout_s = max(MIN_HANG_TIMEOUT_S, HANG_FACTOR * (facts.step_time_s() or 0.0))
        return timeout_s * (BUSY_FACTOR if facts.busy else 1)

    def _idle_s(self, facts: Facts, now: float) -> float | None:
        if facts.progress_at is None:  # the first step compiles, which may take an hour: only start_timeout_s bounds it
            return None
        idle_s = now - facts.progress_at
        # No limit that follows from the steps is shorter, and finding it takes the times of thousands of steps.
        if self._limits.hang_timeout_s is None and idle_s < MIN_HANG_TIMEOUT_S:
            return None
        return None if idle_s < self.hang_timeout_s(facts) else idle_s

    def no_progress(self, entered: Mapping[int, int], idle_s: float) -> Failure:
        """Return the failure for a hang. ``entered``: the step that each rank has entered last.

        A single rank that has not entered the step in which the others wait is the cause.
        """
        ahead = max(entered.values(), default=0)
        # Several that lag may all wait for each other: then none of them is named as the cause.
        behind = [rank_id for rank_id, step in sorted(entered.items()) if step < ahead]
        return self._failure("no_progress", f"{idle_s:.0f}", behind[0] if len(behind) == 1 else None, behind)


class EvidenceWait:
    """A sequence of waits, each as long as it may still bring evidence; at most 5.3 s in total.

    A rank's end looks the same whether it failed or its engine was told to stop and took it along. What tells them
    apart comes later: the code that the rank ended with, MindSpore's scheduler going too, the engine leaving.
    """

    def __init__(self, evidence: Evidence | None, *, clock: Clock = time) -> None:
        self._clock = clock
        self._waits = self._all_waits(evidence)
        self._next_wait()

    def _all_waits(self, evidence: Evidence | None) -> Iterator[tuple[float, Callable[[], bool]]]:
        """Yield (longest time in s, condition to keep waiting). Each wait begins when the one before is over."""
        yield OTHERS_FOLLOW_S, lambda: True
        if evidence is None:
            return
        # An engine that leaves says in its output how its ranks ended.
        yield ENGINE_LEAVES_S, lambda: evidence.unexplained
        yield SCHEDULER_FOLLOWS_S, lambda: evidence.in_doubt and evidence.scheduler_was_spared
        # An msrun that still has its scheduler reacts to a rank's death, and takes half a minute to leave.
        if not evidence.scheduler_was_spared:
            yield ENGINE_LEAVES_S, lambda: evidence.in_doubt

    def _next_wait(self) -> None:
        self._wait = next(self._waits, None)
        self._until = self._clock.monotonic() + (self._wait[0] if self._wait else 0.0)

    def left_s(self) -> float:
        """Return the longest time to wait before asking again; 0 when no more evidence can come."""
        while self._wait is not None:
            left_s = self._until - self._clock.monotonic()
            if left_s > 0 and self._wait[1]():
                return left_s
            self._next_wait()
        return 0.0


class Phase(Enum):
    """A phase of a stop. LOCATE: agree on a step that no rank has begun. SAVE: let all ranks save after it."""

    LOCATE = auto()
    SAVE = auto()
    TERMINATE = auto()
    KILL = auto()


class StopSequence:
    """The phases of a stop, one after the other, each until its goal is reached and at most ``grace_s`` long.

    A second request to stop skips every phase before KILL.
    """

    def __init__(self, phases: Sequence[Phase], grace_s: float, *, clock: Clock = time) -> None:
        self._clock, self._grace_s = clock, grace_s
        self._left = [*phases, Phase.KILL]
        # Each phase has its own full grace: a slow SAVE must not leave TERMINATE no time.
        self._until = clock.monotonic() + grace_s

    def phase(self, facts: Facts, stop_level: int, *, located: bool) -> Phase:
        """Return the current phase. ``located``: the step to stop after is known."""
        # A user who asks twice wants no more waiting, also not for a checkpoint.
        if stop_level > 1:
            self._left = [Phase.KILL]
        while self._left[0] is not Phase.KILL and self._is_over(self._left[0], facts, located):
            self._left.pop(0)
            self._until = self._clock.monotonic() + self._grace_s
        return self._left[0]

    def skip_save(self) -> None:
        """Leave SAVE out, because no step was agreed on."""
        self._left = [phase for phase in self._left if phase is not Phase.SAVE]

    def _is_over(self, phase: Phase, facts: Facts, located: bool) -> bool:
        if self._clock.monotonic() >= self._until:
            return True
        if phase is Phase.TERMINATE:
            return facts.all_gone
        # Ranks wait for each other in every step: once one has failed, the others cannot finish any.
        return facts.failing or facts.all_gone or (located if phase is Phase.LOCATE else facts.all_done)


class LifeSigns:
    """The heartbeats of one process as another sees them, timed by our own clock, because theirs may be off."""

    def __init__(self, lost_s: float, *, clock: Clock = time) -> None:
        self._lost_s, self._clock = lost_s, clock
        self.heartbeat: int | None = None
        self._seen = clock.monotonic()

    def note(self, heartbeat: int | None) -> bool:
        """Take a heartbeat; return True if it is a new one."""
        # Different, not greater: a leader that is started anew counts from 1 again.
        is_new = heartbeat is not None and heartbeat != self.heartbeat
        if is_new:
            self.heartbeat = heartbeat
            self.excuse()
        return is_new

    def excuse(self) -> None:
        """Count silence from now on, because nothing could have been heard before."""
        self._seen = self._clock.monotonic()

    @property
    def silent_s(self) -> float:
        return self._clock.monotonic() - self._seen

    @property
    def lost(self) -> bool:
        return self.silent_s > self._lost_s


class Loss(Enum):
    """The ways to lose a host. GAVE_UP: its agent ended unasked. LEFT: the process that started the agent ended.

    SILENT: no sign of life.
    """

    GAVE_UP = auto()
    LEFT = auto()
    SILENT = auto()


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """The facts about one host's agent. ``left_s``: time since the process that started it ended, None while it lives.

    ``patience_s``: the time that its last report may take to arrive after that.
    """

    registered: bool
    ended: bool
    cancelled: bool
    silent: bool
    left_s: float | None = None
    patience_s: float = 0.0


def judge_host(host: HostFacts, *, told_to_run: bool) -> Loss | None:
    """Return how a host was lost, None while it is not. ``told_to_run``: told to start, and not yet to stop."""
    if host.ended:
        return Loss.GAVE_UP if host.cancelled and told_to_run else None
    if host.left_s is not None and host.left_s > host.patience_s:
        return Loss.LEFT
    return Loss.SILENT if host.registered and host.silent else None
