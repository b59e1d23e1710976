"""Metrics of jobs as CSV: a line a step, every step."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

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


def _rows(metrics: Sequence[Metric], history: History) -> list[list[str]]:
    columns = []
    for metric in metrics:
        series = metric.read(history)
        column = np.full(len(history.steps), math.nan)
        if len(column):
            places = np.minimum(np.searchsorted(history.steps, series.steps), len(column) - 1)
            known = history.steps[places] == series.steps
            column[places[known]] = series.values[known]
        columns.append(column.tolist())
    steps, times = history.steps.tolist(), history.times.tolist()
    return [
        [history.record.job_id, str(int(step)), f"{time:.3f}", *map(_text, values)]
        for step, time, *values in zip(steps, times, *columns, strict=True)
    ]


def _text(value: float) -> str:
    """Return a number; "nan" for a value that is reported and is no finite number."""
    return "" if math.isnan(value) else "nan" if math.isinf(value) else repr(value)
