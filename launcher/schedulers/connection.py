"""A connection to a host by the system's own ssh: one per host and job, which commands to it share.

ssh asks for nothing (BatchMode) and takes no host key on trust. The remote command is one argv, quoted; of our
environment it gets only the variables that training needs.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.cluster.discover.programs import run_program
from launcher.engines.base import FOREIGN
from launcher.errors import HostError
from launcher.schedulers.base import package_env

_PREFIXES = ("ASCEND", "HCCL", "MS_")
_NAMES = ("LD_LIBRARY_PATH", "PATH")
# These differ from host to host: the agent finds them out.
_NOT_SENT = (*FOREIGN, "HCCL_IF_IP", "ASCEND_RT_VISIBLE_DEVICES")

# A dead link is noticed after ALIVE_S * ALIVE_COUNT: before the time after which a host is lost, by default 10 s.
ALIVE_S, ALIVE_COUNT = 2, 3
CONNECT_S = 10
# An idle connection stays this long between the check and the agent.
PERSIST_S = 60


def forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of our environment that goes to the other hosts."""
    return {
        name: value
        for name, value in environment.items()
        if (name.startswith(_PREFIXES) or name in _NAMES) and name not in _NOT_SENT
    }


def ssh_settings(ssh_config: Path | None) -> dict[str, Any]:
    """Return the environment for the hosts, and the file for ssh -F. Raises HostError when that file is missing."""
    settings: dict[str, Any] = {"env": forwarded(os.environ)}
    if ssh_config is not None:
        if not ssh_config.is_file():
            raise HostError(f"{ssh_config} does not exist", hint="--ssh-config takes a file as ~/.ssh/config is one")
        settings["ssh_config"] = str(ssh_config.absolute())
    return settings


def config_options(settings: Mapping[str, Any]) -> tuple[str, ...]:
    return ("-F", settings["ssh_config"]) if "ssh_config" in settings else ()


def ssh_argv(settings: Mapping[str, Any], job_id: str, address: str, command: Sequence[str]) -> tuple[str, ...]:
    """Return the argv that runs ``command`` on ``address``: one string for the remote shell, every argument quoted."""
    return (*ssh_options(config_options(settings), job_id), "--", address, shlex.join(command))


def close_connection(settings: Mapping[str, Any], job_id: str, address: str) -> None:
    """Close the connection that commands to ``address`` share, which else stays for PERSIST_S."""
    run_program(*ssh_options(config_options(settings), job_id), "-O", "exit", "--", address, timeout_s=5)


def ssh_options(config: Sequence[str], job_id: str) -> tuple[str, ...]:
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


# ssh's messages and what to type for each; the first match counts.
_SSH_SAYS = (
    ("HOST IDENTIFICATION HAS CHANGED", "its key is another than before: if you know why, ssh-keygen -R {}"),
    ("Host key verification failed", "ssh-keyscan {} tells its key, for the known_hosts file that ssh uses"),
    ("Permission denied", "ssh-copy-id {} lets your key in"),
)


def what_to_do(said: str, address: str) -> str:
    """Return what to type about ssh's own message, in brackets; "" for any other."""
    return next((f" ({advice.format(address)})" for words, advice in _SSH_SAYS if words in said), "")
