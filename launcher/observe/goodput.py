"""Where the time of a job went: every second from its first start to its end is in one part.

Steps that count are productive. The ratio of productive to all of the time is called goodput, or effective training
time ratio (ETTR, as in ByteRobust, arXiv 2509.16293). The wait for a scheduler before the first start is told apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from launcher.common.clock import seconds_text
from launcher.observe.columns import RankEvents
from launcher.observe.history import Attempt, History, ended_at, gaps, seconds_of
from launcher.observe.metrics import usual_step_s
from launcher.observe.words import Say

# In the order in which an attempt goes through them.
STARTING = ("spawn", "import", "rendezvous", "load", "compile")
PARTS = (*STARTING, "steps", "evaluation", "saving", "between", "wasted", "detection", "stop", "idle", "now")

# Between unexpected failures of one card, where a job had none: 419 in 54 days on 16,384 GPUs (Llama 3, arXiv
# 2407.21783, section 3.3.4).
USUAL_CARD_HOURS = 54 * 24 * 16384 / 419


@dataclass(frozen=True, kw_only=True)
class Repair:
    """A failed attempt after which the job went on. ``seconds``: from the failure to the next attempt's first step."""

    attempt: int
    cause: str
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A time between checkpoints by Young's formula, sqrt(2 x save x time between failures), and its inputs.

    ``steps``: that many steps. ``measured``: the time between failures is this job's own, not the usual one.
    """

    seconds: float
    steps: int
    save_s: float
    between_failures_s: float
    measured: bool


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """The seconds of a job by part. ``waited_s``: before the first start. ``lost_steps``: done again, or to be."""

    parts: Mapping[str, float]
    waited_s: float
    failures: int
    lost_steps: int
    repairs: tuple[Repair, ...]
    interval: Interval | None

    @property
    def wall_s(self) -> float:
        return sum(self.parts.values())

    @property
    def running_s(self) -> float:
        """Return the time in attempts."""
        return self.wall_s - self.parts.get("idle", 0.0)

    @property
    def productive_s(self) -> float:
        """Return the time in steps that count, without compiling, saving and evaluating."""
        return self.parts.get("steps", 0.0)

    @property
    def ratio(self) -> float | None:
        """Return the share of productive time; None before there is any time."""
        return self.productive_s / self.wall_s if self.wall_s > 0 else None

    @property
    def mean_repair_s(self) -> dict[str, float]:
        """Return the mean time to repair (MTTR) by cause."""
        causes: dict[str, list[float]] = {}
        for repair in self.repairs:
            if repair.seconds is not None:
                causes.setdefault(repair.cause, []).append(repair.seconds)
        return {cause: math.fsum(seconds) / len(seconds) for cause, seconds in causes.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "wall_s": round(self.wall_s, 3),
            "ratio": self.ratio,
            "parts_s": {name: round(seconds, 3) for name, seconds in self.parts.items()},
            "waited_s": round(self.waited_s, 3),
            "failures": self.failures,
            "lost_steps": self.lost_steps,
            "repairs": [asdict(repair) for repair in self.repairs],
            "mean_repair_s": self.mean_repair_s,
            "interval": asdict(self.interval) if self.interval else None,
        }


def interval_text(interval: Interval, say: Say) -> str:
    """Return the proposed time between checkpoints with its inputs."""
    return say(
        "A checkpoint every {steps} steps wastes least, by sqrt(2 x save x time between failures): "
        "sqrt(2 x {save} x {between}) = {seconds}. {source}",
        steps=f"{interval.steps:,}", save=seconds_text(interval.save_s),
        between=_hours(interval.between_failures_s), seconds=seconds_text(interval.seconds),
        source=say("The failures are this job's own.") if interval.measured else
        say("The time between failures is that of Llama 3 (50,677 hours of one card), as this job had none."),
    )  # fmt: skip


def _hours(seconds: float) -> str:
    return seconds_text(seconds) if seconds < 360_000 else f"{seconds / 3600:,.0f} h"


def goodput(history: History, now: Callable[[], float] = time.time) -> Goodput:
    """Return where the time of ``history`` went, until ``now`` for a job that runs."""
    usual = usual_step_s(history)
    bounds = list(_lost_after(history.attempts))
    parts = dict.fromkeys(PARTS, 0.0)
    for attempt, bound in zip(history.attempts, bounds, strict=True):
        end = ended_at(attempt, history, now)
        rank = history.of_attempt(attempt)
        course = _Course(attempt=attempt, rank=rank, lost_after=bound, usual=usual or math.inf, end=end,
                         runs=attempt is history.attempts[-1] and not history.record.is_final)  # fmt: skip
        for name, seconds in course.parts():
            parts[name] += max(0.0, seconds)
    parts["idle"] = sum(gap or 0.0 for gap in gaps(history))
    created, began = seconds_of(history.record.created), history.attempts[0].began if history.attempts else None
    failures = sum(1 for attempt in history.attempts if attempt.failed_at is not None)
    return Goodput(
        parts={name: seconds for name, seconds in parts.items() if seconds > 0},
        waited_s=max(0.0, began - created) if began and created else 0.0,
        failures=failures,
        lost_steps=history.redone_steps,
        repairs=tuple(_repairs(history)),
        interval=_interval(history, sum(parts.values()) - parts["idle"], failures, usual),
    )


def _lost_after(attempts: Sequence[Attempt]) -> Iterator[float]:
    """Yield for each attempt the last of its steps that no later attempt did again."""
    for number in range(len(attempts)):
        yield min((a.from_step for a in attempts[number + 1 :] if a.from_step is not None), default=math.inf)


@dataclass(frozen=True, kw_only=True)
class _Course:
    """The course of one attempt, told by the rank whose loss counts.

    Steps behind ``lost_after`` were lost. ``runs``: it has not ended, and ``end`` is now.
    """

    attempt: Attempt
    rank: RankEvents
    lost_after: float
    usual: float
    end: float | None
    runs: bool

    def parts(self) -> Iterator[tuple[str, float]]:
        """Yield names of parts and seconds; together they are the time from begin to end."""
        at, end = self.attempt.began, self.end
        if at is None or end is None:
            return
        end = max(at, end)
        failed = max(at, min(self.attempt.failed_at or end, end))
        for name, mark in self._starting():
            reached = max(at, min(mark, failed))
            yield name, reached - at
            at = reached
        if self.rank.count:
            last = max(at, min(float(self.rank.steps["time"][-1]), failed))
            yield from self._training(at, last)
            at = last
        yield from self._ending(at, failed, end)

    def _starting(self) -> Iterator[tuple[str, float]]:
        """Yield the parts of the start with their ends. A mark that is missing leaves its time to the next one."""
        begun, ready = self._all("begin"), self._all("ready")
        marks = [begun, self._phase("imported"), self._phase("joined"), self._phase("loaded") or ready, self._first()]
        names = [name for name, mark in zip(STARTING, marks, strict=True) if mark is not None]
        known = [mark for mark in marks if mark is not None]
        yield from zip(names, np.maximum.accumulate(known).tolist() if known else [], strict=True)

    def _first(self) -> float | None:
        """Return when the first step would have begun, had it taken no longer than others: the rest was compiling."""
        if not self.rank.count:
            return None
        steps = self.rank.steps
        return float(steps["time"][0] - min(_known(steps["step_s"][0]), self.usual))

    def _training(self, begin: float, end: float) -> Iterator[tuple[str, float]]:
        steps = self.rank.steps
        seconds = np.nan_to_num(steps["step_s"])
        seconds[0] = min(seconds[0], self.usual)
        counts = steps["step"] <= self.lost_after
        yield from _shared(
            end - begin,
            evaluation=self._aside("eval", begin, end), saving=self._aside("save", begin, end),
            wasted=float(seconds[~counts].sum()), steps=float(seconds[counts].sum()), between=math.inf,
        )  # fmt: skip

    def _ending(self, at: float, failed: float, end: float) -> Iterator[tuple[str, float]]:
        """Yield what came after the last step, or after the last mark of a start that was not finished."""
        if self.attempt.failed_at is not None:
            found = min(max(self.attempt.found_at or failed, failed), end)
            yield self._unfinished or "wasted", failed - at
            yield "detection", found - failed
            yield "stop", end - found
            return
        rest = self._unfinished or ("now" if self.runs else "stop")
        evaluation, saving = self._aside("eval", at, end), self._aside("save", at, end)
        yield from _shared(end - at, evaluation=evaluation, saving=saving, **{rest: math.inf})

    @property
    def _unfinished(self) -> str:
        """Return the part of the start that the attempt was in at its end; "" when it had trained."""
        if self.rank.count:
            return ""
        reached = [name for name, _ in self._starting()]
        return STARTING[min(STARTING.index(reached[-1]) + 1, len(STARTING) - 1)] if reached else STARTING[0]

    def _all(self, kind: str) -> float | None:
        """Return when the last of all ranks reported ``kind`` first; None while one has not."""
        ranks = self.attempt.ranks
        times = [next((float(e["time"]) for e in rank.of_kind(kind) if _has_time(e)), None) for rank in ranks]
        known = [time for time in times if time is not None]
        return max(known) if known and len(known) == len(ranks) else None

    def _phase(self, name: str) -> float | None:
        times = [
            [float(e["time"]) for e in rank.of_kind("phase") if e.get("name") == name and _has_time(e)][:1]
            for rank in self.attempt.ranks
        ]
        return max(time for (time,) in times) if times and all(times) else None

    def _aside(self, kind: str, begin: float, end: float) -> float:
        """Return the seconds of saves or evaluations that ended between ``begin`` and ``end``."""
        events = [event for event in self.rank.of_kind(kind) if _has_time(event)]
        return sum(_known(event.get("seconds")) for event in events if begin < float(event["time"]) <= end)


def _shared(seconds: float, **parts: float) -> Iterator[tuple[str, float]]:
    """Share ``seconds`` out to ``parts``, the first ones first: times of events are rounded, and clocks may be set."""
    for name, wanted in parts.items():
        share = max(0.0, min(wanted, seconds))
        seconds -= share
        yield name, share


def _has_time(event: Mapping[str, Any]) -> bool:
    return isinstance(event.get("time"), int | float) and math.isfinite(event["time"])


def _known(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _repairs(history: History) -> Iterator[Repair]:
    for attempt, after in zip(history.attempts, history.attempts[1:], strict=False):
        if attempt.failed_at is None:
            continue
        steps = history.of_attempt(after).steps["time"]
        seconds = float(steps[0]) - attempt.failed_at if len(steps) else None
        yield Repair(attempt=attempt.number, cause=attempt.cause or attempt.reason, seconds=seconds)


def _interval(history: History, running_s: float, failures: int, usual: float | None) -> Interval | None:
    """Return the time between checkpoints that wastes least, by what a save takes here and how often jobs fail."""
    saves = [one.seconds for one in history.checkpoints if one.seconds > 0]
    if not saves or not usual or running_s <= 0:
        return None
    save, between = float(np.median(saves)), USUAL_CARD_HOURS * 3600 / max(1, history.record.cards)
    if failures:
        between = running_s / failures
    seconds = math.sqrt(2 * save * between)
    steps = max(1, round(seconds / usual))
    if not failures and history.total_steps is not None and steps >= history.total_steps:
        return None  # without failures so short a run need not be saved before its end
    return Interval(
        seconds=seconds, steps=steps, save_s=save, between_failures_s=between,
        measured=failures > 0,
    )  # fmt: skip
