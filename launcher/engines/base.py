"""The one interface of engines: which programs, with which environment, make the ranks of a job run on this host.

An engine starts nothing. The supervisor starts the programs it names, watches them and the ranks below them, and stops
them; it treats all engines alike. Nothing heavy is imported here or below: the supervisor stays small.
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
    """Return the time-outs of MindSpore's cluster for a job of ``world_size``; what the user sets wins."""
    return TUNING_OF_MANY if world_size > MANY_RANKS else TUNING


# What another launcher may have left in our environment, and what MindSpore would take for orders: MS_ROLE or
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
    """One process that the supervisor starts. ``rank_id`` is None for what is no rank: msrun, mpirun, a scheduler."""

    name: str
    command: Command
    rank_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Told:
    """The first rank that failed, in an engine's own words: its number, or its process, and how that ended."""

    code: int
    rank_id: int | None = None
    pid: int | None = None


@dataclass(frozen=True, kw_only=True)
class EngineJob:
    """The launch document as an engine sees it: the job on this host.

    ``world_size`` counts the ranks of the whole job; this host, number ``node_rank`` of all, has ``local_ranks`` of
    them from ``first_rank`` on (all of them if None). ``address`` and ``port`` are where MindSpore's scheduler listens,
    on host 0. ``visible``: logic ids of the cards in order of local rank, empty on CPU. ``program``: path of msrun or
    mpirun. ``worker``: what the interpreter runs as a rank, before the job's folder. ``env``: variables the user asked
    for.
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
        """Number of ranks on this host."""
        return self.world_size if self.local_ranks is None else self.local_ranks

    @property
    def worker_argv(self) -> tuple[str, ...]:
        """Argv of a rank. ``python`` is found on the PATH that ``base_env`` gives: msrun insists on that name."""
        return (*self.worker, str(self.paths.root))

    def base_env(self, engine: str) -> dict[str, str]:
        """Return the variables that all programs of the job get."""
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
        """Return MindSpore's dynamic cluster as variables: who meets where (tutorials, parallel/dynamic_cluster.md)."""
        return {
            "MS_WORKER_NUM": str(self.world_size),
            "MS_SCHED_HOST": self.address,
            "MS_SCHED_PORT": str(self.port),
            "MS_TOPO_TIMEOUT": str(CLUSTER_TIMEOUT_S),
            "RANK_SIZE": str(self.world_size),
        }

    def scheduler(self, engine: str) -> tuple[Program, ...]:
        """Return the scheduler as a program of its own, on host 0; none for one rank, which has nobody to find."""
        if self.world_size == 1 or self.node_rank != 0:
            return ()
        env = {**self.base_env(engine), **self.cluster_env(), "MS_ROLE": "MS_SCHED", "RANK_ID": "0"}
        return (Program(name="scheduler", command=Command(argv=(sys.executable, *self.worker_argv), env=env)),)


class Engine(Protocol):
    """``nests_ranks``: ranks are started by the engine's own process and not by the supervisor."""

    name: str
    nests_ranks: bool

    def find_program(self) -> str:
        """Return the path of the engine's own program, "" when it has none. Raises HostError when it is missing."""

    def programs(self, job: EngineJob) -> tuple[Program, ...]:
        """Return what to start, in this order."""

    def told(self, said: str) -> Told | None:
        """Return the rank that the engine's output ``said`` names as the first that failed; None when it names none."""


def find(name: str, hint: str) -> str:
    """Return the path of a program: beside our interpreter, else on PATH. Raises HostError when there is none."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))
    if found:
        return found
    raise HostError(f"{name} not found beside {sys.executable} nor on PATH", hint=hint)
