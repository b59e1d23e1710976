"""Machines without a batch system: the hosts of an inventory, each reached by the system's own ssh.

ssh asks for nothing (BatchMode) and takes no host key on trust. One connection per host (ControlMaster) serves the
check before the job and the agent. The remote command is one argv, quoted; of our environment it gets only the
variables that training needs. The agent reads its stdin: when this end of the connection is gone, it ends everything.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.cluster.discover.programs import ProgramResult, run_program
from launcher.engines.base import FOREIGN, Command
from launcher.errors import HostError, SpecError
from launcher.jobs import JobPaths
from launcher.plan.launch import Launch
from launcher.plan.placement import Placement
from launcher.schedulers.base import AgentStart, Option, Scheduler, agent_argv, package_env
from launcher.schedulers.registration import CLOCK_S, Registration, problems

if TYPE_CHECKING:
    from launcher.plan.launch_plan import LaunchPlan

_PREFIXES = ("ASCEND", "HCCL", "MS_")
_NAMES = ("LD_LIBRARY_PATH", "PATH")
# These differ from host to host: the agent finds them out.
_NOT_SENT = (*FOREIGN, "HCCL_IF_IP", "ASCEND_RT_VISIBLE_DEVICES")

# A dead link is noticed after ALIVE_S * ALIVE_COUNT: before the time after which a host is lost, by default 10 s.
ALIVE_S, ALIVE_COUNT = 2, 3
CONNECT_S = 10
# An idle connection stays this long between the check and the agent.
PERSIST_S = 60

_CHECK_TIMEOUT_S = 90.0
_AT_A_TIME = 32


def forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of our environment that goes to the other hosts."""
    return {
        name: value
        for name, value in environment.items()
        if (name.startswith(_PREFIXES) or name in _NAMES) and name not in _NOT_SENT
    }


class Ssh(Scheduler):
    name = "ssh"
    leads_here = True
    options = (
        Option(flag="--inventory", short="-i", form=Path, metavar="FILE", help="hosts and cards."),
        Option(flag="--ssh-config", form=Path, metavar="FILE", help="for ssh -F; ~/.ssh/config if left out."),
    )

    def place(self, values: Mapping[str, Any], *, cards: int | None, grace_s: float) -> Placement:
        from launcher.cluster.imagined import first_cards
        from launcher.cluster.inventory import load_inventory

        if values.get("inventory") is None:
            raise SpecError("--scheduler ssh needs an inventory", hint="--inventory rank_tables/2x8.yaml")
        cluster = first_cards(load_inventory(values["inventory"]), cards)
        settings = ssh_settings(values.get("ssh_config"))
        return Placement(cluster=cluster, scheduler=self.name, settings=settings, agents=True, named=True)

    def preflight(self, plan: LaunchPlan, *, port: int | None) -> Sequence[str]:
        """Check all hosts in parallel."""
        return clock_notes(check_hosts(plan.launch, plan.paths.job_id, plan.paths.root.parent))

    def agents(self, launch: Launch, paths: JobPaths) -> Sequence[AgentStart]:
        return agent_starts(launch, paths)

    def is_connected(self, launch: Launch, paths: JobPaths, address: str) -> bool:
        """Return True if the job's connection to a host, which other commands share with the agent, is still open.

        ssh ends with the same code for a lost host and for a command that was killed there.
        """
        config = _config(launch.settings)
        return not run_program(*_ssh(config, paths.job_id), "-O", "check", "--", address, timeout_s=5).fault

    def close(self, launch: Launch, paths: JobPaths) -> None:
        """Close all of the job's connections, including idle ones."""
        for node in launch.nodes:
            close_connection(launch.settings, paths.job_id, node.address)


SCHEDULER = Ssh()


def ssh_settings(ssh_config: Path | None) -> dict[str, Any]:
    """Return the environment for the hosts, and the file for ssh -F. Raises HostError when that file is missing."""
    settings: dict[str, Any] = {"env": forwarded(os.environ)}
    if ssh_config is not None:
        if not ssh_config.is_file():
            raise HostError(f"{ssh_config} does not exist", hint="--ssh-config takes a file as ~/.ssh/config is one")
        settings["ssh_config"] = str(ssh_config.absolute())
    return settings


def _config(settings: Mapping[str, Any]) -> tuple[str, ...]:
    return ("-F", settings["ssh_config"]) if "ssh_config" in settings else ()


def ssh_argv(settings: Mapping[str, Any], job_id: str, address: str, command: Sequence[str]) -> tuple[str, ...]:
    """Return the argv that runs ``command`` on ``address``: one string for the remote shell, every argument quoted."""
    return (*_ssh(_config(settings), job_id), "--", address, shlex.join(command))


def close_connection(settings: Mapping[str, Any], job_id: str, address: str) -> None:
    """Close the connection that commands to ``address`` share, which else stays for PERSIST_S."""
    run_program(*_ssh(_config(settings), job_id), "-O", "exit", "--", address, timeout_s=5)


def _ssh(config: Sequence[str], job_id: str) -> tuple[str, ...]:
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": str(CONNECT_S),
        "ControlMaster": "auto",
        "ControlPersist": str(PERSIST_S),
        # %C is a hash of user, host and port: a socket's path may have 108 bytes at the most (unix(7)).
        "ControlPath": str(control_folder() / f"{job_id.partition('-')[0]}-%C"),
        "ServerAliveInterval": str(ALIVE_S),
        "ServerAliveCountMax": str(ALIVE_COUNT),
        # The user's config may forward an agent, a display or ports; a job that runs for days must not.
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "LogLevel": "ERROR",
    }
    return ("ssh", *config, "-T", *(part for name, value in options.items() for part in ("-o", f"{name}={value}")))


def control_folder() -> Path:
    """Return the folder for ssh's sockets, made if missing and accessible to us alone; socket paths must be short."""
    folder = Path(tempfile.gettempdir()) / f"launcher-ssh-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # The temporary folder is everybody's: another user may have made this name first, to take over our connections.
    status = folder.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise HostError(f"{folder} is not ours alone", hint=f"rm -r {folder}")
    return folder


def remote(settings: Mapping[str, Any], argv: Sequence[str]) -> tuple[str, ...]:
    """Return ``argv`` with its environment, as one command of the remote host."""
    env = {**settings.get("env", {}), **package_env(settings.get("python_path", ()))}
    return ("env", *(f"{name}={value}" for name, value in sorted(env.items())), *argv)


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


def check_hosts(launch: Launch, job_id: str, folder: Path) -> list[Checked]:
    """Check all hosts in parallel: reachable, same versions, same folder seen, cards free, clocks.

    ``folder``: the jobs folder. Raises HostError with all problems, each line with its host.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A file of a fresh name: a host that sees it sees the same folder, not one of the same path.
    handle, token = tempfile.mkstemp(prefix=".seen-", dir=folder)
    os.close(handle)
    try:
        # A login takes a second or more, so hosts are asked in parallel.
        with ThreadPoolExecutor(max_workers=_AT_A_TIME) as pool:
            checked = list(pool.map(lambda node: _check(launch, job_id, node.address, Path(token)), launch.nodes))
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


def _check(launch: Launch, job_id: str, address: str, token: Path) -> Checked:
    argv = (sys.executable, "-m", "launcher", "node", "--report", launch.target, "--job", str(token))
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


# ssh's messages and what to type for each; the first match counts.
_SSH_SAYS = (
    ("HOST IDENTIFICATION HAS CHANGED", "its key is another than before: if you know why, ssh-keygen -R {}"),
    ("Host key verification failed", "ssh-keyscan {} tells its key, for the known_hosts file that ssh uses"),
    ("Permission denied", "ssh-copy-id {} lets your key in"),
)


def what_to_do(said: str, address: str) -> str:
    """Return what to type about ssh's own message, in brackets; "" for any other."""
    return next((f" ({advice.format(address)})" for words, advice in _SSH_SAYS if words in said), "")


def clock_notes(checked: Sequence[Checked]) -> list[str]:
    """Return a line for each clock that differs too much from ours."""
    far = [item for item in checked if abs(item.ahead_s) > CLOCK_S + item.took_s / 2]
    return [
        f"The clock of {item.address} is {abs(item.ahead_s):.0f} s {'ahead of' if item.ahead_s > 0 else 'behind'} "
        f"ours: ssh {item.address} sudo chronyc makestep"
        for item in far
    ]
