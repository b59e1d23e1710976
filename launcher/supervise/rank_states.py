"""Facts about a job's processes, and the first of its failures. Nothing here touches a process."""

from __future__ import annotations

import signal
import statistics
import time
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from launcher.common.clock import Clock
from launcher.common.processes import ProcessId
from launcher.jobs.events import Begin, Done, Error, Evaluation, Event, Exit, Ready, Save, Step

SCHEDULER = "scheduler"

# Ranks that end of the same signal within this time of each other were ended by the same sender.
TOGETHER_S = 0.15

# Time that an engine takes to leave after it has killed all its ranks (msrun on SIGINT: 0.5 to 1.9 s).
ENGINE_LEAVES_S = 2.5

# Time until the scheduler of an msrun that was told to stop follows its ranks: they are killed one after another.
SCHEDULER_FOLLOWS_S = 0.4

# Exit code of an engine that was told to stop; it never ends with it after a rank's death by a signal.
_OBEYED = {"msrun": 0, "mpirun": 1}

# Exit codes of the first rank that an engine ends when it is told to stop; the others may end of its loss.
_ENGINES_DOING = (None, -signal.SIGTERM, -signal.SIGKILL)

_STEPS_KEPT = 50


@dataclass(kw_only=True)
class Rank:
    """The known facts about one rank.

    ``begun``: it reported; its process may be known before. ``gone``: the time at which its process was seen ended;
    ``code``: its exit code, once known.
    """

    rank_id: int
    process: ProcessId | None = None
    begun: bool = False
    ready: bool = False
    done: bool = False
    busy: bool = False
    error: Error | None = None
    gone: float | None = None
    code: int | None = None
    last_step: int | None = None
    step_times: deque[float] = field(default_factory=lambda: deque(maxlen=_STEPS_KEPT))

    @property
    def failed(self) -> bool:
        return self.error is not None or (self.gone is not None and not self.done)

    def note_progress(self, event: Step | Evaluation | Save) -> None:
        """Note a finished step, or an evaluation or a checkpoint that begins or ends."""
        self.busy = not isinstance(event, Step) and event.seconds is None
        if isinstance(event, Step):
            self.last_step = event.step
            self.step_times.append(event.step_s)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The first thing that went wrong. ``program`` is set when it was not a rank; ``kind`` is one of:

    exception, exit (a process ended), no_start, no_progress, stopped, foreign (this launcher itself could not go on)
    """

    kind: str
    time: float
    rank_id: int | None = None
    program: str | None = None
    event: Error | None = None
    code: int | None = None
    behind: tuple[int, ...] = ()
    detail: str = ""


def _process(event: Begin) -> ProcessId:
    return ProcessId(pid=event.pid, started=event.started, ticks=event.ticks, boot=event.boot)


class RankStates:
    """Facts about one attempt.

    ``ranks``: their number, or their ids. ``engine``: the program that starts the ranks, None when we start them.
    """

    def __init__(self, ranks: int | Collection[int], engine: str | None, *, clock: Clock = time) -> None:
        ids = range(ranks) if isinstance(ranks, int) else ranks
        self.ranks = {rank_id: Rank(rank_id=rank_id) for rank_id in ids}
        self.engine, self._clock = engine, clock
        self.scheduler: ProcessId | None = None
        self.scheduler_error: Error | None = None
        self.programs_gone: dict[str, tuple[float, int | None]] = {}
        self.progress_at: float | None = None

    # ------------------------------------------------------------------------------------------------ facts in

    def note(self, event: Event) -> None:
        """Take an event that a rank or the scheduler reported."""
        rank = None if event.rank_id is None else self.ranks.get(event.rank_id)
        if rank is None:
            self._note_scheduler(event)
            return
        if isinstance(event, Step | Evaluation | Save):
            rank.note_progress(event)
            self.progress_at = self._clock.monotonic()  # the events' own times follow a clock that may be set
        elif isinstance(event, Begin):
            rank.process = _process(event)
            rank.begun = True
        elif isinstance(event, Ready):
            rank.ready = True
        elif isinstance(event, Error):
            rank.error = event
        elif isinstance(event, Done):
            rank.done = True
        elif isinstance(event, Exit):
            self.rank_gone(rank.rank_id, event.time, event.code)

    def _note_scheduler(self, event: Event) -> None:
        if isinstance(event, Begin):
            self.scheduler = _process(event)
        elif isinstance(event, Error):
            self.scheduler_error = event
        elif isinstance(event, Exit):
            self.program_gone(SCHEDULER, event.time, event.code)

    def rank_gone(self, rank_id: int, when: float, code: int | None = None) -> None:
        rank = self.ranks[rank_id]
        # The end is noticed several times (its pidfd, its parent, its own event); the earliest time is the truest.
        rank.gone = when if rank.gone is None else min(rank.gone, when)
        rank.code = rank.code if code is None else code

    def rank_named(self, rank_id: int, now: float, code: int) -> None:
        """Take its engine's word that a rank ended before all others. The rank's own report takes precedence."""
        if self.ranks[rank_id].error is None and not self.ranks[rank_id].done:
            seen = [rank.gone for rank in self.ranks.values() if rank.gone is not None]
            seen += [when for name, (when, _) in self.programs_gone.items() if name == self.engine]
            # Just before whatever was seen first, so that it sorts as the first failure.
            self.rank_gone(rank_id, min(seen, default=now) - 1e-6, code)

    def program_gone(self, name: str, when: float, code: int | None = None) -> None:
        known = self.programs_gone.get(name)
        self.programs_gone[name] = (min(known[0], when), known[1] if code is None else code) if known else (when, code)

    # ------------------------------------------------------------------------------------------------ facts out

    @property
    def all_ready(self) -> bool:
        return all(rank.ready for rank in self.ranks.values())

    def unready(self) -> dict[int, bool]:
        """Return the ranks that are not ready, and whether each has begun."""
        return {rank.rank_id: rank.begun for rank in self.ranks.values() if not rank.ready}

    @property
    def all_done(self) -> bool:
        return all(rank.done for rank in self.ranks.values())

    @property
    def busy(self) -> bool:
        """Return True while some rank goes through the held-out rows or writes a checkpoint: no step finishes then."""
        return any(rank.busy for rank in self.ranks.values())

    @property
    def all_gone(self) -> bool:
        return all(rank.gone is not None for rank in self.ranks.values())

    @property
    def failing(self) -> bool:
        """Return True when something has failed; ``first_failure`` is reliable only once the evidence has arrived."""
        if self.all_done:
            return False
        ranks_fail = any(rank.failed for rank in self.ranks.values())
        return ranks_fail or self.scheduler_error is not None or bool(self._programs_failed())

    @property
    def in_doubt(self) -> bool:
        """Return True when the engine, which still runs, may have ended the ranks: together, or the first by TERM."""
        if self.engine is None or self.engine in self.programs_gone:
            return False
        first = self.first_failure()
        by_term = first is not None and first.code == -signal.SIGTERM
        return by_term or (len(self.ranks) > 1 and self._ended_by_one_hand())

    @property
    def unexplained(self) -> bool:
        """Return True when a rank is gone with unknown exit code: its parent or its engine may still report it."""
        engine_lives = self.engine is not None and self.engine not in self.programs_gone
        return engine_lives and any(r.gone is not None and r.code is None and not r.error for r in self.ranks.values())

    @property
    def scheduler_was_spared(self) -> bool:
        """Return True while msrun's scheduler lives: msrun kills it right after the ranks when it is told to stop, but
        not when a rank's death makes it kill the others (mindspore 2.9.0, parallel/cluster/process_entity/_api.py)."""
        return self.engine == "msrun" and self.scheduler is not None and SCHEDULER not in self.programs_gone

    def step_time_s(self) -> float | None:
        """Return the median time of the last steps of all ranks; each rank's first step compiles and does not count."""
        times = [time for rank in self.ranks.values() for time in list(rank.step_times)[1:]]
        return statistics.median(times) if times else None

    def first_failure(self) -> Failure | None:
        """Return the earliest failure by the clock. Ranks that an engine ended when it stopped did not fail first."""
        failures = sorted(self._failures(), key=lambda failure: failure.time)
        engine = next((failure for failure in failures if failure.program and failure.program == self.engine), None)
        if engine and self._took_ranks_along(engine, failures[0]):
            return engine
        return failures[0] if failures else None

    def _failures(self) -> Iterable[Failure]:
        for rank in self.ranks.values():
            if rank.error is not None:
                yield Failure(kind="exception", time=rank.error.time, rank_id=rank.rank_id, event=rank.error)
            elif rank.gone is not None and not rank.done:
                yield Failure(kind="exit", time=rank.gone, rank_id=rank.rank_id, code=rank.code)
        if self.scheduler_error is not None:
            error = self.scheduler_error
            yield Failure(kind="exception", time=error.time, program=SCHEDULER, event=error)
        for name, (when, code) in self._programs_failed().items():
            yield Failure(kind="exit", time=when, program=name, code=code)

    def _programs_failed(self) -> dict[str, tuple[float, int | None]]:
        """Return the programs that ended before the ranks, except a scheduler with code 0, which was finished."""
        return {name: end for name, end in self.programs_gone.items() if name != SCHEDULER or end[1] != 0}

    def _took_ranks_along(self, engine: Failure, first: Failure) -> bool:
        """Return True when the engine ended the ranks: told to stop, msrun ends with 0 and mpirun with 1; after a
        rank's death neither does."""
        if engine is first:
            return True
        obeyed = engine.code == _OBEYED.get(str(engine.program))
        # The code alone proves that it was told to stop; ranks need not have ended together then.
        if obeyed and first.rank_id is not None and first.kind == "exit" and first.code in _ENGINES_DOING:
            return engine.time - first.time < ENGINE_LEAVES_S
        told = obeyed or engine.code is None or engine.code < 0
        # msrun may have killed its scheduler before the ranks' ends were seen: either order within the time counts.
        if first.program == SCHEDULER:
            return told and abs(engine.time - first.time) < ENGINE_LEAVES_S
        return told and engine.time - first.time < ENGINE_LEAVES_S and self._ended_by_one_hand()

    def _ended_by_one_hand(self) -> bool:
        """Return True when all ended together of the same signal, or the first one of TERM, which mpirun sends to them
        one after another."""
        gone = sorted(((r.gone, r.code) for r in self.ranks.values() if r.gone is not None), key=lambda r: r[0])
        # A rank that could still report a Python exception was not ended by a signal from outside.
        if not gone or any(rank.error for rank in self.ranks.values()):
            return False
        # KILL follows TERM for ranks that did not obey in time, so a mix of both is still one sender.
        codes = {code for _, code in gone} - {None}
        if gone[0][1] == -signal.SIGTERM:
            return codes <= {-signal.SIGTERM, -signal.SIGKILL}
        all_gone = len(gone) == len(self.ranks)
        by_signal = len(codes) <= 1 and all(code is not None and code < 0 for code in codes)
        return all_gone and by_signal and gone[-1][0] - gone[0][0] < TOGETHER_S
