"""An sshd on each host of a lab, with keys of its own: nothing below /etc/ssh or ~/.ssh is read or written."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.netlab import Lab, need, run


@dataclass(frozen=True, kw_only=True)
class SshLab:
    """``config`` is for ssh -F on the client; ``unknown`` the same without the hosts' keys."""

    lab: Lab
    config: Path
    unknown: Path

    def inventory(self, folder: Path, per_host: int = 1) -> Path:
        devices = f"0-{per_host - 1}" if per_host > 1 else "0"
        text = f"kind: CPU\nhosts:\n  - {{name: 'node[1-2]', address: '10.77.0.[1-2]', devices: '{devices}'}}\n"
        path = folder / "hosts.yaml"
        path.write_text(text)
        return path


@contextmanager
def ssh_lab(lab: Lab, folder: Path) -> Iterator[SshLab]:
    """The servers, all gone afterwards."""
    need("sshd", "ssh", "ssh-keygen")
    folder.chmod(0o700)
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd refuses to start without it
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "id"))
    (folder / "authorized_keys").write_text((folder / "id.pub").read_text())
    known, servers = [], []
    try:
        for host in lab.hosts:
            key = folder / f"{host.name}.key"
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
            known.append(f"{host.address} {key.with_suffix('.key.pub').read_text()}")
            settings = _sshd(folder, host.name, host.address)
            servers.append(subprocess.Popen(host.inside("/usr/sbin/sshd", "-D", "-f", str(settings))))
        (folder / "known").write_text("".join(known))
        yield SshLab(lab=lab, config=_client(folder, "known"), unknown=_client(folder, "nobody"))
    finally:
        for server in servers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGTERM)
            server.wait()


def _sshd(folder: Path, name: str, address: str) -> Path:
    path = folder / f"{name}.conf"
    path.write_text(
        f"Port 22\nListenAddress {address}\nHostKey {folder / f'{name}.key'}\nPidFile none\n"
        f"AuthorizedKeysFile {folder / 'authorized_keys'}\nPermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\n"
    )
    return path


def _client(folder: Path, known: str) -> Path:
    path = folder / f"config_{known}"
    path.write_text(
        f"Host *\n  IdentityFile {folder / 'id'}\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder / known}\n"
        "  GlobalKnownHostsFile /dev/null\n"
    )
    return path


def wait_for_ssh(lab: SshLab) -> None:
    deadline = time.monotonic() + 10
    for host in lab.lab.hosts:
        argv = lab.lab.client.inside("ssh", "-F", str(lab.config), "-o", "BatchMode=yes", host.address, "true")
        while subprocess.run(argv, capture_output=True, timeout=20, check=False).returncode:
            assert time.monotonic() < deadline, host.name
            time.sleep(0.05)
