"""Jobs on several hosts for tests: the real leader and real agents in namespaces, ranks that are small programs."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher import jobs
from launcher.jobs import JobPaths
from launcher.plan.launch import Launch, NodePlace, RankPlace
from support.netlab import NetHost
from support.supervised import LIMITS, Supervised, marked, measured

HOST_LIMITS = replace(LIMITS, lost_s=3.0, register_s=30.0)


@dataclass(kw_only=True)
class Hosted(Supervised):
    """A job on ``hosts``, ``per_host`` ranks each. ``entered``: the host that its leader is on, if not this one."""

    hosts: Sequence[NetHost]
    per_host: int = 1
    scheduler: str = "given"
    settings: dict[str, Any] = field(default_factory=dict)
    starts_agents: bool = True
    addresses: Sequence[str] | None = None
    agent_env: dict[int, dict[str, str]] = field(default_factory=dict)
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)
    entered: NetHost | None = None
    spares: Sequence[NetHost] = ()
    target: str = "CPU"

    def __post_init__(self) -> None:
        self.ranks = self.per_host * len(self.hosts)
        if self.limits is LIMITS:
            self.limits = HOST_LIMITS

    def launch(self) -> Launch:
        ranks = tuple(
            RankPlace(rank_id=n, local_rank=n % self.per_host, host=self.hosts[n // self.per_host].name,
                      device_id=n % self.per_host, node_rank=n // self.per_host)
            for n in range(self.ranks)
        )  # fmt: skip
        addresses = self.addresses or [host.address for host in self.hosts]
        nodes = tuple(NodePlace(node_rank=n, name=host.name, address=addresses[n]) for n, host in enumerate(self.hosts))
        return replace(
            super().launch(),
            ranks=ranks,
            nodes=nodes,
            spares=tuple(
                NodePlace(node_rank=n, name=host.name, address=host.address)
                for n, host in enumerate(self.spares, len(nodes))
            ),
            scheduler=self.scheduler,
            settings=self.settings,
            port=0,
            target=self.target,
        )

    def prepare(self, host: str | None = None) -> JobPaths:
        paths = super().prepare(host)
        jobs.write_record(paths, replace(self.record(), scheduler=self.scheduler))
        return paths

    def start(self) -> Hosted:
        with self._inside():
            super().start()
        if self.scheduler == "given" and self.starts_agents:
            self.start_agents()
        return self

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """In the network of ``entered``, which processes that are started meanwhile inherit."""
        if self.entered is None:
            yield
            return
        own = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            _enter(f"/run/netns/{self.entered.space}")
            yield
        finally:
            _enter(f"/proc/self/fd/{own}")
            os.close(own)

    def start_agents(self, node_ranks: Sequence[int] | None = None) -> None:
        for node_rank in range(len(self.hosts)) if node_ranks is None else node_ranks:
            self.agents.append(self.agent(node_rank))

    def agent(self, node_rank: int, job: Path | None = None) -> subprocess.Popen[bytes]:
        """``launcher node`` on a host, as a batch system would start it."""
        argv = (
            sys.executable, "-m", "launcher", "node", "--job", str(job or self.root), "--node-rank", str(node_rank),
        )  # fmt: skip
        env = {**os.environ, "LAUNCHER_TEST": self.mark, **measured(), **self.agent_env.get(node_rank, {})}
        log = (self.root / f"agent_{node_rank}.txt").open("ab")
        with log:
            return subprocess.Popen(
                self.hosts[node_rank].inside(*argv), env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def end(self) -> Any:
        record = super().end()
        for agent in self.agents:
            agent.wait(timeout=30)
        return record

    def on_host(self, node_rank: int) -> list[int]:
        """Pids of this job's processes on a host, found by its namespace."""
        space = Path(f"/run/netns/{self.hosts[node_rank].space}").stat().st_ino
        found = []
        for process in marked(self.mark):
            try:
                if Path(f"/proc/{process.pid}/ns/net").stat().st_ino == space:
                    found.append(process.pid)
            except OSError:
                continue
        return found


def _enter(space: str) -> None:
    """setns(2), which Python has from 3.12 on."""
    handle = os.open(space, os.O_RDONLY)
    try:
        assert ctypes.CDLL(None, use_errno=True).setns(handle, 0x40000000) == 0  # CLONE_NEWNET
    finally:
        os.close(handle)
