"""Standby processes of a job that may be restarted: ranks of the next attempt, imported before they are needed.

They are children of the supervisor: they die with it, and are ended with the job. They start after the first step, so
that they take nothing from the start of the ranks. Not on several hosts: there a rank's parent, the agent, ends with
its attempt.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import psutil

from launcher.common.processes import ProcessId, die_with_parent, stop
from launcher.engines import ENGINES
from launcher.engines.base import FOREIGN, WORKER, Command, Program
from launcher.jobs import JobPaths
from launcher.plan.launch import Launch
from launcher.worker.standby import VARIABLE, Part, address, give_part

# Resident memory of one with mindspore 2.9.0 and mindformers 1.9.0 on CPU; some of it is shared with the ranks.
STANDBY_MIB = 750

# So much of the free memory may be taken.
_SHARE = 0.25

_IMPORTS = ("mindspore", "mindformers")


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    process: ProcessId
    popen: subprocess.Popen[bytes]


class Standby:
    """The standby processes of one job, over all its attempts; none where ``enabled`` is false.

    ``needed``: another attempt may follow. ``taken``: ranks of this attempt were standby processes.
    """

    def __init__(self, launch: Launch, *, enabled: bool = True) -> None:
        self._launch = launch
        # Under mpirun on Ascend MindSpore asks Open MPI for the rank, which only a child of mpirun may.
        by_mpi = launch.engine == "mpirun" and launch.target == "Ascend"
        self._enabled = enabled and launch.limits.standby and not launch.nodes and not by_mpi
        self._name = f"launcher-{secrets.token_hex(8)}"
        self._waiting: dict[int, _Waiting] = {}
        self.needed = True
        self.taken = False

    @property
    def processes(self) -> list[ProcessId]:
        return [waiting.process for waiting in self._waiting.values()]

    def start(self, paths: JobPaths) -> None:
        """Start a standby for each rank that has none, if memory allows. Does nothing where there are to be none."""
        if not (self._enabled and self.needed) or not _memory_allows(len(self._launch.ranks)):
            return
        launch = replace(self._launch, engine="direct")
        for program in launch.programs(paths):
            if program.rank_id is not None and not self._is_waiting(program.rank_id):
                self._waiting[program.rank_id] = self._start(program.rank_id, program, paths)

    def _is_waiting(self, rank_id: int) -> bool:
        found = self._waiting.get(rank_id)
        return found is not None and found.process.is_alive()

    def _start(self, rank_id: int, program: Program, paths: JobPaths) -> _Waiting:
        imports = _IMPORTS if self._launch.worker == WORKER else ()
        with socket.socket(socket.AF_UNIX) as listening, paths.log("standby").open("ab") as log:
            listening.bind(address(self._name, rank_id))
            listening.listen()
            popen = subprocess.Popen(
                (sys.executable, "-m", "launcher.worker.standby", str(listening.fileno()), *imports),
                env=inherited_environment(program.command),
                cwd=paths.work,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(listening.fileno(),),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        return _Waiting(process=ProcessId.of_pid(popen.pid), popen=popen)

    def take(self, program: Program, paths: JobPaths) -> subprocess.Popen[bytes] | None:
        """Make the standby for a rank's ``program`` that program; None where it must be started."""
        if program.rank_id is None or not self._is_waiting(program.rank_id):
            return None
        waiting = self._waiting.pop(program.rank_id)
        env = inherited_environment(program.command)
        part = Part(argv=program.command.argv[1:], env=env, cwd=str(paths.work))
        connection = give_part(self._name, program.rank_id, part)
        if connection is None:
            _end([waiting])
            return None
        connection.close()
        self.taken = True
        return waiting.popen

    def environment(self, program: Program) -> Mapping[str, str]:
        """Return the variable by which ranks that the engine ``program`` starts find the processes that wait for them.

        From then on they are the attempt's, which ends them like every other process below it.
        """
        if not self._waiting or not ENGINES[self._launch.engine].nests_ranks or program.name != self._launch.engine:
            return {}
        self._waiting.clear()
        self.taken = True
        return {VARIABLE: self._name}

    def end(self) -> None:
        """End those that still wait, and start none any more."""
        self._enabled = False
        _end(self._waiting.values())
        self._waiting.clear()


def inherited_environment(command: Command) -> dict[str, str]:
    """Return the environment of a program of the job: our own, without what another launcher left in it."""
    return {**{key: value for key, value in os.environ.items() if key not in FOREIGN}, **command.env}


def _memory_allows(count: int) -> bool:
    return count * STANDBY_MIB << 20 < _SHARE * psutil.virtual_memory().available


def _end(waiting: Iterable[_Waiting]) -> None:
    found = list(waiting)
    stop([one.process for one in found], grace_s=0.0)
    for one in found:
        with contextlib.suppress(OSError):
            one.popen.wait()
