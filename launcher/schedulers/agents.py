"""How the leader gets an agent onto each host: by ssh, by one srun, or not at all where something else starts them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.engines.base import Command
from launcher.jobs import JobPaths
from launcher.plan.launch import Launch


@dataclass(frozen=True, kw_only=True)
class AgentStart:
    """One process of the leader that brings agents to hosts ``node_ranks``, and lives as long as they do.

    ``holds_stdin``: its stdin is kept open, and its end tells the agent that the leader is gone.
    """

    name: str
    command: Command
    node_ranks: tuple[int, ...]
    holds_stdin: bool = False
    limit_s: float = field(default=0.0)


def agent_argv(paths: JobPaths, node_rank: int | None, *, watch_stdin: bool = False) -> tuple[str, ...]:
    """``launcher node`` for the attempt that ``paths`` is of; ``node_rank`` None is told by the environment."""
    rank = () if node_rank is None else ("--node-rank", str(node_rank))
    options = ("--watch-stdin",) if watch_stdin else ()
    return (
        sys.executable, "-m", "launcher", "node", "--job", str(paths.root), *rank,
        "--attempt", str(paths.attempt), *options,
    )  # fmt: skip


def package_env(before: Sequence[str] = ()) -> dict[str, str]:
    """The way to this package for a process that starts elsewhere; other folders ``before`` it."""
    return {"PYTHONPATH": os.pathsep.join([*before, str(Path(__file__).resolve().parents[2])])}


def agent_starts(launch: Launch, paths: JobPaths) -> Sequence[AgentStart]:
    """What the leader has to start; nothing for "given", where agents come by themselves."""
    kind = launch.where.get("kind", "given")
    if kind == "hosts":
        from launcher.schedulers.hosts import agent_starts as by_ssh

        return by_ssh(launch, paths)
    if kind == "slurm":
        from launcher.schedulers.slurm import agent_starts as by_srun

        return by_srun(launch, paths)
    if kind == "here":
        return [_local(paths, node.node_rank) for node in launch.nodes]
    return ()


def _local(paths: JobPaths, node_rank: int) -> AgentStart:
    command = Command(argv=agent_argv(paths, node_rank, watch_stdin=True), env=dict(os.environ))
    return AgentStart(name=f"node_{node_rank}", command=command, node_ranks=(node_rank,), holds_stdin=True)
