"""Histories as data: what happens when, told to the judge by a clock that tests turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.jobs.events import Event, from_json
from launcher.plan.launch import Limits
from launcher.supervise.judge import TICK_S, Action, Judge, Look, Scope
from launcher.supervise.rank_states import Failure, RankStates

# Wall clock and monotonic clock differ in a history too.
EPOCH = 1_000_000.0


@dataclass
class FakeClock:
    """Time passes by ``sleep`` alone; ``at`` calls back when a moment has come."""

    now: float = 100.0
    plans: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    def time(self) -> float:
        return EPOCH + self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        until = self.now + seconds
        while due := [plan for plan in self.plans if plan[0] <= until + 1e-9]:
            plan = min(due, key=lambda plan: plan[0])
            self.plans.remove(plan)
            self.now = max(self.now, plan[0])
            plan[1]()
        self.now = max(self.now, until)

    def at(self, when: float, act: Callable[[], object]) -> None:
        self.plans.append((100.0 + when, act))


@dataclass
class History:
    """One host's ranks. What happens is a tuple: (seconds, rank id or program, what, values)."""

    ranks: int = 2
    engine: str | None = None
    limits: Limits = field(default_factory=Limits)
    scope: dict[str, Any] = field(default_factory=dict)
    stop_level: int = 0
    suspended: frozenset[int] = frozenset()
    folder_gone: str = ""

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.states = RankStates(self.ranks, self.engine, clock=self.clock)
        self.judge = Judge(self.limits, Scope(evidence=self.states, **self.scope), clock=self.clock)

    def happen(self, *events: tuple[Any, ...]) -> History:
        for when, who, what, *values in events:
            self.clock.at(when, lambda who=who, what=what, values=values: self._apply(who, what, *values))  # type: ignore[misc]
        return self

    def _apply(self, who: Any, what: str, *values: Any) -> None:
        if what == "stop":
            self.stop_level += 1
        elif what in ("suspended", "folder_gone"):
            setattr(self, what, values[0])
        elif what == "gone":
            gone = self.states.rank_gone if isinstance(who, int) else self.states.program_gone
            gone(who, self.clock.time(), *values)
        else:
            self.states.note(self._event(who, what, *values))

    def _event(self, who: Any, what: str, *values: Any) -> Event:
        fields: dict[str, Any] = {
            "begin": {"pid": 1, "started": 1.0},
            "step": {"step": values[0] if values else 0, "step_s": values[1] if len(values) > 1 else 1.0},
            "error": {"type": "ValueError", "message": values[0] if values else "", "traceback": ""},
            "done_saving": {"event": "save", "seconds": 1.0},
        }.get(what, {})
        rank_id = who if isinstance(who, int) else None
        event = from_json({"time": self.clock.time(), "rank_id": rank_id, "event": what, **fields})
        assert event, what
        return event

    def look(self) -> Look:
        return Look(folder_gone=self.folder_gone, suspended=self.suspended, num_ranks=self.ranks)

    def run(self, seconds: float) -> Ending | None:
        """Return how the judge ended it, and when; None when it went on for all of ``seconds``."""
        wait_s = TICK_S
        while self.clock.now < 100.0 + seconds:
            self.clock.sleep(wait_s)
            decision = self.judge.decide(self.states, self.stop_level, self.look)
            wait_s = decision.wait_s
            if decision.action is not Action.GO_ON:
                failure = decision.failure or (self.states.first_failure() if decision.action is Action.FAIL else None)
                return Ending(decision.action, self.clock.now - 100.0, failure, decision.idle_s)
        return None


@dataclass(frozen=True)
class Ending:
    action: Action
    at: float
    failure: Failure | None
    idle_s: float


def ready(ranks: Sequence[int], when: float = 1.0) -> list[tuple[Any, ...]]:
    return [(when, rank, what) for rank in ranks for what in ("begin", "ready")]


def steps(ranks: Sequence[int], first: int, last: int, begin: float, each: float) -> list[tuple[Any, ...]]:
    """Steps ``first`` to ``last`` of ranks that go at the same speed; the first ends at ``begin``."""
    return [
        (begin + (step - first) * each, rank, "step", step, each) for step in range(first, last + 1) for rank in ranks
    ]
