"""The agent's line to the leader: it rewrites its own status file at every heartbeat and reads the leader's."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from launcher.common.clock import Clock
from launcher.jobs import JobPaths
from launcher.supervise.judge import LifeSigns
from launcher.supervise.multinode.status_file import StatusFile, read_status

# The leader's commands, in this order; "stop" may come at any time.
WAIT, START, STOP, END = "wait", "start", "stop", "end"

# The states that an agent reports.
HERE, STARTING, RUNNING, SAVING, DONE, ENDED = "here", "starting", "running", "saving", "done", "ended"


def heartbeat_s(lost_s: float) -> float:
    """Return the seconds between two signs of life: at least ten fit into the time after which a host is lost."""
    return min(1.0, lost_s / 10)


@dataclass(frozen=True, kw_only=True)
class LeaderCommand:
    """The contents of the leader's status file: a growing heartbeat, and the command to the agents.

    ``save``: end after step ``stop_at``, which follows a little later.
    """

    heartbeat: int = 0
    time: float = 0.0
    action: str = WAIT
    save: bool = False
    grace_s: float = 0.0
    hurry: bool = False
    stop_at: int | None = None
    stacks: bool = False

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> LeaderCommand:
        known = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in raw.items() if key in known})


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """The report on one rank. ``state``: new, begun, ready, done, failed or gone. ``step``: the last one entered."""

    state: str = "new"
    step: int = 0


@dataclass(kw_only=True)
class AgentReport:
    """The report of an agent: rewritten by its main thread, sent by another.

    ``busy``: a rank evaluates or writes a checkpoint. ``ahead_most_s``: upper bound of this host's clock minus the
    leader's, as seen from here.
    """

    state: str = HERE
    ranks: dict[int, RankReport] = field(default_factory=dict)
    step_s: float | None = None
    busy: bool = False
    stop_signal: int | None = None
    ahead_most_s: float | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        ranks = {str(rank_id): list(asdict(state).values()) for rank_id, state in self.ranks.items()}
        return {**self.__dict__, "ranks": ranks}


class LeaderLink:
    """The thread that sends ``report`` and receives ``command``, so that slow work does not look like a death.

    ``pulse``: a pipe that gets a byte for each heartbeat written, for the process that watches this one.
    """

    def __init__(
        self, paths: JobPaths, node_rank: int, *, lost_s: float, pulse: int | None = None, clock: Clock = time
    ) -> None:
        self.report = AgentReport()
        self.command = LeaderCommand()
        self._status_file = StatusFile(paths.node_status(node_rank))
        self._leader = paths.leader_status
        self._pulse, self._lost_s, self._clock = pulse, lost_s, clock
        self._heartbeat = time.time_ns() // 1_000_000  # grows over restarts of the agent too
        self._leader_signs = LifeSigns(lost_s, clock=clock)
        self._wake, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="launcher-heartbeats", daemon=True)

    def start(self) -> None:
        self._exchange()
        self._thread.start()

    def poke(self) -> None:
        """Send the report at once."""
        self._wake.set()

    def close(self) -> None:
        """Send a last report, and none after it."""
        # In this order: woken first, the thread could look at _over too early, and sleep through one more heartbeat.
        self._over = True
        self._wake.set()
        self._thread.join(timeout=self._lost_s)

    @property
    def leader_lost(self) -> bool:
        return self._leader_signs.lost

    def _run(self) -> None:
        while not self._over:
            self._wake.wait(heartbeat_s(self._lost_s))
            self._wake.clear()
            self._exchange()

    def refresh(self) -> None:
        """Read the leader's status file, after the thread has ended."""
        self._read()

    def _exchange(self) -> None:
        with contextlib.suppress(OSError):
            self._heartbeat += 1
            # The pulse follows the write, so that the watching process notices a shared folder that hangs.
            self._status_file.write({"heartbeat": self._heartbeat, "time": self._clock.time(), **self.report.to_dict()})
            if self._pulse is not None:
                os.write(self._pulse, b".")
        self._read()

    def _read(self) -> None:
        raw = read_status(self._leader)
        if raw and self._leader_signs.note(raw.get("heartbeat")):
            self.command = LeaderCommand.from_dict(raw)
            # A delay on the way makes this larger, never smaller: the smallest is the truest.
            ahead = self._clock.time() - self.command.time
            known = self.report.ahead_most_s
            self.report.ahead_most_s = ahead if known is None else min(ahead, known)
