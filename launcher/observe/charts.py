"""The charts of a page: which metrics are shown, their curves for the page's script, and their first drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from launcher.observe.columns import Floats
from launcher.observe.curves import Curve, make_curve
from launcher.observe.drawing import LIGHT, Chart, svg_shapes
from launcher.observe.history import History, Series
from launcher.observe.metrics import METRICS, Metric, nothing_of, tokens_per_step
from launcher.observe.words import Say

_SHOWN = ("loss", "perplexity", "tokens-per-second", "learning-rate", "grad-norm", "step-time", "input-wait", "memory",
          "mfu", "loss-tokens", "loss-scale", "overflow")  # fmt: skip
# Metrics that are worth a chart only when they change.
_ONLY_IF_VARYING = ("loss-scale", "overflow")
# Points of a curve in the page's data, and in its first drawing, which is half a page wide.
_POINTS, _DRAWN = 1000, 300
_WIDE, _HALF, _HEIGHT = 1100, 540, 220


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A chart of a page. ``data``: for its script; ``svg``: its first drawing.

    ``legend``: colour and name of each curve, where there are several.
    """

    title: str
    unit: str
    note: str
    label: str
    svg: Markup
    data: dict[str, Any]
    legend: list[tuple[int, str]]
    wide: bool
    width: int


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The charts of a page, (title, why) of those left out, and remarks on the curves."""

    charts: list[Drawn]
    absent: list[tuple[str, str]]
    notes: list[str]


def charts(histories: Sequence[History], say: Say) -> Shown:
    """Return the charts of ``histories``, curves of several over each other."""
    read = {key: [METRICS[key].curve_of(history) for history in histories] for key in _SHOWN}
    shown = [key for key, found in read.items() if _is_worth(key, found)]
    empty = [key for key, found in read.items() if all(series.is_empty for series in found)]
    drawn = [_drawn(METRICS[key], histories, read[key], say) for key in shown]
    absent = [(say(METRICS[key].title), say(nothing_of(METRICS[key], histories[0]))) for key in empty]
    spread = any(series.low is not None for key in shown for series in read[key])
    return Shown(charts=drawn, absent=absent if len(histories) == 1 else [], notes=_notes(drawn, spread, say))


def _is_worth(key: str, found: Sequence[Series]) -> bool:
    known = [series.values[np.isfinite(series.values)] for series in found]
    return any(len(values) and (key not in _ONLY_IF_VARYING or np.ptp(values) > 0) for values in known)


def _notes(drawn: Sequence[Drawn], spread: bool, say: Say) -> list[str]:
    compiling = say("Times and rates leave out the first step of each attempt, which compiles.")
    return [*_band_notes(drawn, spread, say), compiling]


def _band_notes(drawn: Sequence[Drawn], spread: bool, say: Say) -> list[str]:
    most = max((line["per_point"] for chart in drawn for line in chart.data["curves"]), default=1)
    if most > 1:
        return [say("Each point stands for {count} steps: the line is their mean, the band their range.", count=most)]
    return [say("The band goes from the lowest to the highest rank.")] if spread else []


def _drawn(metric: Metric, histories: Sequence[History], found: Sequence[Series], say: Say) -> Drawn:
    lines = [
        _Line(series, history, number) for number, (series, history) in enumerate(zip(found, histories, strict=True))
    ]
    if len(histories) > 1:
        lines = [replace(line, name=line.history.record.job_id) for line in lines]
    if metric.key == "loss":
        lines = _with_held_out(lines, say)
    width = _WIDE if metric.key == "loss" else _HALF
    plane = Chart(
        curves=[make_curve(line.series, _DRAWN, line.name) for line in lines],
        colours=[line.colour for line in lines], title="", x_title="", width=width, height=_HEIGHT, legend=False,
    )  # fmt: skip
    title, unit, note = (say(text) if text else "" for text in (metric.title, metric.unit, metric.note))
    last = ", ".join(f"{series.last:.4g}" for series in found if series.last is not None)
    data = {"key": metric.key, "curves": [_values(line, _POINTS // len(histories)) for line in lines]}
    return Drawn(
        title=title,
        unit=unit,
        note=note,
        label=f"{title}: {last} {unit}".strip(),
        svg=Markup(svg_shapes(plane)),  # noqa: S704 - its texts are escaped
        data=data,
        legend=[(line.colour % len(LIGHT), line.name) for line in lines] if len(lines) > 1 else [],
        wide=metric.key == "loss",
        width=width,
    )


@dataclass(frozen=True)
class _Line:
    """A curve of a job in a chart. ``dots``: each value is marked."""

    series: Series
    history: History
    colour: int
    name: str = ""
    dots: bool = False


def _with_held_out(lines: list[_Line], say: Say) -> list[_Line]:
    """Return the lines of losses, with the held-out losses of the same jobs among them."""
    single, found = len(lines) == 1, list[_Line]()
    for line in lines:
        held_out = METRICS["eval-loss"].read(line.history)
        if not held_out.is_empty:
            name = " ".join((line.name, say("Held-out loss"))).strip()
            found.append(replace(line, series=held_out, name=name, dots=True, colour=1 if single else line.colour))
    return [replace(line, name=line.name or say("Loss")) if found else line for line in lines] + found


def _values(line: _Line, points: int) -> dict[str, Any]:
    """Return a curve for the page's script."""
    curve = make_curve(line.series, points, line.name)
    found = {
        "name": line.name, "colour": line.colour, "dots": line.dots, "per_point": curve.per_point,
        "tokens": tokens_per_step(line.history) or 1, "x": _numbers(curve.x),
        "time": _numbers(_elapsed(line.history, curve)), "mean": _numbers(curve.mean),
    }  # fmt: skip
    return found | ({"low": _numbers(curve.low), "high": _numbers(curve.high)} if curve.has_band else {})


def _elapsed(history: History, curve: Curve) -> Floats:
    """Return the seconds from the job's first start to the end of each point's step."""
    if not len(history.steps):
        return np.zeros(len(curve.x))
    began = history.attempts[0].began or float(history.times[0])
    places = np.clip(np.searchsorted(history.steps, curve.x), 0, len(history.steps) - 1)
    return np.asarray(history.times[places] - began)


def _numbers(values: Floats) -> list[float | int | None]:
    """Return values with six digits, whole ones without a point; None for what is not known."""
    return [_short(value) for value in values.tolist()]


def _short(value: float) -> float | int | None:
    if not np.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.6g}")
