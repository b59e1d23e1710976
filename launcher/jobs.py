"""Jobs on disk: every path of a job, its record, and the store that finds jobs.

JobPaths is the only place that knows a file name. job.json has one writer, the process that supervises the job.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher.atomic import write_atomic
from launcher.errors import JobError, SpecError
from launcher.processes import ProcessId

# No vowels and no digits that look like letters: ids are typed and read aloud, and spell nothing.
_ID_ALPHABET = "bcdfghjkmnpqrstvwxz"
_ID_LENGTH = 5

PLANNED = "planned"  # the folder is written; the supervisor has not started, or waits for cards
STARTING = "starting"  # processes run, ranks are finding each other
RUNNING = "running"
STOPPING = "stopping"
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELLED = "cancelled"
LOST = "lost"  # the supervisor is gone without having written an end
UNREADABLE = "unreadable"  # there is a job.json, and nothing can be made of it
FINAL_STATES = frozenset({SUCCEEDED, FAILED, CANCELLED, LOST, UNREADABLE})


def is_job_folder(path: Path) -> bool:
    """Whether ``path`` is the folder of a job. Raises JobError when it is a folder that cannot be looked into."""
    try:
        return (path / "job.json").is_file()
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error


@dataclass(frozen=True, kw_only=True)
class JobPaths:
    """Where everything of one job lies. What belongs to one attempt (logs, events) lies in that attempt's folder."""

    root: Path
    attempt: int = 1

    def of_attempt(self, attempt: int) -> JobPaths:
        return replace(self, attempt=attempt)

    @property
    def job_id(self) -> str:
        return self.root.name

    @property
    def is_gone(self) -> bool:
        """Whether the job's folder was removed or renamed; a file server that does not answer removes nothing.

        A folder without our own files is not the job's: MindSpore and MindFormers make what they miss of a path.
        """
        return _is_missing(self.record) and _is_missing(self.launch)

    @property
    def record(self) -> Path:
        return self.root / "job.json"

    @property
    def resume_lock(self) -> Path:
        """Locked while a ``launcher resume`` prepares an attempt."""
        return self.root / ".resume"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def launch(self) -> Path:
        """What the supervisor carries out: the engine, its job, and limits (see ``launcher.launch``)."""
        return self.root / "launch.json"

    def make_attempt_folders(self) -> None:
        """What an attempt writes into, below the job's folder: when that is gone this is a FileNotFoundError."""
        for folder in (self.attempt_folder.parent, self.attempt_folder, self.logs, self.events, self.work):
            folder.mkdir(exist_ok=True)

    @property
    def control(self) -> Path:
        """How ``launcher stop`` wants the job stopped; read by the supervisor when it is signalled."""
        return self.root / "control.json"

    @property
    def spec(self) -> Path:
        """The run spec as it was used, after every default and override."""
        return self.root / "spec.json"

    @property
    def attempt_folder(self) -> Path:
        """Everything that one start of the job's processes leaves, but for checkpoints. Restarts get a new one."""
        return self.root / "attempts" / str(self.attempt)

    @property
    def logs(self) -> Path:
        return self.attempt_folder / "logs"

    @property
    def events(self) -> Path:
        """Folder of ``rank_<rank_id>.jsonl``: what each rank reports, one JSON object a line."""
        return self.attempt_folder / "events"

    @property
    def work(self) -> Path:
        """Working folder of the ranks: MindFormers drops files into it (output/, rank_*/, analyze_fail.ir)."""
        return self.attempt_folder / "work"

    @property
    def resume(self) -> Path:
        """Folder of ``rank_<rank_id>/``: links to the checkpoint this attempt starts from, if it resumes."""
        return self.attempt_folder / "resume"

    @property
    def stop_at(self) -> Path:
        """Holds the step after which all ranks save and end, when the job is asked to stop that way."""
        return self.attempt_folder / "stop_at"

    @property
    def nodes(self) -> Path:
        """What hosts say to each other in this attempt, when the job runs on several (see ``launcher.nodes``)."""
        return self.attempt_folder / "nodes"

    @property
    def leader_slate(self) -> Path:
        return self.nodes / "leader"

    def node_slate(self, node_rank: int) -> Path:
        return self.nodes / f"node_{node_rank}"

    def node_here(self, node_rank: int) -> Path:
        """What a host said of itself when its agent came."""
        return self.nodes / f"node_{node_rank}.here.json"

    def node_end(self, node_rank: int) -> Path:
        """How the attempt ended on a host."""
        return self.nodes / f"node_{node_rank}.end.json"

    @property
    def start(self) -> Path:
        """The launch with hosts, addresses and cards as they were found."""
        return self.nodes / "start.json"

    def node_start(self, node_rank: int) -> Path:
        """What one agent carries out of it: a host shall not read what concerns ten thousand others."""
        return self.nodes / f"node_{node_rank}.start.json"

    @property
    def takeover(self) -> Path:
        """Made by the one agent that writes the job's end when the leader is lost."""
        return self.nodes / "takeover"

    @property
    def checkpoints(self) -> Path:
        """Folder of ``rank_<rank_id>/``: what training saved, of all attempts."""
        return self.root / "checkpoint"

    @property
    def strategies(self) -> Path:
        return self.root / "strategy"

    @property
    def merged(self) -> Path:
        return self.root / "merged"

    @property
    def supervisor_log(self) -> Path:
        """What the supervisor itself wrote: empty unless something went wrong in it."""
        return self.root / "supervisor.log"

    @property
    def reserve(self) -> Path:
        """A few KiB that are given back when the disk is full, so that the job's end can be written down."""
        return self.root / ".reserve"

    def rank_config(self, rank_id: int) -> Path:
        return self.root / "ranks" / f"rank_{rank_id}.yaml"

    def log(self, program: str) -> Path:
        """What ``program`` ("msrun", "scheduler", ...) wrote to stdout and stderr."""
        return self.logs / f"{program}.log"

    def rank_log(self, rank_id: int) -> Path:
        """What the rank wrote to stdout and stderr. msrun names it so."""
        return self.logs / f"worker_{rank_id}.log"

    def rank_events(self, rank_id: int) -> Path:
        return self.events / f"rank_{rank_id}.jsonl"

    @property
    def scheduler_events(self) -> Path:
        return self.events / "scheduler.jsonl"

    def rank_position(self, rank_id: int) -> Path:
        """Holds the step that the rank has entered last, rewritten in place at each step."""
        return self.events / f"rank_{rank_id}.at"

    def rank_stacks(self, rank_id: int) -> Path:
        """Stacks of all threads of the rank, when the job hung."""
        return self.logs / f"stacks_{rank_id}.txt"


def _is_missing(file: Path) -> bool:
    try:
        file.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """What job.json holds. Times are UTC, ISO 8601. ``earlier`` has one entry for each attempt before this one.

    ``host``: where its leader is; "" while only a scheduler knows. ``where``: which scheduler, and its number.
    """

    job_id: str
    name: str
    state: str
    created: str
    host: str
    cards: int
    target: str
    argv: tuple[str, ...]
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
    where: dict[str, str] = field(default_factory=dict)
    earlier: tuple[dict[str, Any], ...] = ()

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_STATES

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> JobRecord:
        """Keys of other versions are passed over. Raises ValueError, TypeError or KeyError for no job record."""
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError("it holds no JSON object")
        raw = known_keys(cls, raw)
        for key in ("argv", "warnings", "earlier"):
            raw[key] = tuple(raw.get(key, ()))
        for key in ("supervisor", "guard"):
            raw[key] = ProcessId.from_dict(raw[key]) if raw.get(key) else None
        raw["processes"] = {name: ProcessId.from_dict(process) for name, process in raw.get("processes", {}).items()}
        record = cls(**raw)
        if record.state not in STATES or not isinstance(record.cards, int) or not isinstance(record.attempt, int):
            raise ValueError(f"state {record.state!r}, cards {record.cards!r}, attempt {record.attempt!r}")
        return record


def known_keys(kind: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``raw`` what the dataclass ``kind`` has a field for: two versions may share a jobs folder."""
    names = {item.name for item in fields(kind)}
    return {key: value for key, value in raw.items() if key in names}


def next_attempt(record: JobRecord, *, restarted: bool = True) -> JobRecord:
    """The record of the attempt after the one that ``record`` is of, which goes into ``earlier``."""
    verdict = record.verdict or {}
    entry = {
        "attempt": record.attempt,
        "started": record.started,
        "ended": record.ended or now(),
        "reason": verdict.get("reason"),
        "rank_id": verdict.get("rank_id"),
        "signature": verdict.get("signature"),
        "restarted": restarted,
    }
    return replace(
        record, state=PLANNED, attempt=record.attempt + 1, started=now(), ended=None, exit_code=None, verdict=None,
        warnings=(), note=None, processes={}, earlier=(*record.earlier, entry),
    )  # fmt: skip


def now() -> str:
    """This moment, UTC, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def write_record(paths: JobPaths, record: JobRecord) -> None:
    """Into the job's folder, which must be there."""
    write_atomic(paths.record, record.to_json(), parents=False)


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
        """Every job, oldest first, its state checked against the process table; UNREADABLE where nothing is known."""
        found = []
        for record_file in self.root.glob("*/job.json"):
            paths = JobPaths(root=record_file.parent.absolute())
            record = read_record(paths) or _unreadable(paths)
            if record:
                found.append((paths.of_attempt(record.attempt), record))
        return sorted(found, key=lambda item: (item[1].created, item[1].job_id))

    def get(self, reference: str) -> tuple[JobPaths, JobRecord]:
        """The job that ``reference`` means: an id, a unique prefix of one, or "last".

        Raises JobError when there is none, when a prefix fits several, or when its job.json cannot be read.
        """
        paths, record = self._find(reference)
        if record.state == UNREADABLE:
            raise JobError(
                f"{paths.record} cannot be read: {record.note}",
                hint=f"what the job left is in {paths.root}: launcher merge-ckpt {paths.checkpoints}",
            )
        return paths, record

    def _find(self, reference: str) -> tuple[JobPaths, JobRecord]:
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


STATES = (PLANNED, STARTING, RUNNING, STOPPING, SUCCEEDED, FAILED, CANCELLED, LOST, UNREADABLE)


def select_jobs(
    jobs: list[tuple[JobPaths, JobRecord]], *, states: str | None, name: str | None
) -> list[tuple[JobPaths, JobRecord]]:
    """Jobs in one of ``states`` ("running,failed") whose id contains ``name``. Raises SpecError for no state."""
    wanted = [state.strip() for state in (states or "").split(",") if state.strip()]
    unknown = [state for state in wanted if state not in STATES]
    if unknown:
        raise SpecError(f"--state {states}: there is no state {unknown[0]!r}", hint=f"states: {', '.join(STATES)}")
    return [job for job in jobs if (not wanted or job[1].state in wanted) and (name or "") in job[1].job_id]


def read_record(paths: JobPaths) -> JobRecord | None:
    """The job's record, its state checked against the process table; None when it cannot be read."""
    try:
        record = JobRecord.from_json(paths.record.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return settle(record)


def _unreadable(paths: JobPaths) -> JobRecord | None:
    """What can be said of a job whose job.json nobody understands; None when the file is gone."""
    try:
        created = datetime.fromtimestamp(paths.record.stat().st_mtime, timezone.utc).isoformat(timespec="milliseconds")
        JobRecord.from_json(paths.record.read_text(encoding="utf-8"))
        return read_record(paths)  # it was rewritten meanwhile
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return JobRecord(
            job_id=paths.job_id, name=paths.job_id, state=UNREADABLE, created=created, host="", cards=0, target="-",
            argv=(), versions={}, note=f"{type(error).__name__}: {error}",
        )  # fmt: skip


def settle(record: JobRecord) -> JobRecord:
    """``record``, but "lost" when it says a supervisor is at work and that process is gone from this host.

    While the supervisor's guard lives the record is believed: the guard is clearing up and writes the end.
    """
    if record.is_final or record.host != socket.gethostname():
        return record
    if any(process and process.is_alive() for process in (record.supervisor, record.guard)):
        return record
    return replace(record, state=LOST)


def planned_steps(paths: JobPaths) -> int | None:
    """How many steps the job's plan counts; None when that is not known."""
    try:
        steps = json.loads(paths.plan.read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return steps if isinstance(steps, int) else None


def loss_rank(paths: JobPaths, cards: int) -> int:
    """The rank whose loss is the run's: rank 0, or in a pipeline the first of the last stage."""
    try:
        stages = json.loads(paths.spec.read_text(encoding="utf-8"))["parallel"]["pipeline_stage"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return first_of_last_stage(cards, stages) if isinstance(stages, int) and stages > 0 else 0


def first_of_last_stage(cards: int, pipeline_stage: int) -> int:
    """MindSpore numbers ranks stage by stage."""
    return cards // pipeline_stage * (pipeline_stage - 1)


def step_to_stop_at(paths: JobPaths, unbegun_step: int) -> int:
    """The step that a job which is asked to stop ends after: ``unbegun_step``, or its last when that comes before."""
    return min(unbegun_step, planned_steps(paths) or unbegun_step)


def default_root() -> Path:
    """Where jobs lie unless ``--jobs-dir`` says so: $LAUNCHER_JOBS, or ``jobs`` in the working folder."""
    return Path(os.environ.get("LAUNCHER_JOBS") or "jobs")
