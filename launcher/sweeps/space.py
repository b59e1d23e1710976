"""The settings of trials: every combination of a grid, or some drawn at random."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.errors import SpecError
from launcher.runspec.layers import parse_sets

# More trials than anybody waits for: a slip in the command line.
MOST = 1000

_RANGE = re.compile(r"(log )?\s*(\S+?)\.\.(\S+)")


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from ``low`` to ``high``, for random trials; ``log``: equally many in each decade."""

    low: float
    high: float
    log: bool

    def draw(self, rng: random.Random) -> float | int:
        if self.log:
            return self.rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        if self.is_whole:
            return rng.randint(int(self.low), int(self.high))
        return self.rounded(rng.uniform(self.low, self.high))

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def rounded(self, value: float) -> float | int:
        """Return ``value`` with three digits, or whole, within the range."""
        short = round(value) if self.is_whole else float(f"{value:.3g}")
        return min(max(short, self.low), self.high)


Axis = Sequence[Any] | Range
Settings = Mapping[str, Any]


def parse_axes(texts: Sequence[str]) -> dict[str, Axis]:
    """Return the values of each key of "KEY=VALUE,VALUE" or "KEY=LOW..HIGH". Raises SpecError."""
    axes: dict[str, Axis] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not key or not values:
            raise SpecError(f"--grid {text!r} is not KEY=VALUE,VALUE", hint="--grid lora.r=8,16")
        if key in axes:
            raise SpecError(f"--grid names {key} twice", hint="give all its values at once, with commas")
        axes[key] = _range(text, values) or _values(key, values)
    return axes


def axes_to_json(axes: Mapping[str, Axis]) -> dict[str, Any]:
    """Return ``axes`` as JSON has them: a list of values, or an object for a range."""
    return {key: asdict(axis) if isinstance(axis, Range) else list(axis) for key, axis in axes.items()}


def axes_from_json(raw: Mapping[str, Any]) -> dict[str, Axis]:
    """Return what ``axes_to_json`` wrote."""
    return {key: Range(**axis) if isinstance(axis, Mapping) else axis for key, axis in raw.items()}


def _range(text: str, values: str) -> Range | None:
    match = _RANGE.fullmatch(values.strip())
    if match is None:
        return None
    try:
        low, high = (int(word) if word.lstrip("-").isdecimal() else float(word) for word in match.groups()[1:])
    except ValueError:
        return None
    wrong = not low < high or not math.isfinite(low) or not math.isfinite(high)
    if wrong or (match[1] and low <= 0):
        raise SpecError(f"--grid {text!r} is no range", hint="--grid 'KEY=log 1e-5..1e-3', --grid KEY=4..32")
    return Range(low=low, high=high, log=bool(match[1]))


def _values(key: str, values: str) -> list[Any]:
    """Return the values between commas, each in YAML as after ``--set``; commas in brackets and quotes do not part."""
    parts = _split(values)
    found = [override.value for part in parts for override in parse_sets([f"{key}={part}"])]
    if len({repr(value) for value in found}) < len(found):
        raise SpecError(f"--grid {key}={values} names a value twice", hint="leave one out")
    return found


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "[{") - (letter in "]}") if not quote else 0
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def all_settings(axes: Mapping[str, Axis], *, count: int | None, seed: int) -> list[dict[str, Any]]:
    """Return the settings of each trial: all combinations, or ``count`` different ones drawn with ``seed``.

    Raises SpecError for a range without ``count``, for too many trials, and for more than there are.
    """
    if not axes:
        raise SpecError("a sweep needs something to vary", hint="--grid training.lr_schedule.learning_rate=1e-4,3e-4")
    ranges = [key for key, axis in axes.items() if isinstance(axis, Range)]
    if count is None and ranges:
        raise SpecError(f"--grid {ranges[0]} is a range, of which there is no grid", hint="add --random N")
    total = math.inf if ranges else math.prod(len(axis) for axis in axes.values() if not isinstance(axis, Range))
    wanted = total if count is None else count
    if wanted > MOST:
        raise SpecError(f"that is {wanted} trials; at most {MOST}", hint=f"draw some: --random {MOST}")
    if wanted > total:
        raise SpecError(f"--random {count}: there are {total} combinations", hint="leave --random out to try all")
    if count is None:
        combinations = itertools.product(*(axis for axis in axes.values() if not isinstance(axis, Range)))
        return [dict(zip(axes, values, strict=True)) for values in combinations]
    return _drawn(axes, count, random.Random(seed))  # noqa: S311 - repeatable, not secret


def _drawn(axes: Mapping[str, Axis], count: int, rng: random.Random) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    # A narrow range of whole numbers may hold fewer values than are wanted.
    for _ in range(1000 * count):
        drawn = {key: axis.draw(rng) if isinstance(axis, Range) else rng.choice(axis) for key, axis in axes.items()}
        found.setdefault(repr(drawn), drawn)
        if len(found) == count:
            return list(found.values())
    raise SpecError(f"--random {count}: only {len(found)} different settings were found", hint="draw fewer")
