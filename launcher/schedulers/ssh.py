"""Machines without a batch system: the hosts of an inventory, each reached by the system's own ssh.

One connection per host (``connection``) serves the check before the job and the agent. The agent reads its stdin: when
this end of the connection is gone, it ends everything.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.cluster.discover.programs import ProgramResult, run_program
from launcher.engines.base import Command
from launcher.errors import HostError, SpecError
from launcher.jobs import JobPaths
from launcher.plan.launch import Launch, NodePlace
from launcher.plan.placement import Placement
from launcher.schedulers.base import AgentStart, Option, Scheduler, agent_argv
from launcher.schedulers.connection import (
    ALIVE_COUNT,
    ALIVE_S,
    close_connection,
    config_options,
    remote,
    ssh_argv,
    ssh_options,
    ssh_settings,
    what_to_do,
)
from launcher.schedulers.registration import CLOCK_S, Registration, inputs_of, problems, read_inputs

if TYPE_CHECKING:
    from launcher.plan.launch_plan import LaunchPlan

_CHECK_TIMEOUT_S = 90.0
_AT_A_TIME = 32


class Ssh(Scheduler):
    name = "ssh"
    leads_here = True
    options = (
        Option(flag="--inventory", short="-i", form=Path, metavar="FILE", help="hosts and cards."),
        Option(flag="--ssh-config", form=Path, metavar="FILE", help="for ssh -F; ~/.ssh/config if left out."),
        Option(
            flag="--spare-hosts",
            form=int,
            metavar="N",
            help="the last N hosts of the inventory wait, with --max-restarts, to replace one that fails twice.",
        ),
    )

    def place(self, values: Mapping[str, Any], *, cards: int | None, grace_s: float) -> Placement:
        from launcher.cluster.imagined import first_cards, hold_back
        from launcher.cluster.inventory import load_inventory

        if values.get("inventory") is None:
            raise SpecError("--scheduler ssh needs an inventory", hint="--inventory rank_tables/2x8.yaml")
        cluster, count = load_inventory(values["inventory"]), values.get("spare_hosts")
        used, spares = hold_back(cluster, count, cards) if count else (first_cards(cluster, cards), ())
        settings = ssh_settings(values.get("ssh_config"))
        return Placement(cluster=used, scheduler=self.name, settings=settings, agents=True, named=True, spares=spares)

    def preflight(self, plan: LaunchPlan, *, port: int | None) -> Sequence[str]:
        """Check all hosts in parallel."""
        reads = [path for path in inputs_of(plan.to_dict()) if Path(path).exists()]  # data may still have to be made
        return clock_notes(check_hosts(plan.launch, plan.paths.job_id, plan.paths.root.parent, reads))

    def agents(self, launch: Launch, paths: JobPaths) -> Sequence[AgentStart]:
        return agent_starts(launch, paths)

    def is_connected(self, launch: Launch, paths: JobPaths, address: str) -> bool:
        """Return True if the job's connection to a host, which other commands share with the agent, is still open.

        ssh ends with the same code for a lost host and for a command that was killed there.
        """
        config = config_options(launch.settings)
        return not run_program(*ssh_options(config, paths.job_id), "-O", "check", "--", address, timeout_s=5).fault

    def unusable(self, launch: Launch, paths: JobPaths, spare: NodePlace) -> str:
        """Check ``spare`` as before the job: reachable, the job's folder and inputs there, cards free."""
        checked = _check(launch, paths.job_id, spare.address, paths.launch, read_inputs(paths))
        if checked.found is None:
            return f"{spare.address}: {checked.fault}"
        both = launch.with_spares_in_use()
        return "; ".join(problems([spare], both.ranks, [checked.found]))

    def close(self, launch: Launch, paths: JobPaths) -> None:
        """Close all of the job's connections, including idle ones."""
        for node in (*launch.nodes, *launch.spares):
            close_connection(launch.settings, paths.job_id, node.address)


SCHEDULER = Ssh()


def agent_starts(launch: Launch, paths: JobPaths) -> list[AgentStart]:
    """Return one ssh process per host, which lives as long as the agent."""
    return [
        AgentStart(
            name=f"node_{node.node_rank}",
            command=Command(
                argv=ssh_argv(
                    launch.settings,
                    paths.job_id,
                    node.address,
                    remote(launch.settings, agent_argv(paths, node.node_rank, watch_stdin=True)),
                ),
                env=dict(os.environ),
            ),
            node_ranks=(node.node_rank,),
            holds_stdin=True,
            limit_s=float(ALIVE_S * ALIVE_COUNT),
            line="ssh",
        )
        for node in launch.nodes
    ]


# ------------------------------------------------------------------------------------------------ before the job


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The result of one host's check. ``took_s``: time of the call; ``ahead_s``: clock minus ours, +- took_s / 2."""

    address: str
    took_s: float = 0.0
    ahead_s: float = 0.0
    found: Registration | None = None
    fault: str = ""


def check_hosts(launch: Launch, job_id: str, folder: Path, reads: Sequence[str]) -> list[Checked]:
    """Check all hosts, spares too: reachable, same versions, same folder and files seen, cards free, clocks.

    ``folder``: the jobs folder. ``reads``: files that the job reads on every host. Raises HostError with all problems,
    each line with its host.
    """
    launch = launch.with_spares_in_use()
    folder.mkdir(parents=True, exist_ok=True)
    # A file of a fresh name: a host that sees it sees the same folder, not one of the same path.
    handle, token = tempfile.mkstemp(prefix=".seen-", dir=folder)
    os.close(handle)
    try:
        # A login takes a second or more, so hosts are asked in parallel.
        with ThreadPoolExecutor(max_workers=_AT_A_TIME) as pool:
            checked = list(
                pool.map(lambda node: _check(launch, job_id, node.address, Path(token), reads), launch.nodes)
            )
    finally:
        Path(token).unlink(missing_ok=True)
    lines = [f"{item.address}: {item.fault}" for item in checked if item.fault]
    found = [item.found for item in checked if item.found]
    if len(found) == len(checked):
        lines += problems(launch.nodes, launch.ranks, found)
    if lines:
        # Otherwise connections of a job that will not run stay open for ControlPersist.
        SCHEDULER.close(launch, JobPaths(root=folder / job_id))
        raise HostError(
            "\n".join([f"the hosts cannot run the job: {len(lines)} problem(s)", *(f"  - {line}" for line in lines)]),
            hint="correct this, or name other hosts in the inventory",
        )
    return checked


def _check(launch: Launch, job_id: str, address: str, token: Path, reads: Sequence[str]) -> Checked:
    named = (part for path in reads for part in ("--reads", path))
    argv = (sys.executable, "-m", "launcher", "node", "--report", launch.target, "--job", str(token), *named)
    command = ssh_argv(launch.settings, job_id, address, remote(launch.settings, argv))
    before, began = time.time(), time.monotonic()
    result = run_program(*command, timeout_s=_CHECK_TIMEOUT_S)
    took_s = time.monotonic() - began
    found = _parse(result)
    if isinstance(found, str):
        return Checked(address=address, took_s=took_s, fault=found + what_to_do(result.stderr, address))
    return Checked(address=address, took_s=took_s, ahead_s=found.time - before - took_s / 2, found=found)


def _parse(result: ProgramResult) -> Registration | str:
    """Return the host's report, or the reason why there is none."""
    try:
        # The last line: a login shell may print its own text before it.
        return Registration.from_dict(json.loads(result.stdout.strip().splitlines()[-1]))
    except (ValueError, TypeError, KeyError, IndexError):
        said = (result.stderr.strip() or result.stdout.strip()).splitlines()
        error = next((line.removeprefix("error: ") for line in said if line.startswith("error: ")), None)
        return error or (said[-1] if said else result.fault or "it said nothing")


def clock_notes(checked: Sequence[Checked]) -> list[str]:
    """Return a line for each clock that differs too much from ours."""
    far = [item for item in checked if abs(item.ahead_s) > CLOCK_S + item.took_s / 2]
    return [
        f"The clock of {item.address} is {abs(item.ahead_s):.0f} s {'ahead of' if item.ahead_s > 0 else 'behind'} "
        f"ours: ssh {item.address} sudo chronyc makestep"
        for item in far
    ]
