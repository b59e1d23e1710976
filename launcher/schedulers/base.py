"""The one interface of schedulers, and the functions that several of them share.

A scheduler gives a job its hosts, starts one agent on each, and may take the hosts away. Everything else (ranks,
verdicts, restarts, job.json) is the same under all of them. A package adds a scheduler by an entry point of the group
``launcher.schedulers`` that names an instance; ``launcher.schedulers.registry`` finds it.
"""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from launcher.engines.base import Command
from launcher.errors import HostError, SpecError
from launcher.jobs import JobPaths, JobRecord
from launcher.jobs.verdict import Verdict
from launcher.plan.launch import Launch, NodePlace

if TYPE_CHECKING:
    from launcher.cluster.model import Cluster
    from launcher.common.rendering import RenderedFile
    from launcher.plan.launch_plan import LaunchPlan
    from launcher.plan.placement import Placement


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of ``launcher submit`` that belongs to a scheduler, as data.

    ``form``: str, int (1 and up) or Path. Equal options of several schedulers are one option.
    """

    flag: str
    help: str
    short: str = ""
    metavar: str | None = None
    form: type = str
    choices: tuple[str, ...] = ()
    is_flag: bool = False
    multiple: bool = False

    @property
    def name(self) -> str:
        """Return the key of its value in the ``values`` of ``Scheduler.place``."""
        return self.flag.removeprefix("--").replace("-", "_")


@dataclass(frozen=True, kw_only=True)
class AgentStart:
    """One process of the leader that runs agents on hosts ``node_ranks``, and lives as long as they do.

    ``holds_stdin``: its stdin is kept open, and its end tells the agent that the leader is gone. ``line``: the name of
    its connection in a verdict. ``cut_code``: its exit code when that connection is cut, which it notices within
    ``limit_s``; 255 is ssh's (ssh(1)).
    """

    name: str
    command: Command
    node_ranks: tuple[int, ...]
    holds_stdin: bool = False
    limit_s: float = 0.0
    line: str = "its line"
    cut_code: int = 255


class NoAnswer(HostError):
    """The scheduler did not answer, so it is unknown if it has taken the job."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A job whose folder is written, for its scheduler to take."""

    launch: Launch
    paths: JobPaths
    record: JobRecord


class Scheduler(Protocol):
    """One way to get hosts. The bodies here are the defaults of methods that a scheduler does not define.

    ``leads_here``: the job's leader runs where ``launcher submit`` is typed; else ``submit`` has it started elsewhere.
    ``takes_hosts_away``: a SIGTERM on a host may come from it, so ranks save first. ``restarts_agents``: the leader can
    start agents on the same hosts once more. ``has_queue``: it can be asked about jobs, and told to cancel them.
    ``has_arrays``: it takes many jobs at once and runs a part of them at a time.
    ``is_followed``: ``submit`` follows the job to its end. ``rank_variables``: environment variables that give an
    agent the number of its host. ``dry_run_file``: the only one of ``files`` that a dry run prints. ``instead``: what
    to type in place of another scheduler's option, by its flag.
    """

    name: str
    options: Sequence[Option] = ()
    leads_here: bool = False
    takes_hosts_away: bool = False
    restarts_agents: bool = True
    has_queue: bool = False
    has_arrays: bool = False
    is_followed: bool = True
    rank_variables: Sequence[str] = ("LAUNCHER_NODE_RANK",)
    dry_run_file: str | None = None
    instead: Mapping[str, str] = MappingProxyType({})

    # ------------------------------------------------------------------------------------------------ before the job

    @abstractmethod
    def place(self, values: Mapping[str, Any], *, cards: int | None, grace_s: float) -> Placement:
        """Return the hosts that the user asked for.

        ``values``: those of its own options, by name, without unset ones. ``cards`` counts over all hosts.
        Raises SpecError or HostError.
        """

    def files(self, plan: LaunchPlan) -> Sequence[RenderedFile]:
        """Return the files that it adds to those of ``plan``. Raises SpecError for a plan that it could not run."""
        return ()

    def preflight(self, plan: LaunchPlan, *, port: int | None) -> Sequence[str]:
        """Check that the hosts can run ``plan``, as far as they are known; return notes for the user.

        ``port``: the one that the user named for MindSpore's scheduler. Raises HostError with every failed check.
        """
        return ()

    def steps(self, plan: LaunchPlan) -> Sequence[str]:
        """Return the steps of ``submit`` before agents are started, as lines of a dry run."""
        return ()

    # ------------------------------------------------------------------------------------------------ submitting

    def ready(self, launch: Launch) -> None:
        """Raise HostError when nothing can be submitted from this host; nothing of the job is written yet."""
        return

    def submit(self, launch: Launch, paths: JobPaths, record: JobRecord) -> Sequence[str]:
        """Start the job's leader where its hosts are, and write the record with the scheduler's answer.

        Only called where the leader does not run here. Returns lines for the user. Raises HostError when the job is
        refused, and NoAnswer when that is unknown.
        """
        raise HostError(f"scheduler {self.name} starts no leader", hint="--scheduler local")

    def submit_array(self, written: Sequence[Written], folder: Path, *, name: str, most: int) -> None:
        """Have ``written`` jobs run, at most ``most`` at a time, and write its answer into their records.

        ``folder``: where its own files go; ``name``: what the queue calls them. Only called if it ``has_arrays``.
        Raises HostError when they are refused, and NoAnswer when that is unknown.
        """
        raise HostError(f"scheduler {self.name} takes jobs one by one", hint="--scheduler slurm")

    def resubmit(self, launch: Launch, paths: JobPaths, record: JobRecord) -> Sequence[str]:
        """Submit a job again, which goes on from its newest checkpoint; like ``submit`` in all else."""
        return self.submit(launch, paths, record)

    # ------------------------------------------------------------------------------------------------ from outside

    def query(self, record: JobRecord) -> JobRecord:
        """Return ``record`` with the scheduler's own knowledge added; the same object when there is none."""
        return record

    def cancel(self, paths: JobPaths, record: JobRecord, wait_s: float | None) -> None:
        """Remove a waiting job from the queue; ask a running one to stop, and end it after ``wait_s``.

        With None it is only asked. Raises JobError when the scheduler does not know the job.
        """
        return

    def unstarted_note(self, paths: JobPaths) -> str:
        """Return the note of a job that was stopped before anybody led it."""
        return "it did not run"

    def signal_meaning(self, signum: int) -> str:
        """Return the meaning of ``signum`` from this scheduler, as a clause; "" when it never sends it."""
        return ""

    # ------------------------------------------------------------------------------------------------ in the leader

    def name_hosts(self, launch: Launch) -> Launch:
        """Return ``launch`` with the hosts that were given, for schedulers that tell them only to the leader."""
        return launch

    def agents(self, launch: Launch, paths: JobPaths) -> Sequence[AgentStart]:
        """Return the processes for the leader to start; none where something else starts the agents."""
        return ()

    def is_connected(self, launch: Launch, paths: JobPaths, address: str) -> bool:
        """Return False for a host that was lost, True for a reachable one on which only the agent was killed."""
        return False

    def unusable(self, launch: Launch, paths: JobPaths, spare: NodePlace) -> str:
        """Return why ``spare`` cannot take a host's place now; "" if it can. Only asked where there are spares."""
        return ""

    def close(self, launch: Launch, paths: JobPaths) -> None:
        """Close the connections to the hosts."""
        return

    def rank_table(self) -> str | None:
        """Return the rank table that it makes itself, "" before it is complete; None where it makes none."""
        return None

    def in_vain(self, launch: Launch, paths: JobPaths) -> Verdict | None:
        """Return the verdict on an attempt that it stopped and that would always end so; None for other attempts."""
        return None

    def requeue_note(self, launch: Launch, paths: JobPaths) -> str | None:
        """Return the reason why a stopped job goes on later by itself; None if it does not, as after a user's stop."""
        return None

    def requeue(self) -> bool:
        """Make the job run again; it may end this process. Returns True also where the job runs again by itself."""
        return True


# ------------------------------------------------------------------------------------------------ shared

NODES = Option(
    flag="--nodes", form=int, metavar="N", help="number of hosts to request; --cards is the total over them."
)
KIND = Option(
    flag="--kind",
    choices=("910", "A2", "A3", "950", "310P", "CPU"),
    help="kind of the hosts' cards; this host may have none.",
)


def counted_hosts(values: Mapping[str, Any], cards: int | None) -> Cluster:
    """Return NODES hosts of KIND with ``cards`` in total, under names that the scheduler will replace."""
    from launcher.cluster.imagined import imagined_hosts

    kind = values.get("kind")
    if kind is None:
        raise SpecError(
            "which cards the hosts have is not known here", hint="pass --kind A2 (or 910, A3, 950, 310P; CPU for none)"
        )
    return imagined_hosts(values.get("nodes") or 1, cards, kind)


def agent_argv(paths: JobPaths, node_rank: int | None, *, watch_stdin: bool = False) -> tuple[str, ...]:
    """Return ``launcher node`` for the attempt of ``paths``; if ``node_rank`` is None its environment gives it."""
    rank = () if node_rank is None else ("--node-rank", str(node_rank))
    options = ("--watch-stdin",) if watch_stdin else ()
    return (
        sys.executable, "-m", "launcher", "node", "--job", str(paths.root), *rank,
        "--attempt", str(paths.attempt), *options,
    )  # fmt: skip


def leader_argv(paths: JobPaths) -> tuple[str, ...]:
    """Return the command that leads the job's next attempt, where a scheduler starts it."""
    return (sys.executable, "-m", "launcher", "node", "--lead", "--job", str(paths.root))


def agents_here(launch: Launch, paths: JobPaths) -> list[AgentStart]:
    """Return one agent for each host of ``launch``, all on the leader's own host."""
    return [_agent_here(paths, node.node_rank) for node in launch.nodes]


def _agent_here(paths: JobPaths, node_rank: int) -> AgentStart:
    command = Command(argv=agent_argv(paths, node_rank, watch_stdin=True), env=dict(os.environ))
    return AgentStart(name=f"node_{node_rank}", command=command, node_ranks=(node_rank,), holds_stdin=True)


def package_env(before: Sequence[str] = ()) -> dict[str, str]:
    """Return PYTHONPATH to this package, with the folders ``before`` it, for a process that starts elsewhere."""
    return {"PYTHONPATH": os.pathsep.join([*before, str(Path(__file__).resolve().parents[2])])}


def asked_to_stop(paths: JobPaths) -> bool:
    """Return True if a user asked for the job's end: ``launcher stop`` writes that in the job's folder."""
    try:
        return bool(paths.control.read_text(encoding="utf-8").strip())
    except OSError:
        return False
