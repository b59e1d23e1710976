"""The history of a job: its attempts and what every rank reported in them, as one series per metric.

A job that was resumed has done some steps twice. Of a step that was done again the newest attempt counts; the others
are ``redone_steps``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from launcher.common.json_files import json_or_empty
from launcher.errors import LauncherError
from launcher.jobs import JobPaths, JobRecord, loss_rank, verdict_fields
from launcher.observe.columns import Floats, RankEvents, read_ranks

# What reading a folder may raise in which anything may stand, as somebody edited or cut its files.
FOLDER_DAMAGES = (LauncherError, OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of an attempt, in seconds since the epoch. ``kind``: start, compile, train, evaluate, save or stop."""

    kind: str
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return max(0.0, self.end - self.begin)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of the job's processes. ``began``, ``ended``: seconds since the epoch.

    ``from_step``: steps that were done before it. ``reason``: why it ended, "" where nothing failed. ``cause``: the
    known error in it, or "". ``failed_at``, ``found_at``: when it failed, and when that was noticed. None: unknown.
    ``restart``: by language, whether and why another followed; empty where none was asked for.
    """

    number: int
    began: float | None
    ended: float | None
    reason: str
    from_step: int | None
    ranks: tuple[RankEvents, ...]
    phases: tuple[Phase, ...]
    cause: str = ""
    failed_at: float | None = None
    found_at: float | None = None
    restart: Mapping[str, str] = field(default_factory=dict)

    @property
    def last_step(self) -> int | None:
        """Return the last step that any rank finished."""
        steps = [rank.steps["step"][-1] for rank in self.ranks if rank.count]
        return int(max(steps)) if steps else None


@dataclass(frozen=True, kw_only=True)
class Series:
    """A value a step. ``low``, ``high``: the spread over ranks, where it differs; NaN: not reported."""

    steps: Floats
    values: Floats
    low: Floats | None = None
    high: Floats | None = None

    @property
    def last(self) -> float | None:
        """Return the last value that was reported."""
        known = self.values[~np.isnan(self.values)]
        return float(known[-1]) if len(known) else None

    @property
    def is_empty(self) -> bool:
        return not np.isfinite(self.values).any()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A step that was saved; ``seconds`` of the slowest rank. ``ranks``: how many saved it."""

    step: int
    time: float
    seconds: float
    ranks: int


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A held-out loss in training."""

    step: int
    time: float
    loss: float
    seconds: float


@dataclass(frozen=True)
class History:
    """All that the folder of one job tells about its course. ``spec``, ``plan``: their files; empty if unreadable."""

    paths: JobPaths
    record: JobRecord
    spec: Mapping[str, Any]
    plan: Mapping[str, Any]
    attempts: tuple[Attempt, ...]
    loss_rank: int

    @cached_property
    def steps(self) -> Floats:
        """The steps of the run that were done, each once."""
        return self._merged(lambda ranks: self._of(ranks).steps["step"])

    @cached_property
    def times(self) -> Floats:
        """When each step ended, in seconds since the epoch."""
        return self._merged(lambda ranks: self._of(ranks).steps["time"])

    @cached_property
    def first_steps(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which steps were the first of an attempt."""
        begun = [self._of(attempt.ranks).steps["step"][:1] for attempt in self.attempts]
        return np.isin(self.steps, np.concatenate([np.empty(0), *begun]))

    @cached_property
    def redone_steps(self) -> int:
        """The number of steps that were lost with an attempt, and done again or still to be done."""
        done = sum(self._of(attempt.ranks).count for attempt in self.attempts)
        return done - len(self.steps)

    @property
    def knows_redone_steps(self) -> bool:
        """Return False while the newest attempt has not told from which step it goes on."""
        return self.record.is_final or len(self.attempts) < 2 or self.attempts[-1].from_step is not None

    @cached_property
    def total_steps(self) -> int | None:
        steps = self.plan.get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def done_steps(self) -> int:
        """Return the number of the last step that is done."""
        return int(self.steps[-1]) if len(self.steps) else self._resumed_from

    @property
    def _resumed_from(self) -> int:
        return (self.attempts[-1].from_step or 0) if self.attempts else 0

    @cached_property
    def semi_auto(self) -> bool:
        """Whether every rank sees the whole batch, and the loss of all is the same."""
        return bool(value_at(self.spec, "parallel", "mode") == "semi_auto")

    # ------------------------------------------------------------------------------------------------ series

    def over_ranks(self, name: str, fold: Callable[[Floats], Floats]) -> Floats:
        """Return the column ``name`` of all ranks, (ranks, steps) of an attempt, folded to a value a step."""
        return self._merged(lambda ranks: fold(self._stacked(ranks, name)))

    def series(self, name: str, fold: Callable[[Floats], Floats], *, spread: bool = False) -> Series:
        """Return the column ``name`` folded over ranks, with its lowest and highest if ``spread``."""
        low = high = None
        if spread and self.record.cards > 1:
            low, high = self.over_ranks(name, lowest), self.over_ranks(name, highest)
            low, high = (low, high) if (high > low).any() else (None, None)
        return Series(steps=self.steps, values=self.over_ranks(name, fold), low=low, high=high)

    def of_attempt(self, attempt: Attempt) -> RankEvents:
        """Return what the rank whose loss counts reported in ``attempt``."""
        return self._of(attempt.ranks)

    def _of(self, ranks: Sequence[RankEvents]) -> RankEvents:
        """Return the rank whose steps are the job's: the one whose loss counts."""
        return ranks[min(self.loss_rank, len(ranks) - 1)]

    def _stacked(self, ranks: Sequence[RankEvents], name: str) -> Floats:
        steps = self._of(ranks).steps["step"]
        return np.stack([_at(rank, name, steps) for rank in ranks])

    def _merged(self, column: Callable[[Sequence[RankEvents]], Floats]) -> Floats:
        """Return ``column`` of all attempts, each step once: of the newest attempt that did it."""
        parts, done_later = [np.empty(0)], math.inf
        for attempt in reversed(self.attempts):
            steps = self._of(attempt.ranks).steps["step"]
            parts.append(column(attempt.ranks)[steps < done_later])
            begun_at = math.inf if attempt.from_step is None else attempt.from_step + 1
            done_later = min(done_later, begun_at, steps[0] if len(steps) else math.inf)
        return np.concatenate(parts[::-1])

    # ------------------------------------------------------------------------------------------------ events

    @cached_property
    def held_out(self) -> tuple[HeldOut, ...]:
        """The losses on held-out rows, by step."""
        found: dict[int, HeldOut] = {}
        for event in self._events("eval"):
            loss = _finite(event.get("loss"))
            if loss is not None:
                found[int(event["step"])] = HeldOut(
                    step=int(event["step"]), time=float(event["time"]), loss=loss,
                    seconds=_finite(event.get("seconds")) or 0.0,
                )  # fmt: skip
        return tuple(found[step] for step in sorted(found))

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The steps that were saved, by step."""
        saves: dict[int, list[dict[str, Any]]] = {}
        for event in self._events("save"):
            if _finite(event.get("seconds")) is not None:
                saves.setdefault(int(event["step"]), []).append(event)
        return tuple(_checkpoint(step, events) for step, events in sorted(saves.items()))

    def _events(self, kind: str) -> list[dict[str, Any]]:
        return [event for attempt in self.attempts for rank in attempt.ranks for event in rank.of_kind(kind)
                if _finite(event.get("step")) is not None and _finite(event.get("time")) is not None]  # fmt: skip

    @cached_property
    def damaged(self) -> int:
        """The number of lines of events that cannot be read."""
        return sum(rank.damaged for attempt in self.attempts for rank in attempt.ranks)


def _checkpoint(step: int, events: Sequence[Mapping[str, Any]]) -> Checkpoint:
    """MindFormers saves in two parts, weights and all: a rank's seconds are their sum."""
    seconds: dict[Any, float] = {}
    for event in events:
        seconds[event.get("rank_id")] = seconds.get(event.get("rank_id"), 0.0) + float(event["seconds"])
    last = max(float(event["time"]) for event in events)
    return Checkpoint(step=step, time=last, seconds=max(seconds.values()), ranks=len(seconds))


def _at(rank: RankEvents, name: str, steps: Floats) -> Floats:
    """Return the column ``name`` at ``steps``; NaN where this rank has not done them."""
    own = rank.steps["step"]
    if np.array_equal(own, steps):
        return rank.steps[name]
    found = np.full(len(steps), math.nan)
    places = np.searchsorted(own, steps)
    places[places == len(own)] = 0
    same = own[places] == steps if len(own) else np.zeros(len(steps), bool)
    found[same] = rank.steps[name][places[same]]
    return found


# --------------------------------------------------------------------------------------------------------- folds


def lowest(ranks: Floats) -> Floats:
    """Return the lowest value over ranks that is known."""
    return np.asarray(np.fmin.reduce(ranks, axis=0))


def highest(ranks: Floats) -> Floats:
    """Return the highest value over ranks that is known."""
    return np.asarray(np.fmax.reduce(ranks, axis=0))


def total(ranks: Floats) -> Floats:
    """Return the sum over ranks; NaN where one is not known."""
    return np.asarray(ranks.sum(axis=0))


def mean(ranks: Floats) -> Floats:
    """Return the mean over the ranks whose value is known; NaN where none is."""
    known = ~np.isnan(ranks)
    counts = known.sum(axis=0)
    sums = np.where(known, ranks, 0.0).sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)


# --------------------------------------------------------------------------------------------------------- reading


def read_history(paths: JobPaths, record: JobRecord) -> History:
    """Read the history of the job at ``paths``. What is missing or damaged in the folder is left out."""
    spec, plan = json_or_empty(paths.spec), json_or_empty(paths.plan)
    attempts = tuple(_attempt(paths, record, number) for number in range(1, record.attempt + 1))
    return History(paths, record, spec, plan, attempts, loss_rank(paths, record.cards))


def read_outline(paths: JobPaths, record: JobRecord) -> History:
    """Read what a list of many jobs shows: of very many ranks, or where all have the same loss, that of one alone."""
    if record.cards <= _MOST_LISTED and value_at(json_or_empty(paths.spec), "parallel", "mode") != "semi_auto":
        return read_history(paths, record)
    spec, plan = json_or_empty(paths.spec), json_or_empty(paths.plan)
    chosen = loss_rank(paths, record.cards)
    numbers = range(1, record.attempt + 1)
    attempts = tuple(_attempt(paths, record, number, ranks=(chosen,)) for number in numbers)
    return History(paths, record, spec, plan, attempts, chosen)


# Each rank is a file to read, and the list is read by all who look at it.
_MOST_LISTED = 16


def value_at(values: Any, *keys: str) -> Any:
    """Return what ``values`` has at ``keys``; None where it has not."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def seconds_of(moment: str | None) -> float | None:
    """Return a time of a record in seconds since the epoch; None where there is none."""
    try:
        return datetime.fromisoformat(moment or "").timestamp()
    except ValueError:
        return None


def ended_at(attempt: Attempt, history: History, now: Callable[[], float]) -> float | None:
    """Return when ``attempt`` ended; ``now`` while it runs."""
    if attempt.ended is not None:
        return attempt.ended
    if attempt.number == len(history.attempts) and not history.record.is_final:
        return now()
    return attempt.phases[-1].end if attempt.phases else None


def gaps(history: History) -> list[float | None]:
    """Return the seconds between each attempt's end and the next one's begin; None where one is not known."""
    pairs = zip(history.attempts, history.attempts[1:], strict=False)
    return [
        None if before.ended is None or after.began is None else max(0.0, after.began - before.ended)
        for before, after in pairs
    ]


def _attempt(paths: JobPaths, record: JobRecord, number: int, ranks: Sequence[int] | None = None) -> Attempt:
    entry = next((entry for entry in record.earlier if entry.get("attempt") == number), None)
    if entry is None:
        verdict = record.verdict or {}
        entry = {"started": record.started, "ended": record.ended, **verdict_fields(verdict)}
    own = paths.of_attempt(number)
    read = read_ranks([own.rank_events(rank_id) for rank_id in ranks or range(max(1, record.cards))])
    began, ended = seconds_of(entry.get("started")), seconds_of(entry.get("ended"))
    reason = str(entry.get("reason") or "")
    ready = [event for rank in read for event in rank.of_kind("ready")]
    return Attempt(
        number=number, began=began, ended=ended, reason=reason, ranks=read, cause=str(entry.get("known") or ""),
        failed_at=_finite(entry.get("failed_at")) or (_first_failure(read) if reason else None),
        found_at=_finite(entry.get("found_at")),
        from_step=int(_finite(ready[0].get("from_step")) or 0) if ready else None,
        restart=restart if isinstance(restart := entry.get("restart"), Mapping) else {},
        phases=tuple(_phases(read[min(loss_rank(paths, record.cards), len(read) - 1)], read, began, ended)),
    )  # fmt: skip


def _first_failure(ranks: Sequence[RankEvents]) -> float | None:
    """Return when the first rank reported an error or was gone: records of earlier versions do not say it."""
    events = [event for rank in ranks for event in rank.others]
    ends = [e for e in events if e["event"] == "error" or (e["event"] == "exit" and e.get("code") != 0)]
    return min((time for event in ends if (time := _finite(event.get("time"))) is not None), default=None)


def _phases(rank: RankEvents, ranks: Sequence[RankEvents], began: float | None, ended: float | None) -> list[Phase]:
    """Return what an attempt did, in the order of time: the steps are those of ``rank``."""
    begins, readies = _times(ranks, "begin"), _times(ranks, "ready")
    marks = [began if began is not None else min(begins, default=None)]
    marks += [max(readies)] if len(readies) == len(ranks) else []
    steps = rank.steps["time"]
    marks += [float(steps[0]), float(steps[-1])] if len(steps) and len(marks) == 2 else []
    if marks[0] is None:
        return []
    latest = max([*begins, *readies, *(float(r.steps["time"][-1]) for r in ranks if r.count)], default=marks[0])
    marks.append(max(ended if ended is not None else latest, marks[-1] or 0.0))
    kinds = ("start", "compile", "train", "stop")
    found = [
        Phase(kind=kind, begin=a or 0.0, end=b or 0.0) for kind, a, b in zip(kinds, marks, marks[1:], strict=False)
    ]
    return [*found, *_aside(rank, "save", "save"), *_aside(rank, "eval", "evaluate")]


def _times(ranks: Sequence[RankEvents], kind: str) -> list[float]:
    times = [_finite(event.get("time")) for rank in ranks for event in rank.of_kind(kind)[:1]]
    return [time for time in times if time is not None]


def _aside(rank: RankEvents, event_kind: str, kind: str) -> list[Phase]:
    ends = [(_finite(event.get("time")), _finite(event.get("seconds"))) for event in rank.of_kind(event_kind)]
    return [Phase(kind=kind, begin=end - s, end=end) for end, s in ends if end is not None and s is not None]


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
