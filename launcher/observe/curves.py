"""Curves of few points that still show every outlier: buckets with lowest, highest, mean and last value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from launcher.observe.columns import Floats
from launcher.observe.history import Series


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A curve. ``x``: the last step of each bucket; ``per_point``: steps in a bucket, 1 if each has its own point.

    ``low`` and ``high`` are those in the bucket, and over ranks where these differ. NaN: no finite value.
    """

    name: str
    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    last: Floats
    per_point: int

    @property
    def has_band(self) -> bool:
        """Return True if low and high say more than the line."""
        return bool((self.high > self.low).any())


def make_curve(series: Series, points: int, name: str = "") -> Curve:
    """Return ``series`` in at most ``points`` buckets of as many steps each. Infinite values are left out."""
    per_point = max(1, -(-len(series.steps) // max(1, points)))
    values = _buckets(series.values, per_point)
    low = values if series.low is None else _buckets(series.low, per_point)
    high = values if series.high is None else _buckets(series.high, per_point)
    counts = (~np.isnan(values)).sum(axis=1)
    sums = np.nansum(values, axis=1)
    return Curve(
        name=name,
        x=_last(_buckets(series.steps, per_point)),
        mean=np.where(counts > 0, sums / np.maximum(counts, 1), math.nan),
        low=np.asarray(np.fmin.reduce(low, axis=1)),
        high=np.asarray(np.fmax.reduce(high, axis=1)),
        last=_last(values),
        per_point=per_point,
    )


def _buckets(values: Floats, size: int) -> Floats:
    """Return ``values`` in rows of ``size``, the last filled up with NaN, as infinite values are replaced."""
    rows = -(-len(values) // size)
    filled = np.full(rows * size, math.nan)
    filled[: len(values)] = np.where(np.isfinite(values), values, math.nan)
    return filled.reshape(rows, size)


def _last(rows: Floats) -> Floats:
    """Return the last value of each row that is not NaN; NaN where there is none."""
    if not len(rows):
        return np.empty(0)
    known = ~np.isnan(rows)
    places = rows.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    return np.where(known.any(axis=1), rows[np.arange(len(rows)), places], math.nan)


def smoothed(values: Floats, weight: float) -> Floats:
    """Return the exponential moving average, its start corrected (Kingma and Ba, arXiv:1412.6980, section 3)."""
    found, average, norm = np.full(len(values), math.nan), 0.0, 0.0
    for place, value in enumerate(values):
        if not math.isnan(value):
            average, norm = weight * average + (1 - weight) * value, weight * norm + (1 - weight)
            found[place] = average / norm
    return found


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about ``count`` round numbers from ``low`` to ``high``."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / max(1, count)))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count + 1e-9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def number_text(value: float) -> str:
    """Return a number as axes and tables show it: about four digits, k and M above ten thousand."""
    size = abs(value)
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.4g}{unit}"
    if value == 0 or size >= 1e-3:
        return f"{value:.4g}"
    return f"{value:.2e}".replace("e-0", "e-")


def value_range(curves: list[Curve], *, log: bool) -> tuple[float, float]:
    """Return the lowest and highest value to show, with some room; of positive values only where ``log``."""
    numbers = np.concatenate([np.concatenate([curve.low, curve.high]) for curve in curves] or [np.empty(0)])
    numbers = numbers[np.isfinite(numbers) & ((numbers > 0) | (not log))]
    if not len(numbers):
        return 0.1 if log else 0.0, 1.0
    low, high = float(numbers.min()), float(numbers.max())
    if log:
        return low / 1.1, high * 1.1
    room = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return (0.0 if low >= 0.0 and low - room < 0.0 else low - room), high + room
