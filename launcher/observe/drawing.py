"""A chart as shapes on a plane, and these as SVG text or a PNG image. One layout serves files and reports."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from launcher.observe.columns import Floats
from launcher.observe.curves import Curve, nice_ticks, number_text, value_range

# Colours that stay apart for the colour-blind (Okabe and Ito, 2008), adapted to light and dark ground.
LIGHT = ("#0b6bcb", "#c2410c", "#0f766e", "#9333ea", "#a16207", "#be185d", "#4d7c0f", "#475569")
DARK = ("#5aa9ff", "#ff9257", "#3fd0bd", "#c792ff", "#e6b84a", "#ff7ab8", "#a3d65c", "#a8b3c4")

Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through points; ``colour`` numbers its curve."""

    points: Points
    colour: int


@dataclass(frozen=True, kw_only=True)
class Band:
    """The area between two lines."""

    points: Points
    colour: int


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A straight grid line; ``kind``: grid or axis."""

    begin: tuple[float, float]
    end: tuple[float, float]
    kind: str


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text at a point. ``anchor``: start, middle or end; ``kind``: title, unit, tick or legend."""

    at: tuple[float, float]
    text: str
    anchor: str = "start"
    kind: str = "tick"
    colour: int | None = None


Shape = Line | Band | Rule | Text


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of ``curves`` over steps. ``log``: values on a logarithmic axis. Without title or legend no room is left.

    ``colours``: numbers of the curves' colours, those of their places if left out.
    """

    curves: Sequence[Curve]
    title: str
    unit: str = ""
    note: str = ""
    x_title: str = "step"
    width: int = 960
    height: int = 400
    log: bool = False
    legend: bool = True
    colours: Sequence[int] = ()

    def _colour(self, number: int) -> int:
        return self.colours[number] if self.colours else number

    @property
    def _has_legend(self) -> bool:
        return self.legend and len(self.curves) > 1

    @property
    def _top(self) -> float:
        return (44.0 if self.title else 8.0) + (22.0 if self._has_legend else 0.0)

    @property
    def _bottom(self) -> float:
        return self.height - (40.0 if self.x_title else 26.0)

    @property
    def _x_range(self) -> tuple[float, float]:
        ends = [(float(curve.x[0]), float(curve.x[-1])) for curve in self.curves if len(curve.x)]
        low, high = min((end[0] for end in ends), default=0.0), max((end[1] for end in ends), default=1.0)
        return (low, high) if high > low else (low - 0.5, high + 0.5)

    def shapes(self) -> Iterator[Shape]:
        """Yield the shapes, those in front last."""
        axis = _Axes(self, 64.0, self.width - 16.0, self._top, self._bottom)
        yield from axis.grid()
        for number, curve in enumerate(self.curves):
            if curve.has_band:
                yield from (Band(points=part, colour=self._colour(number)) for part in axis.band(curve))
        for number, curve in enumerate(self.curves):
            yield from (Line(points=part, colour=self._colour(number)) for part in axis.line(curve.x, curve.mean))
        yield from self._words()

    def _words(self) -> Iterator[Text]:
        if self.title:
            yield Text(at=(16.0, 24.0), text=self.title, kind="title")
            about = ", ".join(text for text in (self.unit, self.note) if text)
            yield Text(at=(self.width - 16.0, 24.0), text=about, anchor="end", kind="unit")
        if self._has_legend:
            x = 16.0
            for number, curve in enumerate(self.curves):
                yield Text(at=(x, self._top - 12.0), text=f"● {curve.name}", kind="legend", colour=number)
                x += 7.2 * len(curve.name) + 34.0
        if self.x_title:
            yield Text(at=(self.width - 16.0, self.height - 8.0), text=self.x_title, anchor="end", kind="unit")


class _Axes:
    def __init__(self, chart: Chart, left: float, right: float, top: float, bottom: float) -> None:
        self.left, self.right, self.top, self.bottom = left, right, top, bottom
        self.log = chart.log
        self.x_low, self.x_high = chart._x_range
        self.low, self.high = value_range(list(chart.curves), log=chart.log)

    def x(self, step: Any) -> Any:
        return self.left + (step - self.x_low) / (self.x_high - self.x_low) * (self.right - self.left)

    def y(self, value: Any) -> Any:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.log10(value) if self.log else value
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def grid(self) -> Iterator[Shape]:
        for value in self._values():
            y = float(self.y(value))
            yield Rule(begin=(self.left, y), end=(self.right, y), kind="grid")
            yield Text(at=(self.left - 8.0, y + 4.0), text=number_text(value), anchor="end")
        for step in nice_ticks(self.x_low, self.x_high, 8):
            if step == int(step):
                yield Text(at=(float(self.x(step)), self.bottom + 18.0), text=number_text(step), anchor="middle")
        yield Rule(begin=(self.left, self.bottom), end=(self.right, self.bottom), kind="axis")

    def _values(self) -> list[float]:
        if not self.log:
            return nice_ticks(self.low, self.high, 6)
        powers = [
            10.0**power for power in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        ]
        return powers if len(powers) > 1 else [number for number in nice_ticks(self.low, self.high, 6) if number > 0]

    def line(self, steps: Floats, values: Floats) -> Iterator[Points]:
        """Yield the parts of a line between values that are not known."""
        x, y = self.x(steps), self.y(values)
        for part in _known_parts(y):
            yield list(zip(x[part].tolist(), y[part].tolist(), strict=True))

    def band(self, curve: Curve) -> Iterator[Points]:
        x, low, high = self.x(curve.x), self.y(curve.low), self.y(curve.high)
        for part in _known_parts(low + high):
            there = list(zip(x[part].tolist(), high[part].tolist(), strict=True))
            yield there + list(zip(x[part].tolist(), low[part].tolist(), strict=True))[::-1]


def _known_parts(values: Floats) -> Iterator[slice]:
    known = np.flatnonzero(np.isfinite(values))
    for part in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
        if len(part):
            yield slice(int(part[0]), int(part[-1]) + 1)


# --------------------------------------------------------------------------------------------------------- SVG

_STYLE = """text{font:12px system-ui,sans-serif;fill:var(--soft)}.title{font-size:16px;font-weight:600;fill:var(--ink)}
.legend{fill:var(--ink)}.grid{stroke:var(--grid)}.axis{stroke:var(--soft)}.line{fill:none;stroke-width:1.75;
stroke-linejoin:round;stroke-linecap:round}.band{opacity:.16;stroke:none}"""


def to_svg(chart: Chart) -> str:
    """Return ``chart`` as an SVG file, in light and dark."""
    dark = ";".join(f"--c{number}:{colour}" for number, colour in enumerate(DARK))
    light = ";".join(f"--c{number}:{colour}" for number, colour in enumerate(LIGHT))
    style = (
        f":root{{--ink:#1b2430;--soft:#5b6776;--grid:#e3e8ee;--ground:#fff;{light}}}"
        f"@media(prefers-color-scheme:dark){{:root{{--ink:#e8edf3;--soft:#9aa7b7;--grid:#2b3542;--ground:#12171e;{dark}}}}}"
        f"{_STYLE}"
    )
    size = f'viewBox="0 0 {chart.width} {chart.height}" width="{chart.width}" height="{chart.height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="var(--ground)"/>{svg_shapes(chart)}</svg>\n'
    )


def svg_shapes(chart: Chart) -> str:
    """Return the elements of ``chart``; colours are the variables --c0, --c1 and on, others come from classes."""
    return "".join(map(_element, chart.shapes()))


def _element(shape: Shape) -> str:
    if isinstance(shape, Line):
        return f'<path class="line" stroke="{_variable(shape.colour)}" d="{_path(shape.points)}"/>'
    if isinstance(shape, Band):
        return f'<path class="band" fill="{_variable(shape.colour)}" d="{_path(shape.points)}Z"/>'
    if isinstance(shape, Rule):
        (x1, y1), (x2, y2) = shape.begin, shape.end
        return f'<line class="{shape.kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
    fill = "" if shape.colour is None else f' style="fill:{_variable(shape.colour)}"'
    x, y = shape.at
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{shape.anchor}"'
    return f'<text class="{shape.kind}" {place}{fill}>{escape(shape.text)}</text>'


def _variable(colour: int) -> str:
    return f"var(--c{colour % len(LIGHT)})"


def _path(points: Points) -> str:
    if len(points) == 1:
        return f"M{points[0][0]:.1f} {points[0][1]:.1f}h.01"  # a dot, by its round end
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


# --------------------------------------------------------------------------------------------------------- PNG

_SCALE = 2


def to_png(chart: Chart) -> bytes:
    """Return ``chart`` as a PNG image of twice its size, on white."""
    from PIL import Image, ImageDraw

    # Drawn twice as large once more, and scaled down: Pillow's lines are not smooth.
    image = Image.new("RGB", (chart.width * _SCALE * 2, chart.height * _SCALE * 2), "#ffffff")
    words = []
    for shape in chart.shapes():
        if isinstance(shape, Text):
            words.append(shape)
        else:
            _draw(ImageDraw.Draw(image, "RGBA"), shape, _SCALE * 2)
    image = image.resize((chart.width * _SCALE, chart.height * _SCALE), Image.Resampling.LANCZOS)
    for text in words:
        _write(ImageDraw.Draw(image), text)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _draw(canvas: Any, shape: Line | Band | Rule, scale: int) -> None:
    if isinstance(shape, Rule):
        ends = [(x * scale, y * scale) for x, y in (shape.begin, shape.end)]
        canvas.line(ends, fill="#e3e8ee" if shape.kind == "grid" else "#5b6776", width=scale)
        return
    points, colour = [(x * scale, y * scale) for x, y in shape.points], LIGHT[shape.colour % len(LIGHT)]
    if isinstance(shape, Band):
        canvas.polygon(points, fill=f"{colour}29")
    elif len(points) == 1:
        (x, y), half = points[0], scale
        canvas.ellipse((x - half, y - half, x + half, y + half), fill=colour)
    else:
        canvas.line(points, fill=colour, width=round(1.75 * scale), joint="curve")


def _write(canvas: Any, text: Text) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(size=(16 if text.kind == "title" else 12) * _SCALE)
    fill = "#1b2430" if text.kind in ("title", "legend") else "#5b6776"
    fill = fill if text.colour is None else LIGHT[text.colour % len(LIGHT)]
    anchor = {"start": "ls", "middle": "ms", "end": "rs"}[text.anchor]
    canvas.text((text.at[0] * _SCALE, text.at[1] * _SCALE), text.text, font=font, fill=fill, anchor=anchor)
