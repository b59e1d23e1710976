"""The leader's own processes that start agents on their hosts; none where something else starts the agents."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from typing import Protocol

from launcher.common.processes import die_with_parent, kill_descendants, reap
from launcher.jobs import JobPaths
from launcher.plan.launch import Launch
from launcher.schedulers import registry
from launcher.schedulers.base import AgentStart


class Agents(Protocol):
    """The processes that start agents, as the leader uses them."""

    def start(self, launch: Launch, paths: JobPaths) -> Sequence[AgentStart]: ...

    def ended(self) -> Sequence[tuple[AgentStart, int]]:
        """Return the processes that ended since the last call, each with its exit code."""
        ...

    def let_go(self) -> None:
        """Close the lines that tell agents that the leader lives."""
        ...

    @property
    def all_ended(self) -> bool: ...

    def kill(self) -> None: ...


class AgentProcesses:
    """The processes that the job's scheduler names; ``kill`` leaves none of them."""

    def __init__(self) -> None:
        self._spawned: list[tuple[AgentStart, subprocess.Popen[bytes]]] = []
        self._ended: list[tuple[AgentStart, int]] = []

    def start(self, launch: Launch, paths: JobPaths) -> Sequence[AgentStart]:
        starts = registry.get(launch.scheduler).agents(launch, paths)
        for start in starts:
            self._spawned.append((start, _spawn(start, paths)))
        return starts

    def ended(self) -> Sequence[tuple[AgentStart, int]]:
        reap(self._note_end)
        ended, self._ended = self._ended, []
        return ended

    def _note_end(self, pid: int, code: int) -> None:
        for start, popen in self._of(pid):
            popen.returncode = code
            self._ended.append((start, code))

    def _of(self, pid: int) -> Iterator[tuple[AgentStart, subprocess.Popen[bytes]]]:
        return ((start, popen) for start, popen in self._spawned if popen.pid == pid)

    def let_go(self) -> None:
        for _, popen in self._spawned:
            if popen.stdin:
                with contextlib.suppress(OSError):
                    popen.stdin.close()

    @property
    def all_ended(self) -> bool:
        return all(popen.returncode is not None for _, popen in self._spawned)

    def kill(self) -> None:
        kill_descendants(self._note_end)


def _spawn(start: AgentStart, paths: JobPaths) -> subprocess.Popen[bytes]:
    with paths.log(start.name).open("ab") as output:
        return subprocess.Popen(
            start.command.argv,
            env=dict(start.command.env),
            cwd=paths.work,
            stdin=subprocess.PIPE if start.holds_stdin else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A signal to the leader's group must not cut the lines: agents would take that for the leader's death.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
