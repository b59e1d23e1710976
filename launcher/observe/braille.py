"""Curves in a terminal: two by four dots in each character (Unicode's braille patterns)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from launcher.observe.columns import Floats
from launcher.observe.curves import Curve, make_curve, nice_ticks, number_text, value_range
from launcher.observe.history import Series

# The bit of each dot by row and column: Unicode counts the first three rows down each column, the fourth last.
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLANK = 0x2800

Paint = Callable[[str, int], str]


def braille(named: Sequence[tuple[str, Series]], width: int, height: int, paint: Paint, *, log: bool = False) -> str:
    """Return the curves of ``named`` series in ``height`` lines of ``width`` characters, with axes.

    ``paint``: colours a text as the curve of that number.
    """
    columns = max(20, width - 10)
    curves = [make_curve(series, columns * 2, name) for name, series in named]
    low, high = value_range(curves, log=log)
    ends = [(float(curve.x[0]), float(curve.x[-1])) for curve in curves if len(curve.x)]
    first, last = min(end[0] for end in ends), max(end[1] for end in ends)
    canvas = _Canvas(columns, height, (first, last), (low, high), log=log)
    for number, curve in enumerate(curves):
        canvas.add(curve, number)
    return "\n".join([*canvas.lines(paint), _axis(columns), _ticks(first, last, columns)])


class _Canvas:
    def __init__(self, columns: int, rows: int, x: tuple[float, float], y: tuple[float, float], *, log: bool) -> None:
        self.columns, self.rows, self.log = columns, rows, log
        self.x, self.y = x, y
        self.dots = np.zeros((rows, columns), int)
        self.owner = np.full((rows, columns), -1)

    def _places(self, values: Floats, ends: tuple[float, float], count: int, *, log: bool = False) -> Floats:
        low, high = (math.log10(ends[0]), math.log10(ends[1])) if log else ends
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log10(values) if log else values
        return (values - low) / ((high - low) or 1.0) * (count - 1)

    def add(self, curve: Curve, number: int) -> None:
        """Draw the line, and for a point of several steps from its lowest to its highest value."""
        x = self._places(curve.x, self.x, self.columns * 2)
        y, low, high = (
            self._places(v, self.y, self.rows * 4, log=self.log) for v in (curve.mean, curve.low, curve.high)
        )
        if curve.per_point > 1:
            for at, begin, end in zip(x, low, high, strict=True):
                self._segment((at, begin), (at, end), number)
        points = list(zip(x, y, strict=True))
        for one, two in zip(points, points[1:] or points, strict=False):
            self._segment(one, two, number)

    def _segment(self, one: tuple[float, float], two: tuple[float, float], number: int) -> None:
        if not all(map(math.isfinite, (*one, *two))):
            return
        count = round(max(abs(two[0] - one[0]), abs(two[1] - one[1]))) + 1
        for x, y in zip(np.linspace(one[0], two[0], count), np.linspace(one[1], two[1], count), strict=True):
            self._dot(round(x), self.rows * 4 - 1 - round(y), number)

    def _dot(self, x: int, y: int, number: int) -> None:
        row, column = y // 4, x // 2
        if 0 <= row < self.rows and 0 <= column < self.columns:
            self.dots[row, column] |= _BITS[y % 4][x % 2]
            self.owner[row, column] = number

    def lines(self, paint: Paint) -> list[str]:
        labels = self._labels()
        return [f"{labels.get(row, ''):>8} │{self._row(row, paint)}".rstrip() for row in range(self.rows)]

    def _labels(self) -> dict[int, str]:
        ticks = np.array(nice_ticks(*self.y, max(2, self.rows // 3)))
        ticks = ticks[ticks > 0] if self.log else ticks
        places = self._places(ticks, self.y, self.rows * 4, log=self.log)
        return {(self.rows * 4 - 1 - round(place)) // 4: number_text(tick)
                for tick, place in zip(ticks.tolist(), places.tolist(), strict=True)}  # fmt: skip

    def _row(self, row: int, paint: Paint) -> str:
        cells = zip(self.dots[row].tolist(), self.owner[row].tolist(), strict=True)
        text, run, owner = "", "", -1
        for dots, number in cells:
            if dots and number != owner and run:
                text, run = text + (paint(run, owner) if owner >= 0 else run), ""
            owner = number if dots else owner
            run += chr(_BLANK + dots) if dots else " "
        return text + (paint(run, owner) if owner >= 0 else run)


def _axis(columns: int) -> str:
    return " " * 9 + "└" + "─" * columns


def _ticks(first: float, last: float, columns: int) -> str:
    line = [" "] * (columns + 12)
    for tick in nice_ticks(first, last, max(2, columns // 14)):
        text = number_text(tick)
        at = 10 + round((tick - first) / ((last - first) or 1.0) * (columns - 1)) - len(text) // 2
        if tick == int(tick) and at + len(text) <= len(line):
            line[at : at + len(text)] = text
    return "".join(line).rstrip()


def sparkline(values: Floats, width: int) -> str:
    """Return ``values`` in ``width`` block characters, "" without any."""
    series = Series(steps=np.arange(len(values), dtype=float), values=values)
    points = make_curve(series, width).mean
    known = points[np.isfinite(points)]
    if not len(known):
        return ""
    low, span = float(known.min()), float(known.max() - known.min()) or 1.0
    return "".join(" " if math.isnan(value) else "▁▂▃▄▅▆▇█"[round((value - low) / span * 7)] for value in points)
