"""The figures of a job that people ask for first."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from launcher.common.clock import seconds_text
from launcher.observe.columns import Floats
from launcher.observe.history import Attempt, HeldOut, History
from launcher.observe.metrics import METRICS, peak_flops, step_flops, tokens_per_step
from launcher.observe.words import Say

_RECENT = 20


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures of a job; None where nothing is known.

    ``lowest_loss``: of a step. ``step_s``: the usual time of a step, the median. ``running_s``: time in attempts;
    ``waited_s``: between them. ``productive_s``: in steps that count, without compiling, saving and evaluating.
    ``left_s``: until the last step, by the newest steps. ``tokens``: seen in training, padding included;
    ``loss_tokens``: those in the loss. ``bad_steps``: steps with a loss that is no finite number; ``overflows``:
    steps whose gradients overflowed.
    """

    done_steps: int
    total_steps: int | None
    first_loss: float | None
    last_loss: float | None
    lowest_loss: float | None
    last_held_out: HeldOut | None
    best_held_out: HeldOut | None
    tokens: int | None
    loss_tokens: int | None
    step_s: float | None
    tokens_per_s: float | None
    flops_per_step: float | None
    mfu: float | None
    memory_mib: float | None
    attempts: int
    redone_steps: int
    running_s: float | None
    waited_s: float
    productive_s: float
    left_s: float | None
    bad_steps: int
    overflows: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON, which has no NaN and no infinity."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarize(history: History, now: Callable[[], float] = time.time) -> Summary:
    """Return the figures of ``history``; a job that runs is taken as it is ``now``."""
    losses, seconds = METRICS["loss"].read(history), METRICS["step-time"].read(history)
    finite = losses.values[np.isfinite(losses.values)]
    held_out, usual = history.held_out, usual_step_s(history)
    tokens, flops, peak = tokens_per_step(history), step_flops(history), peak_flops(history)
    counted = METRICS["loss-tokens"].read(history).values
    memory = METRICS["memory"].read(history).values
    left = None if history.total_steps is None else max(0, history.total_steps - history.done_steps)
    recent = _median(seconds.values[-_RECENT:])
    return Summary(
        done_steps=history.done_steps,
        total_steps=history.total_steps,
        first_loss=float(finite[0]) if len(finite) else None,
        last_loss=losses.last,
        lowest_loss=float(finite.min()) if len(finite) else None,
        last_held_out=held_out[-1] if held_out else None,
        best_held_out=min(held_out, key=lambda one: one.loss) if held_out else None,
        tokens=None if tokens is None or not len(history.steps) else tokens * len(history.steps),
        loss_tokens=int(np.nansum(counted)) if len(counted) and not np.isnan(counted).any() else None,
        step_s=usual,
        tokens_per_s=tokens / usual if tokens and usual else None,
        flops_per_step=flops,
        mfu=flops / usual / peak if flops and peak and usual else None,
        memory_mib=float(np.nanmax(memory)) if len(memory) and not np.isnan(memory).all() else None,
        attempts=len(history.attempts),
        redone_steps=history.redone_steps,
        running_s=_running_s(history, now),
        waited_s=sum(gap or 0.0 for gap in gaps(history)),
        productive_s=_productive_s(history, usual),
        left_s=None if left is None or recent is None or history.record.is_final else left * recent,
        bad_steps=int(np.isinf(losses.values).sum()),
        overflows=int(np.nansum(METRICS["overflow"].read(history).values)),
    )


def usual_step_s(history: History) -> float | None:
    """Return the median time of a step of the slowest rank, the first of each attempt aside: it compiles."""
    seconds = METRICS["step-time"].read(history).values
    first = history.first_steps
    return _median(seconds[~first]) if (~first).any() else _median(seconds)


def _median(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def ended_at(attempt: Attempt, history: History, now: Callable[[], float]) -> float | None:
    """Return when ``attempt`` ended; ``now`` while it runs."""
    if attempt.ended is not None:
        return attempt.ended
    if attempt.number == len(history.attempts) and not history.record.is_final:
        return now()
    return attempt.phases[-1].end if attempt.phases else None


def _running_s(history: History, now: Callable[[], float]) -> float | None:
    spans = [(attempt.began, ended_at(attempt, history, now)) for attempt in history.attempts]
    known = [end - begin for begin, end in spans if begin is not None and end is not None]
    return sum(max(0.0, span) for span in known) if known else None


def gaps(history: History) -> list[float | None]:
    """Return the seconds between each attempt's end and the next one's begin; None where one is not known."""
    pairs = zip(history.attempts, history.attempts[1:], strict=False)
    return [
        None if before.ended is None or after.began is None else max(0.0, after.began - before.ended)
        for before, after in pairs
    ]


def _productive_s(history: History, usual: float | None) -> float:
    seconds = METRICS["step-time"].read(history).values.copy()
    first = history.first_steps
    if usual is not None:
        seconds[first] = np.minimum(seconds[first], usual)
    return float(np.nansum(seconds))


def outcome(history: History, summary: Summary, say: Say) -> str:
    """Return in a sentence how far the job is, or came."""
    done, total = summary.done_steps, summary.total_steps
    if not done:
        return say("No step was finished.") if history.record.is_final else say("No step is finished yet.")
    if total is None:
        return say("{done} steps are done.", done=f"{done:,}")
    if done >= total:
        return say("All {total} steps are done.", total=f"{total:,}")
    if history.record.is_final:
        return say("Ended after {done} of {total} steps.", done=f"{done:,}", total=f"{total:,}")
    left = seconds_text(summary.left_s) or "?"
    return say("{done} of {total} steps are done, {left} left.", done=f"{done:,}", total=f"{total:,}", left=left)
