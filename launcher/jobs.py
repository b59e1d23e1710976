"""Jobs on disk: every path of a job, its record, and the store that finds jobs.

JobPaths is the only place that knows a file name. job.json has one writer, the process that supervises the job.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher.errors import JobError
from launcher.processes import ProcessId
from launcher.render import write_atomic

# No vowels and no digits that look like letters: ids are typed and read aloud, and spell nothing.
_ID_ALPHABET = "bcdfghjkmnpqrstvwxz"
_ID_LENGTH = 5

PLANNED = "planned"
RUNNING = "running"
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELLED = "cancelled"
LOST = "lost"
FINAL_STATES = frozenset({SUCCEEDED, FAILED, CANCELLED, LOST})


@dataclass(frozen=True, kw_only=True)
class JobPaths:
    """Where everything of one job lies."""

    root: Path

    @property
    def job_id(self) -> str:
        return self.root.name

    @property
    def record(self) -> Path:
        return self.root / "job.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def spec(self) -> Path:
        """The run spec as it was used, after every default and override."""
        return self.root / "spec.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def events(self) -> Path:
        """Folder of ``rank_<rank_id>.jsonl``: what each rank reports, one JSON object a line."""
        return self.root / "events"

    @property
    def work(self) -> Path:
        """Working folder of the ranks: MindFormers drops files into it (output/, rank_*/, analyze_fail.ir)."""
        return self.root / "work"

    @property
    def checkpoints(self) -> Path:
        """Folder of ``rank_<rank_id>/``: what training saved."""
        return self.root / "checkpoint"

    @property
    def strategies(self) -> Path:
        return self.root / "strategy"

    @property
    def merged(self) -> Path:
        return self.root / "merged"

    @property
    def engine_log(self) -> Path:
        """What the engine (msrun) wrote to stdout and stderr."""
        return self.logs / "engine.log"

    def rank_config(self, rank_id: int) -> Path:
        return self.root / "ranks" / f"rank_{rank_id}.yaml"

    def rank_log(self, rank_id: int) -> Path:
        """What the rank wrote to stdout and stderr. msrun names it so."""
        return self.logs / f"worker_{rank_id}.log"

    def rank_events(self, rank_id: int) -> Path:
        return self.events / f"rank_{rank_id}.jsonl"


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """What job.json holds. Times are UTC, ISO 8601."""

    job_id: str
    name: str
    state: str
    created: str
    host: str
    cards: int
    target: str
    argv: tuple[str, ...]
    versions: dict[str, str]
    started: str | None = None
    ended: str | None = None
    supervisor: ProcessId | None = None
    processes: dict[str, ProcessId] = field(default_factory=dict)
    exit_code: int | None = None
    verdict: dict[str, Any] | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> JobRecord:
        """Raises ValueError or TypeError when ``text`` is no job record."""
        raw = json.loads(text)
        raw["argv"] = tuple(raw["argv"])
        raw["supervisor"] = ProcessId(**raw["supervisor"]) if raw["supervisor"] else None
        raw["processes"] = {name: ProcessId(**process) for name, process in raw["processes"].items()}
        return cls(**raw)


def now() -> str:
    """This moment, UTC, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def write_record(paths: JobPaths, record: JobRecord) -> None:
    write_atomic(paths.record, record.to_json())


class JobStore:
    """The folder that holds one folder a job."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def new_paths(self, name: str) -> JobPaths:
        """Paths for a job to come; nothing is made. The random part comes first, so a short prefix names a job."""
        while True:
            token = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
            paths = JobPaths(root=self.root.absolute() / f"{token}-{name}")
            if not any(self.root.glob(f"{token}-*")):
                return paths

    def all(self) -> list[tuple[JobPaths, JobRecord]]:
        """Every readable job, oldest first, its state checked against the process table."""
        found = []
        for record_file in self.root.glob("*/job.json"):
            paths = JobPaths(root=record_file.parent.absolute())
            record = _read(paths)
            if record:
                found.append((paths, record))
        return sorted(found, key=lambda item: (item[1].created, item[1].job_id))

    def get(self, reference: str) -> tuple[JobPaths, JobRecord]:
        """The job that ``reference`` means: an id, a unique prefix of one, or "last".

        Raises JobError when there is none, or when a prefix fits several.
        """
        jobs = self.all()
        if reference == "last" and jobs:
            return jobs[-1]
        exact = [job for job in jobs if job[1].job_id == reference]
        fits = exact or [job for job in jobs if reference and job[1].job_id.startswith(reference)]
        if len(fits) == 1:
            return fits[0]
        raise self._not_one(reference, [record.job_id for _, record in fits])

    def _not_one(self, reference: str, fits: list[str]) -> JobError:
        if fits:
            return JobError(f"{reference!r} fits {len(fits)} jobs: {', '.join(fits)}", hint="type a letter more")
        if not (self.root.is_dir() and self.all()):
            return JobError(f"no job {reference!r}: there are no jobs in {self.root}", hint="launcher submit --cards 2")
        return JobError(f"no job {reference!r} in {self.root}", hint="launcher jobs lists them")


def _read(paths: JobPaths) -> JobRecord | None:
    try:
        record = JobRecord.from_json(paths.record.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return settle(record)


def settle(record: JobRecord) -> JobRecord:
    """``record``, but "lost" when it says a supervisor is at work and that process is gone from this host."""
    unsettled = record.state not in FINAL_STATES
    if unsettled and record.host == socket.gethostname() and not _alive(record.supervisor):
        return replace(record, state=LOST)
    return record


def _alive(process: ProcessId | None) -> bool:
    return process is not None and process.is_alive()


def default_root() -> Path:
    """Where jobs lie unless ``--jobs-dir`` says so: $LAUNCHER_JOBS, or ``jobs`` in the working folder."""
    return Path(os.environ.get("LAUNCHER_JOBS") or "jobs")
