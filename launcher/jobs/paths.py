"""Every path of a job: the only place that knows a file name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from launcher.errors import JobError


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
        """What the supervisor carries out: the engine, its job, and limits (see ``launcher.plan.launch``)."""
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
        """What hosts say to each other in this attempt, when the job runs on several (``supervise.multinode``)."""
        return self.attempt_folder / "nodes"

    @property
    def leader_status(self) -> Path:
        return self.nodes / "leader"

    def node_status(self, node_rank: int) -> Path:
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
