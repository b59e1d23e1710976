"""Metrics of jobs as CSV: a line a step, every step."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from launcher.observe.history import History
from launcher.observe.metrics import Metric


def to_csv(metrics: Sequence[Metric], histories: Sequence[History]) -> str:
    """Return job, step, time (seconds since the epoch) and a column a metric, empty where it has no value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["job", "step", "time", *(metric.key for metric in metrics)])
    for history in histories:
        writer.writerows(_rows(metrics, history))
    return out.getvalue()


def to_columns(metrics: Sequence[Metric], history: History) -> dict[str, list[Any]]:
    """Return step, time (seconds since the epoch) and a list a metric, nan where it has no value."""
    steps = [int(step) for step in history.steps.tolist()]
    return {"step": steps, "time": history.times.tolist(), **{one.key: _column(one, history) for one in metrics}}


def _column(metric: Metric, history: History) -> list[float]:
    series = metric.read(history)
    column = np.full(len(history.steps), math.nan)
    if len(column):
        places = np.minimum(np.searchsorted(history.steps, series.steps), len(column) - 1)
        known = history.steps[places] == series.steps
        column[places[known]] = series.values[known]
    found: list[float] = column.tolist()
    return found


def _rows(metrics: Sequence[Metric], history: History) -> list[list[str]]:
    columns = to_columns(metrics, history)
    return [
        [history.record.job_id, str(step), f"{time:.3f}", *map(_text, values)]
        for step, time, *values in zip(*columns.values(), strict=True)
    ]


def _text(value: float) -> str:
    """Return a number; "nan" for a value that is reported and is no finite number."""
    return "" if math.isnan(value) else "nan" if math.isinf(value) else repr(value)
