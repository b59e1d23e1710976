"""Hosts on one machine: network namespaces joined by a bridge, each with a host name and an address of its own.

The bridge is in a namespace too ("client"), so nothing of the machine's own network is touched and labs of tests that
run at the same time do not meet. Files are shared, as they would be by a file server.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

NEEDED = ("ip", "nsenter", "unshare")


def need(*programs: str) -> None:
    """Skip the test where a program is missing or this user may make no namespace."""
    missing = [name for name in (*NEEDED, *programs) if shutil.which(name, path=search_path()) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")


def search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def run(*argv: str, check: bool = True) -> str:
    result = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert not check or result.returncode == 0, f"{argv}: {result.stderr}"
    return result.stdout


@dataclass(frozen=True, kw_only=True)
class NetHost:
    """``name`` is the host name, ``space`` the namespace. ``mounted``: a folder, and where else this host has it."""

    name: str
    space: str
    address: str
    v6: str
    mounted: tuple[str, str] | None = None

    def inside(self, *argv: str) -> tuple[str, ...]:
        """``argv`` as it runs on this host. /sys stays: slurmd wants its cgroups."""
        own, script = ["--uts"], 'hostname "$0" && exec "$@"'
        if self.mounted:
            own, script = [*own, "--mount"], f"mount --bind {shlex.join(self.mounted)} && {script}"
        enter = ("nsenter", f"--net=/run/netns/{self.space}", "unshare", *own, "sh", "-c", script, self.name)
        return (*enter, *argv)


@dataclass(kw_only=True)
class Lab:
    """``client`` is a host without a role in jobs; ``hosts`` are the others."""

    client: NetHost
    hosts: Sequence[NetHost]
    cut_hosts: set[str] = field(default_factory=set)

    def cut(self, host: NetHost) -> None:
        """Take the host's cable away."""
        run("ip", "-n", host.space, "link", "set", "eth0", "down")
        self.cut_hosts.add(host.name)

    def mend(self) -> None:
        for host in self.hosts:
            if host.name in self.cut_hosts:
                run("ip", "-n", host.space, "link", "set", "eth0", "up")
                run("ip", "-n", host.space, "-6", "addr", "replace", f"{host.v6}/64", "dev", "eth0", "nodad")
        self.cut_hosts.clear()


@contextmanager
def lab(count: int = 2) -> Iterator[Lab]:
    """``count`` hosts and a client; all gone afterwards, whatever happens."""
    need()
    token = os.urandom(3).hex()
    names = ["client", *(f"node{number + 1}" for number in range(count))]
    hosts = [
        NetHost(
            name=name, space=f"lt{token}{number}", address=f"10.77.0.{number or 254}", v6=f"fd77::{number or 254:x}"
        )
        for number, name in enumerate(names)
    ]
    try:
        for host in hosts:
            run("ip", "netns", "add", host.space)
            run("ip", "-n", host.space, "link", "set", "lo", "up")
        client = hosts[0]
        run("ip", "-n", client.space, "link", "add", "br0", "type", "bridge")
        _address(client, "br0")
        for number, host in enumerate(hosts[1:]):
            peer = f"p{number}"
            run(
                "ip",
                "link",
                "add",
                peer,
                "netns",
                client.space,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                host.space,
            )
            run("ip", "-n", client.space, "link", "set", peer, "master", "br0")
            run("ip", "-n", client.space, "link", "set", peer, "up")
            _address(host, "eth0")
        yield Lab(client=client, hosts=hosts[1:])
    finally:
        for host in hosts:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                run("ip", "netns", "del", host.space, check=False)


def _address(host: NetHost, device: str) -> None:
    run("ip", "-n", host.space, "addr", "add", f"{host.address}/24", "dev", device)
    run("ip", "-n", host.space, "-6", "addr", "add", f"{host.v6}/64", "dev", device, "nodad")
    run("ip", "-n", host.space, "link", "set", device, "up")
