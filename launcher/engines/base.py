"""The one interface of engines: the programs, with their environment, that start the ranks of a job on this host.

An engine starts nothing itself. The supervisor starts the programs it names, watches them and the ranks below them, and
stops them; it treats all engines alike. Nothing heavy is imported here or below, so the supervisor stays small.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launcher.errors import HostError
from launcher.jobs import JobPaths

# Seconds within which all ranks must have found each other: importing mindformers on a slow disk takes a minute.
CLUSTER_TIMEOUT_S = 300

# A worker learns that the cluster is complete from a heartbeat reply, by default every 3 to 5 s; at 1 s the start is
# 3 s and the end 3 s shorter (measured with 2 CPU ranks on mindspore 2.9.0). Both are documented by MindSpore.
TUNING = {"MS_RETRY_INTERVAL_LOWER": "1", "MS_RETRY_INTERVAL_UPPER": "1"}

# Above this many ranks one scheduler has much to answer: MindSpore advises longer time-outs (tutorials,
# parallel/dynamic_cluster.md: MS_RETRY_INTERVAL_* "controls the message concurrency of the Scheduler"; FAQ of
# distributed training: 900 to 1800 s above 128 cards).
MANY_RANKS = 128
TUNING_OF_MANY = {
    "MS_RETRY_INTERVAL_LOWER": "3",
    "MS_RETRY_INTERVAL_UPPER": "5",
    "MS_NODE_TIMEOUT": "900",
    "MS_RECEIVE_MSG_TIMEOUT": "900",
}


def tuning(world_size: int) -> dict[str, str]:
    """Return the time-outs of MindSpore's cluster for a job of ``world_size``; the user's own settings win."""
    return TUNING_OF_MANY if world_size > MANY_RANKS else TUNING


# Variables that another launcher may have left in our environment and that MindSpore would obey: MS_ROLE or
# MS_SCHED_HOST alone switches the dynamic cluster on (mindspore 2.9.0, UseDynamicCluster).
FOREIGN = (
    "MS_ROLE", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_NUM", "MS_NODE_ID", "RANK_ID", "RANK_SIZE", "DEVICE_ID",
    "RANK_TABLE_FILE",
)  # fmt: skip

WORKER = ("-m", "launcher.worker")


@dataclass(frozen=True, kw_only=True)
class Command:
    """An argv and the environment variables that are *added* for it. No shell ever sees it."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return a line that works when it is pasted into a shell."""
        pairs = (f"{key}={shlex.quote(value)}" for key, value in sorted(self.env.items()))
        return " ".join([*pairs, shlex.join(self.argv)])


@dataclass(frozen=True, kw_only=True)
class Program:
    """One process that the supervisor starts. ``rank_id``: None when it is not a rank but an engine or a scheduler."""

    name: str
    command: Command
    rank_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Told:
    """The first rank that failed, as the engine's output names it: its number or its process, and its exit code."""

    code: int
    rank_id: int | None = None
    pid: int | None = None


@dataclass(frozen=True, kw_only=True)
class EngineJob:
    """The part of the launch document that an engine needs: the job on this host.

    ``world_size`` counts the ranks of the whole job; this host, number ``node_rank``, has ``local_ranks`` of them from
    ``first_rank`` on (all of them if None). MindSpore's scheduler listens on ``address`` and ``port``, on host 0.
    ``visible``: logic ids of the cards in order of local rank, empty on CPU. ``program``: path of msrun or mpirun.
    ``worker``: the interpreter's arguments for a rank, before the job's folder. ``env``: variables from the user.
    """

    paths: JobPaths
    world_size: int
    target: str
    address: str
    port: int
    rank_table: str
    visible: tuple[int, ...] = ()
    program: str = ""
    worker: tuple[str, ...] = WORKER
    env: Mapping[str, str] = field(default_factory=dict)
    node_rank: int = 0
    first_rank: int = 0
    local_ranks: int | None = None

    @property
    def local_count(self) -> int:
        """Return the number of ranks on this host."""
        return self.world_size if self.local_ranks is None else self.local_ranks

    @property
    def worker_argv(self) -> tuple[str, ...]:
        """Return a rank's arguments, after ``python``: msrun insists on that name, found on PATH of ``base_env``."""
        return (*self.worker, str(self.paths.root))

    def base_env(self, engine: str) -> dict[str, str]:
        """Return the variables for all programs of the job."""
        env = {**tuning(self.world_size), **self.env}
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        env["PYTHONUNBUFFERED"] = "1"  # a rank's last words are in its log when it is killed
        env["LAUNCHER_ENGINE"] = engine
        env["LAUNCHER_ATTEMPT"] = str(self.paths.attempt)
        if self.visible:
            # DEVICE_ID is the local index, and the runtime counts visible chips by their logic ids: this makes index
            # i the i-th device of the plan.
            env["ASCEND_RT_VISIBLE_DEVICES"] = ",".join(map(str, self.visible))
        return env

    def cluster_env(self) -> dict[str, str]:
        """Return the variables of MindSpore's dynamic cluster: its size and address (parallel/dynamic_cluster.md)."""
        return {
            "MS_WORKER_NUM": str(self.world_size),
            "MS_SCHED_HOST": self.address,
            "MS_SCHED_PORT": str(self.port),
            "MS_TOPO_TIMEOUT": str(CLUSTER_TIMEOUT_S),
            "RANK_SIZE": str(self.world_size),
        }

    def scheduler(self, engine: str) -> tuple[Program, ...]:
        """Return the scheduler as a program of its own, on host 0; none for a single rank, which needs none."""
        if self.world_size == 1 or self.node_rank != 0:
            return ()
        env = {**self.base_env(engine), **self.cluster_env(), "MS_ROLE": "MS_SCHED", "RANK_ID": "0"}
        return (Program(name="scheduler", command=Command(argv=(sys.executable, *self.worker_argv), env=env)),)


class Engine(Protocol):
    """One way to start ranks. ``nests_ranks``: the engine's own process starts them, not the supervisor."""

    name: str
    nests_ranks: bool

    def find_program(self) -> str:
        """Return the path of the engine's own program, "" when it has none. Raises HostError when it is missing."""

    def programs(self, job: EngineJob) -> tuple[Program, ...]:
        """Return the programs to start, in this order."""

    def told(self, said: str) -> Told | None:
        """Return the first failed rank named in the engine's output ``said``; None when it names none."""


def find(name: str, hint: str) -> str:
    """Return the path of a program: beside our interpreter, else on PATH. Raises HostError when there is none."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))
    if found:
        return found
    raise HostError(f"{name} not found beside {sys.executable} nor on PATH", hint=hint)
