"""The paths of a job: the only module that knows its file names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from launcher.errors import JobError

# Of these a list of jobs reads thousands: see ``JobPaths.text_of``.
RECORD, SPEC, LABELS = "job.json", "spec.json", "labels.json"


def is_job_folder(path: Path) -> bool:
    """Return True if ``path`` is the folder of a job. Raises JobError when it cannot be looked into."""
    try:
        return (path / RECORD).is_file()
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error


@dataclass(frozen=True, kw_only=True)
class JobPaths:
    """The paths of one job. Files of one attempt (logs, events) are in that attempt's folder."""

    root: Path
    attempt: int = 1

    def of_attempt(self, attempt: int) -> JobPaths:
        return JobPaths(root=self.root, attempt=attempt)

    @property
    def job_id(self) -> str:
        return self.root.name

    @property
    def is_gone(self) -> bool:
        """Return True if the job's folder was removed or renamed; False when the file server does not answer.

        A folder without our own files is not the job's: MindSpore and MindFormers make missing folders again.
        """
        return _is_missing(self.record) and _is_missing(self.launch)

    @property
    def record(self) -> Path:
        return self.root / RECORD

    @property
    def resume_lock(self) -> Path:
        """The file that is locked while a command prepares an attempt, removes the job, or changes its labels."""
        return self.root / ".resume"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def launch(self) -> Path:
        """The launch document for the supervisor: engine, job and limits (see ``launcher.plan.launch``)."""
        return self.root / "launch.json"

    def make_attempt_folders(self) -> None:
        """Make the attempt's folders below the job's. Raises FileNotFoundError when the job's folder is gone."""
        for folder in (self.attempt_folder.parent, self.attempt_folder, self.logs, self.events, self.work):
            folder.mkdir(exist_ok=True)

    @property
    def control(self) -> Path:
        """The request of ``launcher stop``, with its options; the supervisor reads it when it is signalled."""
        return self.root / "control.json"

    @property
    def spec(self) -> Path:
        """The run spec as used, after every default and override."""
        return self.root / SPEC

    @property
    def asked(self) -> Path:
        """What the run was asked for, before any default: see ``launcher.control.asked``."""
        return self.root / "asked.json"

    @property
    def packages(self) -> Path:
        """The packages that were installed when the job was submitted, as ``pip freeze`` lists them."""
        return self.root / "packages.txt"

    @property
    def attempt_folder(self) -> Path:
        """The folder for everything that one start of the job's processes leaves, except checkpoints."""
        return self.root / f"attempts/{self.attempt}"

    @property
    def logs(self) -> Path:
        return self.attempt_folder / "logs"

    @cached_property
    def events(self) -> Path:
        """The folder of ``rank_<rank_id>.jsonl``, the events of each rank."""
        return self.root / f"attempts/{self.attempt}/events"

    @property
    def work(self) -> Path:
        """The working folder of the ranks: MindFormers writes files into it (output/, rank_*/, analyze_fail.ir)."""
        return self.attempt_folder / "work"

    @property
    def resume(self) -> Path:
        """The folder of ``rank_<rank_id>/``: links to the checkpoint from which this attempt resumes, if it does."""
        return self.attempt_folder / "resume"

    @property
    def stop_at(self) -> Path:
        """The file with the step after which all ranks save and end, when the job is asked to stop that way."""
        return self.attempt_folder / "stop_at"

    @property
    def nodes(self) -> Path:
        """The folder for messages between the hosts of this attempt, if there are several (``supervise.multinode``)."""
        return self.attempt_folder / "nodes"

    @property
    def leader_status(self) -> Path:
        return self.nodes / "leader"

    def node_status(self, node_rank: int) -> Path:
        return self.nodes / f"node_{node_rank}"

    def node_here(self, node_rank: int) -> Path:
        """The report of a host on itself when its agent started."""
        return self.nodes / f"node_{node_rank}.here.json"

    def node_end(self, node_rank: int) -> Path:
        """The report on the attempt's end on a host."""
        return self.nodes / f"node_{node_rank}.end.json"

    @property
    def start(self) -> Path:
        """The launch document with hosts, addresses and cards as found."""
        return self.nodes / "start.json"

    def node_start(self, node_rank: int) -> Path:
        """One agent's share of the launch document, so that no host has to read that of thousands of others."""
        return self.nodes / f"node_{node_rank}.start.json"

    @property
    def takeover(self) -> Path:
        """The file made by the one agent that writes the job's end when the leader is lost."""
        return self.nodes / "takeover"

    @property
    def checkpoints(self) -> Path:
        """The folder of ``rank_<rank_id>/``: the checkpoints of all attempts."""
        return self.root / "checkpoint"

    @property
    def strategies(self) -> Path:
        return self.root / "strategy"

    @property
    def compiled(self) -> Path:
        """The folder of graphs of a split model, for later attempts: see ``launcher.worker.compiled``."""
        return self.root / "compiled"

    @property
    def merged(self) -> Path:
        return self.root / "merged"

    @property
    def labels(self) -> Path:
        """Tags and a note: see ``launcher.jobs.labels``."""
        return self.root / LABELS

    @property
    def evaluation(self) -> Path:
        """What ``launcher eval`` found last."""
        return self.root / "evaluation.json"

    @property
    def answers(self) -> Path:
        """What ``launcher eval --ask`` found: a file for each file of questions."""
        return self.root / "answers"

    @property
    def supervisor_log(self) -> Path:
        """The supervisor's own output: empty unless something went wrong in it."""
        return self.root / "supervisor.log"

    @property
    def reserve(self) -> Path:
        """A file of some KiB that is deleted when the disk is full, to make room for the job's end."""
        return self.root / ".reserve"

    def rank_config(self, rank_id: int) -> Path:
        return self.root / "ranks" / f"rank_{rank_id}.yaml"

    def log(self, program: str) -> Path:
        """Return the log of ``program`` ("msrun", "scheduler", ...): its stdout and stderr."""
        return self.logs / f"{program}.log"

    def rank_log(self, rank_id: int) -> Path:
        """Return the log of a rank: its stdout and stderr. The name is msrun's."""
        return self.logs / f"worker_{rank_id}.log"

    def rank_events(self, rank_id: int) -> Path:
        return self.events / f"rank_{rank_id}.jsonl"

    def text_of(self, name: str) -> str:
        """Return the path of a file in the job's folder as text: a list of jobs names thousands, each Path costs."""
        return f"{self.root}/{name}"

    def events_of_ranks(self, count: int) -> list[str]:
        """Return the files of events of ranks 0, 1, ... as text, for the same reason."""
        folder = self.text_of(f"attempts/{self.attempt}/events")
        return [f"{folder}/rank_{rank_id}.jsonl" for rank_id in range(count)]

    def host_events(self, node_rank: int) -> Path:
        """Return the samples of a host's state: see ``launcher.jobs.events.HostSample``."""
        return self.events / f"host_{node_rank}.jsonl"

    @property
    def scheduler_events(self) -> Path:
        return self.events / "scheduler.jsonl"

    @property
    def supervisor_events(self) -> Path:
        return self.events / "supervisor.jsonl"

    def rank_position(self, rank_id: int) -> Path:
        """Return the file with the step that the rank has entered last, rewritten in place at each step."""
        return self.events / f"rank_{rank_id}.at"

    def rank_stacks(self, rank_id: int) -> Path:
        """Return the file for the stacks of all threads of the rank, written when the job hangs."""
        return self.logs / f"stacks_{rank_id}.txt"


def _is_missing(file: Path) -> bool:
    try:
        file.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
