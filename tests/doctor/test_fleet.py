"""Doctor over all hosts: hosts that are not there, each with an agent that is, reached by an ssh that stays here."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
from support.doctored import by_id, ready_host
from support.fake_host import CHECKOUT, FakeHost, info_hbm, run_launcher

from launcher.cli.output.checks import fleet_matrix, grouped
from launcher.cluster.discover.hccn import Ping
from launcher.cluster.model import Cluster, Device, Host
from launcher.doctor.between import Reached, listening, ping_all, reach
from launcher.doctor.facts import HostFacts
from launcher.doctor.findings import failed, passed, warned
from launcher.doctor.fleet import (
    Checkup,
    Probes,
    compare,
    completed,
    networks_finding,
    pings_finding,
    planned_pings,
    tcp_finding,
)
from launcher.doctor.serving import ANSWER, serve

VERSIONS = {"python": "3.11", "mindspore": "2.9.0", "cann": "9.0.0", "driver": "26.0.rc1"}


def facts(number: int, **more: Any) -> HostFacts:
    given = {
        "name": f"node{number}",
        "kind": "A2",
        "versions": VERSIONS,
        "tls": {"0": False, "1": False},
        "addresses": {"0": f"10.1.0.{number}", "1": f"10.2.0.{number}"},
        "networks": {"0": "10.1.0.0/24", "1": "10.2.0.0/24"},
    }
    return HostFacts(**{**given, **more})


def checkup(number: int, **more: Any) -> Checkup:
    return Checkup(name=f"node{number}", address=f"198.51.100.{number}", facts=facts(number, **more))


def cluster(count: int) -> Cluster:
    devices = (Device(device_id=0), Device(device_id=1))
    hosts = tuple(Host(name=f"node{n}", address=f"198.51.100.{n}", devices=devices) for n in range(1, count + 1))
    return Cluster(target="Ascend", kind="A2", hosts=hosts)


def compared(*hosts: Checkup, of: Cluster | None = None) -> dict[str, Any]:
    return {finding.id: finding for finding in compare(of or cluster(len(hosts)), hosts)}


# ------------------------------------------------------------------------------------------------ comparisons


def test_hosts_that_agree() -> None:
    found = compared(checkup(1), checkup(2), checkup(3))
    assert {finding.status for finding in found.values()} == {"pass"}
    assert set(found) == {"host-names", "same-versions", "same-tls", "card-addresses", "networks"}
    assert compared(checkup(1)) == {}


@pytest.mark.parametrize(
    ("ident", "status", "said", "more"),
    [
        ("host-names", "fail", "node1 is the name of several", {"name": "node1"}),
        ("same-versions", "fail", "cann: 8.5.0 on node3; 9.0.0 on node1, node2",
         {"versions": {**VERSIONS, "cann": "8.5.0"}}),
        ("same-versions", "warn", "driver: 25.5.0 on node3", {"versions": {**VERSIONS, "driver": "25.5.0"}}),
        ("same-versions", "fail", "kind of card: A3 on node3", {"kind": "A3"}),
        ("same-tls", "fail", "on on node3 and off on node1, node2", {"tls": {"0": True, "1": True}}),
        ("card-addresses", "fail", "10.1.0.1 is the address of card 0 of node1 and of card 1 of node3",
         {"addresses": {"0": "10.1.0.3", "1": "10.1.0.1"}}),
        ("networks", "warn", "card 1 is in 10.2.0.0/24 on node1 and in 10.9.0.0/24 on node3",
         {"networks": {"0": "10.1.0.0/24", "1": "10.9.0.0/24"}}),
    ],
)  # fmt: skip
def test_a_host_that_differs(ident: str, status: str, said: str, more: dict[str, Any]) -> None:
    found = compared(checkup(1), checkup(2), checkup(3, **more))
    assert (found[ident].status, said in found[ident].what) == (status, True), found[ident]
    assert found[ident].fix
    others = {finding.status for key, finding in found.items() if key != ident}
    assert others == {"pass"}


def test_networks_behind_a_gateway_may_differ() -> None:
    far = checkup(2, networks={"0": "10.7.0.0/24"}, routed=True)
    hosts = [(host, host.facts) for host in (checkup(1), far) if host.facts]
    assert list(networks_finding(hosts)) == []


def test_an_inventory_with_another_address_than_the_card() -> None:
    devices = (Device(device_id=0, device_ip="10.1.0.9"), Device(device_id=1, device_ip="10.2.0.1"))
    listed = cluster(2)
    listed = replace(listed, hosts=(replace(listed.hosts[0], devices=devices), listed.hosts[1]))
    found = compared(checkup(1), checkup(2), of=listed)["card-addresses"]
    assert (found.status, "card 0 of node1 has the address 10.1.0.1, in the inventory 10.1.0.9" in found.what) == (
        "fail",
        True,
    )


def test_addresses_that_the_inventory_leaves_to_the_hosts() -> None:
    whole = completed(cluster(2), [checkup(1), checkup(2)])
    assert whole is not None
    assert [device.device_ip for host in whole.hosts for device in host.devices] == [
        "10.1.0.1", "10.2.0.1", "10.1.0.2", "10.2.0.2",
    ]  # fmt: skip
    assert completed(cluster(2), [checkup(1), Checkup(name="node2", address="198.51.100.2", fault="down")]) is None
    pod = completed(cluster(1), [checkup(1, sdids={"0": 7}, super_pod_id="p")])
    assert pod is not None
    assert (pod.hosts[0].super_pod_id, [device.super_device_id for device in pod.hosts[0].devices]) == ("p", [7, None])
    # With two hosts there is no majority: the newer version is the one to install.
    two = compared(checkup(1), checkup(2, versions={**VERSIONS, "cann": "8.5.0"}))["same-versions"]
    assert two.fix == "install cann 9.0.0 on node2"


def test_pings_are_planned_for_every_port_and_stay_few() -> None:
    two = planned_pings([checkup(1), checkup(2)])
    assert two == {
        "198.51.100.1": [(0, "10.1.0.2"), (1, "10.2.0.2")],
        "198.51.100.2": [(0, "10.1.0.1"), (1, "10.2.0.1")],
    }
    many = planned_pings([checkup(number) for number in range(1, 33)])
    assert {len(pairs) for pairs in many.values()} == {6}
    assert {address for pairs in many.values() for _, address in pairs} == {
        f"10.{net}.0.{number}" for net in (1, 2) for number in range(1, 33)
    }
    assert planned_pings([checkup(1, addresses={}), checkup(2)]) == {"198.51.100.2": []}


def test_the_first_pair_of_cards_that_does_not_answer_is_named_in_a_matrix() -> None:
    hosts = [checkup(1), checkup(2)]
    good = {host.address: [Ping(device_id=0, address=f"10.1.0.{3 - n}", lost=False)] for n, host in enumerate(hosts, 1)}
    assert [finding.status for finding in pings_finding(hosts, Probes(pings=good))] == ["pass"]
    lost = Ping(device_id=1, address="10.2.0.1", lost=True, fault="0 of 3 packets came back")
    bad = {**good, "198.51.100.2": [*good["198.51.100.2"], lost]}
    (finding,) = pings_finding(hosts, Probes(pings=bad))
    assert finding.what == ("card 1 of node2 does not reach 10.2.0.1 of node1: 0 of 3 packets came back (1 of 3 pairs)")
    assert finding.table == ("from | to node1 node2", "node1         -   1/1", "node2       1/2     -")
    unknown = {"198.51.100.1": [Ping(device_id=0, address="10.1.0.2", fault="permission denied")]}
    assert [finding.status for finding in pings_finding(hosts, Probes(pings=unknown))] == ["warn"]
    assert list(pings_finding(hosts, Probes())) == []


def test_ports_that_a_firewall_closes() -> None:
    hosts = [checkup(1), checkup(2)]
    ports = {host.address: [50000, 60000] for host in hosts}
    assert [finding.status for finding in tcp_finding(hosts, Probes(ports=ports))] == ["pass"]
    closed = {"198.51.100.1": [Reached(address="198.51.100.2", port=60000, fault="no answer within 3 s")]}
    (finding,) = tcp_finding(hosts, Probes(ports=ports, unreached=closed))
    assert finding.what == "node1 does not reach node2 on port 60000: no answer within 3 s"
    assert finding.table[1:] == ("node1         -  fail", "node2        ok     -")
    silent = Probes(ports={}, faults={"198.51.100.2": "no answer within 15 s"})
    assert [(finding.id, finding.status) for finding in tcp_finding(hosts, silent)] == [("probes", "warn")]


# ------------------------------------------------------------------------------------------------ the probes


def test_listening_and_reaching() -> None:
    with listening(None, ascend=False) as ports:
        assert len(ports) == 1
        assert reach([("127.0.0.1", ports[0])]) == [Reached(address="127.0.0.1", port=ports[0])]
    (closed,) = reach([("127.0.0.1", ports[0])])
    assert closed.fault == "Connection refused"
    assert reach([]) == []


def test_a_port_in_use_is_not_tested() -> None:
    with socket.create_server(("", 0)) as other, listening(other.getsockname()[1], ascend=False) as ports:
        assert ports == []


def test_pings_without_time_are_counted_as_not_made() -> None:
    (answer,) = ping_all([(0, "10.0.0.1")], limit_s=0)
    assert (answer.lost, answer.fault) == (None, "no time was left for it")


def test_the_agent_answers_a_line_each_and_closes_its_ports() -> None:
    said: list[str] = []
    requests = [
        json.dumps({"do": "time"}),
        json.dumps({"do": "listen", "port": None, "ascend": False}),
        json.dumps({"do": "reach", "targets": []}),
        json.dumps({"do": "ping", "pairs": []}),
    ]
    serve(requests, said.append)
    answers = [json.loads(line)[ANSWER] for line in said]
    assert [sorted(answer) for answer in answers] == [["time"], ["ports"], ["faults"], ["pings"]]
    assert reach([("127.0.0.1", answers[1]["ports"][0])])[0].fault


# ---------------------------------------------------------------------------------------- what people see


def test_the_matrix_shows_differences_first() -> None:
    common = (passed("python", "3.11"), warned("shm", "small", "more"))
    good = Checkup(name="node1", address="a", findings=(*common, passed("tls", "off")))
    bad = Checkup(name="node2", address="b", findings=(*common, failed("tls", "on", "turn it off")))
    lines = [click.unstyle(line) for line in fleet_matrix([good, bad])]
    assert lines == [
        "                node1 node2",
        "tls             pass  fail",
        "shm             warn  warn",
        "pass on all 2 hosts: python",
    ]
    assert [(finding.id, names) for finding, names in grouped([good, bad])] == [
        ("tls", ["node2"]),
        ("shm", ["node1", "node2"]),
    ]
    many = [replace(bad, name=f"a-rather-long-name-{number}") for number in range(20)]
    lines = [click.unstyle(line) for line in fleet_matrix([good, *many])]
    assert lines[1] == "2: a-rather-long-name-0"
    assert max(map(len, lines)) < 130
    assert list(fleet_matrix([])) == []


# ---------------------------------------------------------------------------------------- all of it, two hosts


FAKE_SSH = """#!/usr/bin/env python3
import os, sys
if "-O" in sys.argv:
    sys.exit(0)
address, command = sys.argv[sys.argv.index("--") + 1:]
root = os.path.join({root!r}, address)
if not os.path.isdir(root):
    print(f"ssh: connect to host {{address}} port 22: No route to host", file=sys.stderr)
    sys.exit(255)
print("Welcome to", address, flush=True)  # as login shells do
settings = dict(line.split("=", 1) for line in open(os.path.join(root, "env")).read().split("\\n") if line)
os.execvpe("sh", ["sh", "-c", command], {{**os.environ, **settings}})
"""


def fleet(folder: Path, **env: dict[str, str]) -> dict[str, str]:
    """Two A2 hosts, 198.51.100.1 and .2, one that is down, and the environment of a computer that reaches them."""
    for number in (1, 2):
        host = ready_host(folder / f"198.51.100.{number}").devices([0, 1]).npu_smi(info=info_hbm(2))
        host.write(
            "etc/hccn.conf", "".join(f"address_{n}=10.{n}.0.{number}\nnetmask_{n}=255.255.255.0\n" for n in (0, 1))
        )
        mine = {
            key: host.variables()[key]
            for key in ("LAUNCHER_HOST_ROOT", "FAKE_NPU_SMI", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "PYTHONPATH")
        }
        lines = [f"{key}={value}" for key, value in {**mine, **env.get(f"host{number}", {})}.items()]
        host.write("env", "\n".join(lines) + "\n")
    bin_ = folder / "bin"
    bin_.mkdir()
    (bin_ / "ssh").write_text(FAKE_SSH.format(root=str(folder)))
    (bin_ / "ssh").chmod(0o755)
    (folder / "hosts.yaml").write_text(
        "kind: A2\nhosts:\n- {name: 'node[1-3]', address: '198.51.100.[1-3]', devices: 0-1}\n"
    )
    base = FakeHost(root=folder).variables()
    return {**base, "PATH": f"{bin_}{os.pathsep}{base['PATH']}", "LAUNCHER_HOST_ROOT": str(folder / "nobody")}


def asked(folder: Path, env: dict[str, str], *arguments: str) -> dict[str, Any]:
    done = run_launcher("doctor", "-i", "hosts.yaml", "--format", "json", *arguments, cwd=folder, env=env)
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if report["status"] == "fail" else 0)
    return report


def test_three_hosts_of_which_one_is_wrong_and_one_is_down(tmp_path: Path) -> None:
    # Nobody has these addresses, so TCP reaches neither: tests/doctor/test_fleet_ssh.py has hosts for that.
    env = fleet(tmp_path, host2={"FAKE_HCCN_TLS": " 0 1 ", "FAKE_HCCN_LOST": " 10.1.0.1 "})
    report = asked(tmp_path, env)
    together = by_id(report["findings"])
    one, two, three = report["hosts"]
    assert ([host["name"] for host in (one, two, three)], three["findings"]) == (["node1", "node2", "node3"], [])
    assert three["fault"] == "ssh: connect to host 198.51.100.3 port 22: No route to host"
    assert f"1 of 3 hosts do not answer: 198.51.100.3: {three['fault']}" in together["hosts"]["what"]
    assert by_id(one["findings"])["tls"]["what"] == "off on 2 cards"
    assert (together["same-tls"]["status"], together["card-ping"]["status"]) == ("fail", "fail")
    assert "card 1 of node2 does not reach 10.1.0.1 of node1" in together["card-ping"]["what"]
    assert together["card-ping"]["table"][2].split() == ["node2", "1/2", "-"]
    for ident in ("card-addresses", "networks", "same-versions"):
        assert together[ident]["status"] == "pass", together[ident]
    # Both are this computer, so they have its name.
    assert together["host-names"]["status"] == "fail"


def test_this_host_needs_no_ssh_and_no_agent_is_left(tmp_path: Path) -> None:
    (tmp_path / "hosts.yaml").write_text(
        f"kind: CPU\nhosts:\n- {{name: {socket.gethostname()}, address: 127.0.0.1, devices: 0-1}}\n"
    )
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "LAUNCHER_TEST_MARK": tmp_path.name + os.urandom(4).hex()}
    report = asked(tmp_path, env, "tiny_cpu")
    together = by_id(report["findings"])
    assert (together["hosts"]["status"], together["plan"]["status"]) == ("pass", "pass")
    assert by_id(report["hosts"][0]["findings"])["cards"]["status"] == "pass"
    left = [p for p in psutil.process_iter() if _marked(p, env["LAUNCHER_TEST_MARK"])]
    assert left == []


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("LAUNCHER_TEST_MARK") == mark
    except psutil.Error:
        return False
