"""All jobs of a folder as metrics for Prometheus: OpenMetrics 1.0 over HTTP, and its older text format for files.

node_exporter's textfile collector reads the older format only, in which a counter's family has the name of its samples
and there is no type info. Values are of the moment; base units are in the names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from launcher.common import openmetrics
from launcher.common.openmetrics import Family, Labels
from launcher.jobs import STATES, UNREADABLE, JobPaths, JobRecord, JobStore
from launcher.observe import facts
from launcher.observe.columns import Floats
from launcher.observe.history import FOLDER_DAMAGES, History, read_history, seconds_of
from launcher.observe.metrics import METRICS, tokens_per_step
from launcher.observe.stragglers import Stragglers
from launcher.observe.summary import Summary, summarize

_FAMILIES = {
    name: (kind, about)
    for name, kind, about in (
        ("launcher_job", "info", "A job of the folder."),
        ("launcher_job_state", "gauge", "1 for the state that the job is in, 0 for the others."),
        ("launcher_job_created_timestamp_seconds", "gauge", "When the job was submitted."),
        ("launcher_job_step", "gauge", "Last step that is done."),
        ("launcher_job_steps", "gauge", "Steps that are planned."),
        ("launcher_job_loss", "gauge", "Loss of the last step, mean over ranks; NaN where it is no finite number."),
        ("launcher_job_held_out_loss", "gauge", "Newest loss on held-out rows."),
        ("launcher_job_learning_rate", "gauge", "Learning rate of the last step."),
        ("launcher_job_tokens", "counter", "Tokens trained on, padding included, steps that were done again too."),
        ("launcher_job_tokens_per_second", "gauge", "Usual throughput over all ranks, padding included."),
        ("launcher_job_running_seconds", "gauge", "Time in attempts."),
        (
            "launcher_job_productive_seconds",
            "gauge",
            "Time in steps that count, without compiling, saving, evaluating.",
        ),
        ("launcher_job_remaining_seconds", "gauge", "Time until the last step, by the newest steps."),
        ("launcher_job_restarts", "counter", "Attempts after the first."),
        (
            "launcher_job_mean_repair_seconds",
            "gauge",
            "Mean time from a failure to the next attempt's first step, by the known error or the reason.",
        ),
        ("launcher_rank_step", "gauge", "Last step of the rank."),
        (
            "launcher_rank_step_seconds",
            "gauge",
            "Time of the rank's last step; collectives make it about the same on all ranks.",
        ),
        ("launcher_rank_late_seconds", "gauge", "How long after the median of the ranks it enters a step, mean."),
        ("launcher_rank_core_wait_seconds", "gauge", "How long its threads wait for a core in a step, mean."),
        ("launcher_rank_save_seconds", "gauge", "How long it takes to save, mean of the newest saves."),
        ("launcher_rank_slow", "gauge", "Share of the time that the others lose by a rank that is named as slow."),
        ("launcher_rank_input_wait_seconds", "counter", "Time the rank has waited for rows in this attempt."),
        ("launcher_rank_memory_bytes", "gauge", "Highest memory of the rank: of its card on Ascend, resident on CPU."),
    )
}


def metrics_text(store: JobStore, *, older: bool = False) -> str:
    """Return the metrics of all jobs in ``store``; those of ranks for jobs that have not ended.

    ``older``: in Prometheus' text format 0.0.4 in place of OpenMetrics.
    """
    return Scrapes(store).text(older=older)


class Scrapes:
    """The metrics of a folder that is read again and again: of a job that has ended once."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._ended: dict[str, tuple[JobRecord, list[Sample]]] = {}

    def text(self, *, older: bool = False) -> str:
        """Return the metrics of now, as ``metrics_text`` does."""
        families = {name: Family(name=name, kind=kind, about=about) for name, (kind, about) in _FAMILIES.items()}
        for paths, record in self._store.all():
            for name, labels, value in self._samples(paths, record):
                families[name].add(labels, value)
        return openmetrics.metrics_text(families.values(), older=older)

    def _samples(self, paths: JobPaths, record: JobRecord) -> list[Sample]:
        known = self._ended.get(record.job_id)
        if known is not None and known[0] == record:
            return known[1]
        found = list(_job_samples(paths, record))
        if record.is_final:
            self._ended[record.job_id] = record, found
        return found


Sample = tuple[str, Labels, float | None]


def _job_samples(paths: JobPaths, record: JobRecord) -> Iterator[Sample]:
    labels, state = {"job": record.job_id}, record.state
    values: list[Sample] = []
    if state != UNREADABLE:
        try:
            values = list(_read_samples(paths, record, labels))
        except FOLDER_DAMAGES:
            state = UNREADABLE
    about = {"name": record.name, "attempt": str(record.attempt), "target": record.target, "engine": record.engine,
             "scheduler": record.scheduler, "user": record.origin.get("user", "")}  # fmt: skip
    yield "launcher_job", labels | {key: str(text) for key, text in about.items()}, 1
    for each in STATES:
        yield "launcher_job_state", labels | {"state": each}, state == each
    yield from values


def _read_samples(paths: JobPaths, record: JobRecord, labels: dict[str, str]) -> Iterator[Sample]:
    history = read_history(paths, record)
    summary = summarize(history)
    for name, value in _job_values(history, summary).items():
        yield name, labels, value
    for cause, seconds in summary.goodput.mean_repair_s.items():
        yield "launcher_job_mean_repair_seconds", labels | {"cause": cause}, seconds
    if not record.is_final:
        yield from _rank_samples(history)
        yield from _slow_samples(history, summary.stragglers)


def _job_values(history: History, found: Summary) -> dict[str, float | None]:
    loss, tokens = found.last_loss, tokens_per_step(history)
    return {
        "launcher_job_created_timestamp_seconds": seconds_of(history.record.created),
        "launcher_job_step": found.done_steps,
        "launcher_job_steps": found.total_steps,
        "launcher_job_loss": math.nan if loss is not None and math.isinf(loss) else loss,
        "launcher_job_held_out_loss": found.last_held_out.loss if found.last_held_out else None,
        "launcher_job_learning_rate": METRICS["learning-rate"].read(history).last,
        "launcher_job_tokens": None if tokens is None else tokens * (len(history.steps) + history.redone_steps),
        "launcher_job_tokens_per_second": found.tokens_per_s,
        "launcher_job_running_seconds": found.goodput.running_s,
        "launcher_job_productive_seconds": found.goodput.productive_s,
        "launcher_job_remaining_seconds": found.left_s,
        "launcher_job_restarts": found.attempts - 1,
    }


def _rank_samples(history: History) -> Iterator[Sample]:
    places = facts.hosts(history)
    for rank in history.attempts[-1].ranks if history.attempts else ():
        if not rank.count:
            continue
        host, device = places.get(rank.rank_id, ("", ""))
        labels = {"job": history.record.job_id, "rank": str(rank.rank_id), "host": host, "device": device}
        waits, memory = rank.steps["input_s"], _known(rank.steps["memory_mib"])
        yield "launcher_rank_step", labels, rank.steps["step"][-1]
        yield "launcher_rank_step_seconds", labels, _known(rank.steps["step_s"])
        waited = float(np.nansum(waits)) if not np.isnan(waits).all() else None
        yield "launcher_rank_input_wait_seconds", labels, waited
        yield "launcher_rank_memory_bytes", labels, None if memory is None else memory * (1 << 20)


def _slow_samples(history: History, slow: Stragglers) -> Iterator[Sample]:
    hosts = facts.hosts(history)

    def labels(rank_id: int) -> dict[str, str]:
        host, device = hosts.get(rank_id, ("", ""))
        return {"job": history.record.job_id, "rank": str(rank_id), "host": host, "device": device}

    for rank in slow.ranks:
        yield "launcher_rank_late_seconds", labels(rank.rank_id), rank.late_s
        yield "launcher_rank_core_wait_seconds", labels(rank.rank_id), rank.core_wait_s
        yield "launcher_rank_save_seconds", labels(rank.rank_id), rank.save_s
    for suspect in slow.suspects:
        for rank_id in suspect.rank_ids:
            yield "launcher_rank_slow", labels(rank_id) | {"cause": suspect.cause}, suspect.lost_share


def _known(values: Floats) -> float | None:
    """Return the last of ``values``; None where it is not known."""
    return None if math.isnan(values[-1]) else float(values[-1])
