"""The value of a trial, and when it is hopeless: the median rule.

As Vizier has it (Golovin and others, KDD 2017, section 3.2.2): a trial is stopped at a step when its best value so far
is worse than the median of what other trials had at that step.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.sweeps.record import MAX

# Fewer others say nothing; nor do the first steps, in which rates warm up.
MIN_OTHERS = 3
WARM_UP_SHARE = 0.2

# A loss of one step is noise: a trial's value is the mean of this share of its last steps.
LAST_SHARE = 0.1

# Metrics that are measured on the same held-out rows each time: the best of them counts, not the last.
_OF_HELD_OUT = ("eval-loss", "perplexity")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values of the metric by step, in order; ``total``: steps of the whole run."""

    metric: str
    goal: str
    steps: Sequence[int]
    values: Sequence[float]
    total: int

    def value_at(self, step: int | None = None) -> float | None:
        """Return the trial's value by ``step``, the last one if None; None before the first that is finite."""
        end = len(self.steps) if step is None else bisect.bisect_right(self.steps, step)
        # From the newest on: every running trial asks all others, about once a second.
        known = (value for value in reversed(self.values[:end]) if math.isfinite(value))
        if self.metric in _OF_HELD_OUT:
            return (max if self.goal == MAX else min)(known, default=None)
        last = list(itertools.islice(known, max(1, math.ceil(LAST_SHARE * self.total))))
        return statistics.fmean(last) if last else None

    @property
    def diverged(self) -> bool:
        """Return whether the last value is no finite number."""
        return bool(self.values) and not math.isfinite(self.values[-1])


def hopeless(trial: int, curves: Mapping[int, Curve]) -> str:
    """Return why ``trial`` has no chance among ``curves`` of all that have begun; "" while it has."""
    own = curves[trial]
    if own.diverged:
        return f"its {own.metric} is no finite number"
    step = own.steps[-1] if own.steps else 0
    value = own.value_at()
    if value is None or step < WARM_UP_SHARE * own.total:
        return ""
    others = [other.value_at(step) for number, other in curves.items() if number != trial and _reached(other, step)]
    known = [other for other in others if other is not None]
    if len(known) < MIN_OTHERS:
        return ""
    median = statistics.median(known)
    worse = value < median if own.goal == MAX else value > median
    said = f"its {own.metric} {value:.4g} at step {step} is worse than the median {median:.4g} of {len(known)} trials"
    return said if worse else ""


def _reached(curve: Curve, step: int) -> bool:
    return bool(curve.steps) and curve.steps[-1] >= step
