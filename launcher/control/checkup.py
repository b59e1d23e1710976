"""The doctor over all hosts of an inventory: an agent on each, over ssh, asked in parallel; one report of all."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from launcher.cluster.discover.hccn import Ping
from launcher.cluster.model import Cluster, Host
from launcher.cluster.rank_table.against_host import own_names
from launcher.doctor.between import ALL_PINGS_S, CONNECT_S, Reached
from launcher.doctor.checks import job_checks
from launcher.doctor.facts import HostFacts
from launcher.doctor.findings import Finding, JobNeeds, Status, worst
from launcher.doctor.fleet import Checkup, Probes, compare, completed, pings_finding, planned_pings, tcp_finding
from launcher.doctor.hosts import clocks_finding, reached_finding
from launcher.doctor.serving import ANSWER, needs_to
from launcher.errors import HostError
from launcher.schedulers.base import package_env
from launcher.schedulers.connection import close_connection, remote, ssh_argv, ssh_settings, what_to_do

# A host that is far away or loaded needs seconds for the import; a full server some 20 s for its checks.
_START_S = 60.0
_CHECK_S = 180.0
_MORE_S = 15.0
_AT_A_TIME = 64


@dataclass(frozen=True, kw_only=True)
class FleetReport:
    """The findings on the job and the hosts together, and those of each host."""

    findings: tuple[Finding, ...]
    hosts: tuple[Checkup, ...]

    @property
    def status(self) -> Status:
        statuses = {worst(self.findings), *(host.status for host in self.hosts)}
        return "fail" if "fail" in statuses else "warn" if "warn" in statuses else "pass"

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "findings": [asdict(finding) for finding in self.findings],
            "hosts": [
                {
                    "name": host.name,
                    "address": host.address,
                    "status": host.status,
                    "fault": host.fault,
                    "findings": [asdict(finding) for finding in host.findings],
                }
                for host in self.hosts
            ],
        }


def check_fleet(needs: JobNeeds, cluster: Cluster, *, ssh_config: Path | None = None) -> FleetReport:
    """Check all hosts of ``cluster`` at a time, and what is between them. Raises HostError for a bad ``ssh_config``."""
    settings = ssh_settings(ssh_config)
    with contextlib.ExitStack() as stack:
        agents = [stack.enter_context(_agent(host, settings)) for host in cluster.hosts]
        shared = stack.enter_context(_seen_file(needs.folder))
        with ThreadPoolExecutor(max_workers=_AT_A_TIME) as pool:
            checked = list(pool.map(lambda pair: _checked(pair[0], pair[1], needs, shared), enumerate(agents)))
            probes = _probe(agents, checked, needs, cluster, pool)
    return FleetReport(findings=tuple(_together(needs, cluster, checked, probes)), hosts=tuple(checked))


def _together(needs: JobNeeds, cluster: Cluster, checked: Sequence[Checkup], probes: Probes) -> Iterator[Finding]:
    whole = completed(cluster, checked)
    yield from job_checks(replace(needs, hosts=whole or cluster), cluster.num_devices, with_table=whole is not None)
    yield reached_finding(checked)
    if any(not host.fault for host in checked):
        yield clocks_finding(checked)
    yield from compare(cluster, checked)
    yield from tcp_finding(checked, probes)
    yield from pings_finding(checked, probes)


def _checked(number: int, agent: HostAgent, needs: JobNeeds, shared: Path | None) -> Checkup:
    """Return the checks of one host, and its clock: asked once more when the agent runs, for a quick answer."""
    host = agent.host
    port = needs.scheduler_port if number == 0 else None
    wanted = needs_to(needs, cards=len(host.devices), port=port, shared=shared)
    try:
        agent.ask("time", within_s=_START_S)
        before = time.time()
        now = agent.ask("time", within_s=_MORE_S)["time"]
        after = time.time()
        answer = agent.ask("check", within_s=_CHECK_S, needs=wanted)
    except HostError as error:
        return Checkup(name=host.name, address=host.address, fault=error.message)
    return Checkup(
        name=host.name,
        address=host.address,
        findings=tuple(Finding(**{**raw, "table": tuple(raw["table"])}) for raw in answer["findings"]),
        facts=HostFacts.from_dict(answer["facts"]),
        ahead_s=now - (before + after) / 2,
        error_s=(after - before) / 2,
    )


def _probe(
    agents: Sequence[HostAgent], checked: Sequence[Checkup], needs: JobNeeds, cluster: Cluster, pool: ThreadPoolExecutor
) -> Probes:
    """Have every host that answered listen, then connect to all others, then ping their cards."""
    able = [agent for agent, checkup in zip(agents, checked, strict=True) if not checkup.fault]
    ascend = cluster.target == "Ascend"
    first = agents[0]

    faults: dict[str, str] = {}

    def ask(agent: HostAgent, do: str, within_s: float, **arguments: Any) -> dict[str, Any]:
        try:
            return agent.ask(do, within_s=within_s, **arguments)
        except HostError as error:  # its checks were fine a moment ago
            faults[agent.host.address] = error.message
            return {}

    def listen(agent: HostAgent) -> list[int]:
        port = needs.scheduler_port if agent is first else None
        found: list[int] = ask(agent, "listen", _MORE_S, port=port, ascend=ascend).get("ports", [])
        return found

    ports = {agent.host.address: own for agent, own in zip(able, pool.map(listen, able), strict=True) if own}

    def reach(agent: HostAgent) -> list[Reached]:
        targets = [(to, port) for to, own in ports.items() if to != agent.host.address for port in own]
        within_s = _MORE_S + CONNECT_S * (1 + len(targets) / 16)
        return [Reached(**raw) for raw in ask(agent, "reach", within_s, targets=targets).get("faults", [])]

    unreached = {agent.host.address: found for agent, found in zip(able, pool.map(reach, able), strict=True)}
    plan = planned_pings(checked)

    def ping(agent: HostAgent) -> list[Ping]:
        pairs = plan.get(agent.host.address, [])
        if not pairs:
            return []
        return [Ping(**raw) for raw in ask(agent, "ping", ALL_PINGS_S + _MORE_S, pairs=pairs).get("pings", [])]

    pings = {agent.host.address: found for agent, found in zip(able, pool.map(ping, able), strict=True) if found}
    return Probes(ports=ports, unreached=unreached, pings=pings, faults=faults)


@contextmanager
def _seen_file(folder: Path | None) -> Iterator[Path | None]:
    """Make a file in the jobs folder that other hosts must see, if there is such a folder; it is gone afterwards."""
    if folder is None or not folder.is_dir() or not os.access(folder, os.W_OK):
        yield None
        return
    with tempfile.NamedTemporaryFile(prefix=".seen-", dir=folder.absolute()) as file:
        yield Path(file.name)


# ------------------------------------------------------------------------------------------------ one host's agent


class HostAgent:
    """The agent of one host: a process that answers requests, a line each."""

    def __init__(self, host: Host, process: subprocess.Popen[str], stdin: IO[str], said: IO[str]) -> None:
        self.host = host
        self._stdin = stdin
        self._process = process
        self._said = said
        self._lines: queue.Queue[str | None] = queue.Queue()
        # Why it is not asked any more: an answer that is late would be taken for that to the next question.
        self._given_up = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put(None)

    def ask(self, do: str, *, within_s: float, **arguments: Any) -> dict[str, Any]:
        """Return the answer. Raises HostError when there is none in time, or was none before, or it is an error."""
        if self._given_up:
            raise HostError(self._given_up)
        deadline = time.monotonic() + within_s
        try:
            self._stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._stdin.flush()
            answer = self._answer(deadline)
        except queue.Empty:
            self._given_up = f"no answer within {within_s:g} s"
            raise HostError(self._given_up) from None
        except OSError:
            raise HostError(self._last_words()) from None
        if "fault" in answer:
            raise HostError(answer["fault"])
        return answer

    def _answer(self, deadline: float) -> dict[str, Any]:
        """Return the next answer; a login shell may print its own text before it."""
        while True:
            line = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            if line is None:
                raise OSError
            with contextlib.suppress(ValueError, TypeError, KeyError):
                answer: dict[str, Any] = json.loads(line)[ANSWER]
                return answer

    def _last_words(self) -> str:
        """Return what a dead agent, or the ssh to it, said last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._said.seek(0)
        text = self._said.read(1 << 16).strip()
        last = text.splitlines()[-1] if text else f"its agent ended with status {self._process.poll()}"
        return last[:300] + what_to_do(text, self.host.address)


@contextmanager
def _agent(host: Host, settings: dict[str, Any]) -> Iterator[HostAgent]:
    """Start the agent of ``host``, over ssh unless it is this one; nothing of it is left afterwards."""
    argv: Sequence[str] = (sys.executable, "-m", "launcher", "doctor", "--serve")
    here = bool(own_names() & {host.address, host.name})
    job_id = f"doctor{os.getpid()}-"
    if not here:
        argv = ssh_argv(settings, job_id, host.address, remote(settings, argv))
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
            env={**os.environ, **(package_env() if here else {})},
        )
        try:
            yield HostAgent(host, process, cast("IO[str]", process.stdin), said)
        finally:
            _end(process)
            if not here:
                close_connection(settings, job_id, host.address)


def _end(process: subprocess.Popen[str]) -> None:
    """Close the agent's stdin, at which it ends; kill it if it does not."""
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
