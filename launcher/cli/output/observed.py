"""Comparisons, the list of metrics, and the page of all running jobs, in the terminal."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

from launcher.cli.output.live import REFRESH_S
from launcher.cli.output.show import last_step_of, last_steps
from launcher.cli.output.tables import table
from launcher.common.clock import duration
from launcher.common.json_files import json_or_empty
from launcher.jobs import JobPaths, JobRecord, JobStore, planned_steps
from launcher.jobs.events import Step
from launcher.observe.comparison import Comparison
from launcher.observe.history import History, value_at
from launcher.observe.metrics import METRICS, nothing_of

_WIDEST = 48


def comparison_text(found: Comparison) -> str:
    """Results, then what differs, a column a job. The best of each result is marked with a star."""
    results = [
        (column.name, *(f"{text}{' *' * (number == column.best)}" for number, text in enumerate(column.texts)))
        for column in found.results
        if any(column.texts)
    ]
    parts = [table(("RESULT", *found.job_ids), results)]
    for group in found.groups:
        rows = [(row.key, *map(_cell, row.values)) for row in group.rows]
        same = f"{group.same} other key(s) are the same" if rows else f"no difference in {group.same} key(s)"
        parts.append((table((group.name.upper(), *found.job_ids), rows) + "\n" if rows else f"{group.name}: ") + same)
    return "\n\n".join(parts)


def _cell(value: Any) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _WIDEST else "…" + text[1 - _WIDEST :]


def metric_table(histories: Sequence[History]) -> str:
    """The metrics, with their newest value in each job or why there is none."""
    rows = []
    for metric in METRICS.values():
        for history in histories:
            series = metric.read(history)
            last = nothing_of(metric, history) if series.is_empty or series.last is None else f"{series.last:.6g}"
            rows.append((metric.key, metric.unit, history.record.job_id, last))
    return table(("METRIC", "UNIT", "JOB", "LAST VALUE"), rows)


# --------------------------------------------------------------------------------------------------------- top

_TOP = ("JOB", "STATE", "CARDS", "STEP", "DONE", "LEFT", "LOSS", "LATEST", "S/STEP", "TOKENS/S")
_SPARK, _RECENT = 12, 20


def watch_top(store: JobStore) -> None:
    """Redraw the page every second until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False, screen=True) as live:
        while True:
            live.update(Text(top_page(store)), refresh=True)
            time.sleep(REFRESH_S)


def top_page(store: JobStore) -> str:
    """A line for each job that has not ended, the newest last."""
    every = store.all()
    running = [(paths, record) for paths, record in every if not record.is_final]
    head = f"{time.strftime('%H:%M:%S')}  {len(running)} running of {len(every)} jobs in {store.root}"
    if not running:
        return f"{head}\n\nNothing runs. launcher jobs lists those that ended."
    return f"{head}\n\n{table(_TOP, [_top_row(paths, record) for paths, record in running])}"


def _top_row(paths: JobPaths, record: JobRecord) -> tuple[str, ...]:
    steps, total = last_steps(paths, record), planned_steps(paths)
    rows, length = (
        json_or_empty(paths.plan).get("global_batch"),
        value_at(json_or_empty(paths.spec), "model", "seq_length"),
    )
    tokens = rows * length if isinstance(rows, int) and isinstance(length, int) else None
    seconds = statistics.median(step.step_s for step in steps[1:][-_RECENT:] or steps) if steps else None
    done = steps[-1].step if steps else 0
    left = duration(seconds * max(0, total - done)) if seconds is not None and total else ""
    return (
        record.job_id,
        record.state,
        f"{record.cards} {record.target}",
        f"{done}/{total or '?'}" if steps else "",
        f"{100 * done / total:.0f} %" if total and steps else "",
        left,
        _loss(last_step_of(paths, record)),
        _trend(steps),
        f"{seconds:.3f}" if seconds is not None else "",
        f"{tokens / seconds:,.0f}" if tokens and seconds else "",
    )


def _loss(step: Step | None) -> str:
    loss = step.loss if step else None
    return f"{loss:.4f}" if isinstance(loss, float) else str(loss or "")


def _trend(steps: Sequence[Step]) -> str:
    import numpy as np

    from launcher.observe.braille import sparkline

    return sparkline(np.array([step.loss for step in steps if isinstance(step.loss, float)]), _SPARK)
