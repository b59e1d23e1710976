"""Doctor over two hosts with real sshd, in network namespaces: who reaches whom is tried for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.doctored import by_id
from support.fake_host import CHECKOUT
from support.netlab import lab, run
from support.sshlab import SshLab, ssh_lab, wait_for_ssh

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshLab]:
    with lab(2) as made, ssh_lab(made, tmp_path_factory.mktemp("ssh")) as found:
        wait_for_ssh(found)
        yield found


def doctor(
    servers: SshLab, folder: Path, *arguments: str, config: Path | None = None
) -> subprocess.CompletedProcess[str]:
    inventory = servers.inventory(folder)
    argv = (
        sys.executable,
        "-m",
        "launcher",
        "doctor",
        "-i",
        str(inventory),
        "--ssh-config",
        str(config or servers.config),
    )
    return subprocess.run(
        servers.lab.client.inside(*argv, "--jobs-dir", str(folder), *arguments),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def report(servers: SshLab, folder: Path) -> dict[str, Any]:
    done = doctor(servers, folder, "--format", "json")
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_two_healthy_hosts(servers: SshLab, tmp_path: Path) -> None:
    found = report(servers, tmp_path)
    together = by_id(found["findings"])
    wanted = ("inventory", "hosts", "clocks", "host-names", "same-versions", "tcp")
    assert {ident: together[ident]["status"] for ident in wanted} == dict.fromkeys(wanted, "pass")
    assert "card-ping" not in together
    for host in found["hosts"]:
        assert by_id(host["findings"])["shared-folder"]["status"] == "pass"
        # The namespaces' names resolve to nothing, which is the one thing wrong with them.
        assert {finding["id"] for finding in host["findings"] if finding["status"] == "fail"} <= {"host-name"}
    assert list(tmp_path.glob(".seen-*")) == []


def test_a_host_that_cannot_reach_another(servers: SshLab, tmp_path: Path) -> None:
    first, second = servers.lab.hosts
    run("ip", "-n", second.space, "route", "add", "unreachable", f"{first.address}/32")
    try:
        found = report(servers, tmp_path)
    finally:
        run("ip", "-n", second.space, "route", "del", "unreachable", f"{first.address}/32")
    tcp = by_id(found["findings"])["tcp"]
    assert tcp["status"] == "fail"
    assert "does not reach" in tcp["what"]
    assert [line.split() for line in tcp["table"][1:]] == [["node1", "-", "fail"], ["node2", "fail", "-"]]
    assert "firewall-cmd" in tcp["fix"]


def test_hosts_whose_keys_are_not_known(servers: SshLab, tmp_path: Path) -> None:
    done = doctor(servers, tmp_path, config=servers.unknown)
    assert (done.returncode, done.stderr) == (1, "")
    assert "2 of 2 hosts do not answer: 10.77.0.1: Host key verification failed." in done.stdout
