"""The record of a job, job.json. Its only writer is the process that supervises the job."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from functools import cache
from typing import Any

from launcher.common.atomic import write_atomic
from launcher.common.json_files import parse_json, read_bytes, read_json
from launcher.common.processes import ProcessId
from launcher.jobs.paths import RECORD, SPEC, JobPaths

PLANNED = "planned"  # the folder is written; the supervisor has not started, or waits for cards
STARTING = "starting"  # processes run, ranks are finding each other
RUNNING = "running"
STOPPING = "stopping"
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELLED = "cancelled"
LOST = "lost"  # the supervisor is gone without having written an end
UNREADABLE = "unreadable"  # there is a job.json, and nothing can be made of it
STATES = (PLANNED, STARTING, RUNNING, STOPPING, SUCCEEDED, FAILED, CANCELLED, LOST, UNREADABLE)
FINAL_STATES = frozenset({SUCCEEDED, FAILED, CANCELLED, LOST, UNREADABLE})


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """The contents of job.json. Times are UTC, ISO 8601. ``earlier`` has one entry for each attempt before this one.

    ``host``: the host of its leader; "" while only the scheduler knows it. ``scheduler``: its name; ``scheduler_job``:
    the scheduler's own name or number for the job, "" where it has none. ``origin``: see ``control.origin``.
    """

    job_id: str
    name: str
    state: str
    created: str
    host: str
    cards: int
    target: str
    versions: dict[str, str]
    engine: str = "msrun"
    attempt: int = 1
    started: str | None = None
    ended: str | None = None
    supervisor: ProcessId | None = None
    guard: ProcessId | None = None
    processes: dict[str, ProcessId] = field(default_factory=dict)
    exit_code: int | None = None
    verdict: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    note: str | None = None
    scheduler: str = "local"
    scheduler_job: str = ""
    earlier: tuple[dict[str, Any], ...] = ()
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_STATES

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> JobRecord:
        """Read a record, ignoring keys of other versions. Raises ValueError, TypeError or KeyError for other text."""
        raw = parse_json(text)
        if not isinstance(raw, dict):
            raise ValueError("it holds no JSON object")
        raw = known_keys(cls, _in_todays_words(raw))
        for key in ("warnings", "earlier"):
            raw[key] = tuple(raw.get(key, ()))
        for key in ("supervisor", "guard"):
            raw[key] = ProcessId.from_dict(raw[key]) if raw.get(key) else None
        raw["processes"] = {name: ProcessId.from_dict(process) for name, process in raw.get("processes", {}).items()}
        record = cls(**raw)
        # A damaged record must not pass: commands act on these without a further check.
        if record.state not in STATES or not isinstance(record.cards, int) or not isinstance(record.attempt, int):
            raise ValueError(f"state {record.state!r}, cards {record.cards!r}, attempt {record.attempt!r}")
        if not isinstance(record.scheduler, str) or not isinstance(record.scheduler_job, str):
            raise ValueError(f"scheduler {record.scheduler!r}, scheduler_job {record.scheduler_job!r}")
        return record


def _in_todays_words(raw: dict[str, Any]) -> dict[str, Any]:
    """Take the scheduler from ``where``, in which earlier versions wrote its name as ``kind`` and the job's ``id``."""
    where = raw.get("where") or {}
    # Today's keys win, so a record that has both is read as written.
    return {"scheduler": where["kind"], "scheduler_job": where.get("id", ""), **raw} if where else raw


def known_keys(kind: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the items of ``raw`` that the dataclass ``kind`` has fields for: versions may share a jobs folder."""
    names = _field_names(kind)
    return {key: value for key, value in raw.items() if key in names}


@cache
def _field_names(kind: Any) -> frozenset[str]:
    return frozenset(item.name for item in fields(kind))


def next_attempt(record: JobRecord, *, restarted: bool = True) -> JobRecord:
    """Return the record of the next attempt; the attempt of ``record`` becomes an entry of ``earlier``."""
    entry = {
        "attempt": record.attempt,
        "started": record.started,
        "ended": record.ended or now(),
        **verdict_fields(record.verdict or {}),
        "restarted": restarted,
    }
    return replace(
        record, state=PLANNED, attempt=record.attempt + 1, started=now(), ended=None, exit_code=None, verdict=None,
        warnings=(), note=None, processes={}, earlier=(*record.earlier, entry),
    )  # fmt: skip


# What an entry of ``earlier`` keeps of the verdict on its attempt.
_OF_A_VERDICT = ("reason", "rank_id", "step", "known", "signature", "failed_at", "found_at", "restart", "suspect")


def verdict_fields(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an entry of ``earlier`` keeps of ``verdict``; None for what it does not say."""
    return {key: verdict.get(key) for key in _OF_A_VERDICT}


def now() -> str:
    """Return the current time, UTC, in milliseconds, as ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def write_record(paths: JobPaths, record: JobRecord) -> None:
    """Write the record into the job's folder, which must exist."""
    write_atomic(paths.record, record.to_json(), parents=False)


def read_record(paths: JobPaths) -> JobRecord | None:
    """Return the job's record, its state checked against the process table; None when it cannot be read."""
    record = read_record_as_written(paths)
    return None if record is None else mark_lost_if_dead(record)


def read_record_as_written(paths: JobPaths) -> JobRecord | None:
    """Return the job's record, whether its processes live or not; None when it cannot be read."""
    try:
        return JobRecord.from_json(read_bytes(paths.text_of(RECORD)))
    # A damaged record may be any JSON: a list where an object belongs, a thousand brackets, half a file.
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def unreadable_record(paths: JobPaths) -> JobRecord | None:
    """Return a record of state UNREADABLE for a job.json that cannot be read; None when there is none to be seen."""
    try:
        changed = datetime.fromtimestamp(paths.record.stat().st_mtime, timezone.utc)
    except OSError:
        return None
    # The file's time stands for the job's, so that a damaged job keeps its place in lists, and may be "last".
    created = changed.isoformat(timespec="milliseconds")
    try:
        JobRecord.from_json(read_bytes(paths.record))
        return read_record(paths)  # it was rewritten meanwhile
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return JobRecord(
            job_id=paths.job_id, name=paths.job_id, state=UNREADABLE, created=created, host="", cards=0, target="-",
            versions={}, note=_in_words(error),
        )  # fmt: skip


def _in_words(error: Exception) -> str:
    """Return what is wrong with a record, without the name of a class of Python where the text says enough."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def mark_lost_if_dead(record: JobRecord) -> JobRecord:
    """Return ``record``, with state LOST when it is not final but its supervisor is gone from this host.

    While the supervisor's guard lives the record is kept: the guard is clearing up and writes the end.
    """
    # The process table of another host cannot be seen from here: its record is believed.
    if record.is_final or record.host != os.uname().nodename:
        return record
    if any(process and process.is_alive() for process in (record.supervisor, record.guard)):
        return record
    return replace(record, state=LOST)


def ended_at(record: JobRecord) -> float:
    """Return when the job ended, or was made where that is not known, in seconds since the epoch.

    Infinity for what is no time: such a job is never old.
    """
    try:
        return datetime.fromisoformat(record.ended or record.created).timestamp()
    except (ValueError, TypeError, OverflowError):
        return math.inf


def planned_steps(paths: JobPaths) -> int | None:
    """Return the number of steps in the job's plan; None when it is unknown."""
    try:
        steps = read_json(paths.plan)["steps"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return steps if isinstance(steps, int) else None


def loss_rank(paths: JobPaths, cards: int) -> int:
    """Return the rank whose loss is the run's: rank 0, or in a pipeline the first of the last stage."""
    if cards <= 1:
        return 0
    try:
        stages = read_json(paths.text_of(SPEC))["parallel"]["pipeline_stage"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return first_of_last_stage(cards, stages) if isinstance(stages, int) and stages > 0 else 0


def first_of_last_stage(cards: int, pipeline_stage: int) -> int:
    """Return the first rank of the last pipeline stage; MindSpore numbers ranks stage by stage."""
    return cards // pipeline_stage * (pipeline_stage - 1)


def stage_of(rank_id: int, cards: int, pipeline_stage: object) -> int:
    """Return the pipeline stage of a rank, from 0; of a spec without a number of stages the only one."""
    stages = pipeline_stage if isinstance(pipeline_stage, int) and pipeline_stage > 0 else 1
    return rank_id // max(1, cards // stages)


def step_to_stop_at(paths: JobPaths, unbegun_step: int) -> int:
    """Return the step after which a job that is asked to stop ends: ``unbegun_step``, or its last if that is sooner."""
    # After its last step a job saves anyway; a later step would never come.
    return min(unbegun_step, planned_steps(paths) or unbegun_step)


# The exit code of a supervisor whose job goes on later (sysexits.h, EX_TEMPFAIL).
REQUEUED = 75
