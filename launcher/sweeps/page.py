"""The report of a sweep: one HTML file with its table and a parallel plot, a line a trial from setting to result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from launcher import __version__
from launcher.common.clock import local_time
from launcher.observe.curves import nice_ticks, number_text
from launcher.observe.report import asset, html_lang, page_environment
from launcher.observe.words import words
from launcher.sweeps.record import RUNNING, Sweep, Trial

WIDTH, HEIGHT = 1080, 360
_LEFT, _TOP, _BOTTOM, _RIGHT = 60, 34, 16, 90
# From here on numbers that span this factor are spread by their logarithm.
_LOG_FROM = 30.0


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An upright axis at ``x``. ``place``: where a value is, from 0 at the bottom to 1; None for one not on it."""

    name: str
    x: float
    ticks: Sequence[tuple[float, str]]
    place: Callable[[Any], float | None]

    @staticmethod
    def y(place: float) -> float:
        return round(HEIGHT - _BOTTOM - place * (HEIGHT - _TOP - _BOTTOM), 1)


def head_style() -> Markup:
    """Return the style of the pages."""
    return Markup(asset("report.css"))  # noqa: S704 - our own file


def make_page(sweep: Sweep, lang: str, now: Callable[[], float] = time.time, *, board: str = "") -> str:
    """Return the page in ``lang``. ``board``: address of the list of jobs, when it is a page of the board."""
    say = words(lang)
    ranked = sorted(sweep.trials, key=lambda trial: (sweep.rank(trial), trial.number))
    page = page_environment().get_template("sweep.html.j2")
    return page.render(
        say=say, lang=html_lang(lang), sweep=sweep, trials=ranked, best=sweep.best, keys=sweep.keys,
        width=WIDTH, height=HEIGHT, axes=(drawn := axes(sweep)), lines=[*lines(sweep, drawn, ranked)],
        number=lambda value: "" if value is None else number_text(value), now=local_time(now()), version=__version__,
        css=head_style(), board=board, refresh=bool(board) and sweep.state == RUNNING,
    )  # fmt: skip


def axes(sweep: Sweep) -> list[Axis]:
    """Return an axis for each key and, last, one for the metric."""
    columns = [(key, [trial.settings[key] for trial in sweep.trials if trial.settings]) for key in sweep.keys]
    columns.append((sweep.metric, [trial.value for trial in sweep.trials if trial.value is not None]))
    gap = (WIDTH - _LEFT - _RIGHT) / (len(columns) - 1)
    # Each setting is marked, results by round numbers.
    kinds = [True] * len(sweep.keys) + [False]
    return [_axis(name, _LEFT + place * gap, values, each=kinds[place]) for place, (name, values) in enumerate(columns)]


def _axis(name: str, x: float, values: Sequence[Any], *, each: bool) -> Axis:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers and len(numbers) == len(values) and min(numbers) < max(numbers):
        return _numeric(name, x, numbers, each=each)
    shown = list(dict.fromkeys(map(str, values)))
    at = {text: (place + 0.5) / len(shown) for place, text in enumerate(shown)}
    return Axis(name=name, x=x, ticks=[(place, text) for text, place in at.items()], place=lambda v: at.get(str(v)))


def _numeric(name: str, x: float, numbers: Sequence[float], *, each: bool) -> Axis:
    low, high = min(numbers), max(numbers)
    log = low > 0 and high / low >= _LOG_FROM
    scale: Callable[[float], float] = math.log10 if log else float
    few = sorted(set(numbers))
    marks = few if each and len(few) <= 5 else _decades(low, high) if log else nice_ticks(low, high, 5)

    def place(value: Any) -> float | None:
        if not isinstance(value, int | float):
            return None
        return (scale(value) - scale(low)) / (scale(high) - scale(low))

    return Axis(name=name, x=x, ticks=[(place(mark) or 0.0, number_text(mark)) for mark in marks], place=place)


def _decades(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [low, *(10.0**power for power in range(first, last + 1) if low < 10.0**power < high), high]


def lines(sweep: Sweep, drawn: Sequence[Axis], ranked: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return the trials' lines, the best last so that it lies on top; ``shade``: 0 for the best, 1 for the worst."""
    found = []
    for place, trial in reversed(list(enumerate(ranked))):
        values = [*(trial.settings.get(key) for key in sweep.keys), trial.value if trial.settings else None]
        at = [(axis.x, axis.place(value)) for axis, value in zip(drawn, values, strict=True) if value is not None]
        points = " ".join(f"{x:.1f},{Axis.y(y)}" for x, y in at if y is not None)
        shade = place / max(1, len(ranked) - 1)
        found.append({"trial": trial, "points": points, "opacity": round(0.9 - 0.7 * shade, 2)})
    return found
