"""Making, merging, converting and showing tables, and comparing them with a host."""

from __future__ import annotations

import itertools
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_host import CHECKOUT, FakeHost, corpus, info_a3, info_hbm, mapping_a3, run_launcher

from launcher.cli.rank_table import rank_table
from launcher.cluster.discover import look_around
from launcher.cluster.inventory import load_inventory, parse_inventory
from launcher.cluster.model import Cluster, Device, Host, NetAddress, NetLevel
from launcher.cluster.rank_table import Report, check_file, check_text, render_rank_table, table_of, version_for
from launcher.cluster.rank_table.against_host import compare_with_host, own_names, reports_of
from launcher.cluster.rank_table.legacy import convert_legacy, legacy_table
from launcher.cluster.rank_table.make import checked_text, write_table
from launcher.cluster.rank_table.merge import merge_files
from launcher.cluster.rank_table.select import select, whole_cluster
from launcher.cluster.rank_table.view import entries
from launcher.cluster.sdid import sdid
from launcher.common.rendering import environment
from launcher.errors import HostError, SpecError

SAMPLES = ("1x8", "2x8", "4x16_a3")


def cluster(hosts: int, per_host: int, *, kind: str | None = "A2", first: int = 0, pod: str | None = None) -> Cluster:
    return Cluster(
        target="Ascend",
        kind=kind,
        hosts=tuple(
            Host(
                name=f"node{host}",
                address=f"10.0.0.{host + 1}",
                super_pod_id=pod,
                devices=tuple(
                    Device(
                        device_id=device,
                        device_ip=f"10.1.{host}.{device + 1}",
                        super_device_id=sdid(host, device) if pod else None,
                    )
                    for device in range(per_host)
                ),
            )
            for host in range(first, first + hosts)
        ),
    )


def document(made: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(render_rank_table(environment(), made).text)
    return found


# -------------------------------------------------------------------------------------------------- make


def test_the_table_of_one_host_is_what_msrun_wants() -> None:
    assert document(cluster(1, 2)) == {
        "status": "completed",
        "version": "1.0",
        "server_count": "1",
        "server_list": [
            {
                "server_id": "10.0.0.1",
                "pod_ip": "127.0.0.1",
                "device": [
                    {"device_id": "0", "device_ip": "10.1.0.1", "rank_id": "0"},
                    {"device_id": "1", "device_ip": "10.1.0.2", "rank_id": "1"},
                ],
            }
        ],
    }


def test_with_several_hosts_pod_ip_is_the_address() -> None:
    found = document(cluster(11, 1))
    assert [server["pod_ip"] for server in found["server_list"]] == [f"10.0.0.{n}" for n in range(1, 12)]
    assert [server["device"][0]["rank_id"] for server in found["server_list"]] == [str(n) for n in range(11)]


@pytest.mark.parametrize(
    ("kind", "pod", "version"),
    [("910", None, "1.0"), ("A2", None, "1.0"), ("310P", None, "1.0"), ("A3", "p", "1.2"), ("A3", None, "1.0"),
     ("950", None, "2.0"), (None, None, "1.0")],
)  # fmt: skip
def test_the_version_follows_from_the_device(kind: str | None, pod: str | None, version: str) -> None:
    assert version_for(cluster(1, 2, kind=kind, pod=pod)) == version


def test_a_2_0_table() -> None:
    level = NetLevel(
        net_layer=0,
        net_instance_id="rack0",
        net_type="TOPO_FILE_DESC",
        addresses=(NetAddress(kind="IPV4", address="10.0.0.1", ports=("0/0",), plane_id="p"),),
    )
    host = Host(name="n", address="n", devices=(Device(device_id=3, levels=(level,)),))
    found = document(Cluster(target="Ascend", kind="950", hosts=(host,)))
    assert found == {
        "status": "completed",
        "version": "2.0",
        "rank_count": 1,
        "rank_list": [
            {
                "rank_id": 0,
                "local_id": 3,
                "device_id": 3,
                "level_list": [
                    {
                        "net_layer": 0,
                        "net_instance_id": "rack0",
                        "net_type": "TOPO_FILE_DESC",
                        "net_attr": "",
                        "rank_addr_list": [
                            {"addr_type": "IPV4", "addr": "10.0.0.1", "ports": ["0/0"], "plane_id": "p"}
                        ],
                    }
                ],
            }
        ],
    }
    assert check_text(json.dumps(found)).verdict == []


@given(
    hosts=st.integers(1, 12),
    per_host=st.integers(1, 16),
    kind=st.sampled_from(["A2", "A3", None]),
    pod=st.sampled_from([None, "pod"]),
)
@settings(max_examples=50, deadline=None)
def test_what_is_made_is_right_and_reads_back(hosts: int, per_host: int, kind: str | None, pod: str | None) -> None:
    made = cluster(hosts, per_host, kind=kind, pod=pod)
    found = document(made)
    assert check_text(json.dumps(found)).for_kind(kind).verdict == []
    read = [(entry.rank_id, entry.server, entry.device_id, entry.address) for entry in entries(found)]
    assert read == [
        (rank.rank_id, rank.host.address, rank.device.device_id, rank.device.device_ip) for rank in made.ranks()
    ]


@pytest.mark.parametrize(
    ("made", "version", "said"),
    [
        (cluster(1, 1, kind="A2"), "1.2", "version 1.2 is not for A2"),
        (cluster(1, 1, kind="950"), "1.0", "version 1.0 is not for 950"),
        (cluster(1, 1, kind="950"), None, "no network levels"),
        (cluster(1, 1, kind="A3"), "1.2", "no super_device_id"),
    ],
)
def test_tables_that_cannot_be_made(made: Cluster, version: str | None, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        table_of(made, version=version)


def test_a_server_without_super_pod() -> None:
    made = cluster(1, 1, kind="A3", pod="p")
    loose = replace(made, hosts=(replace(made.hosts[0], super_pod_id=None),))
    with pytest.raises(SpecError, match="no super pod"):
        table_of(loose, version="1.2")


def test_what_hccl_refuses_is_never_written(tmp_path: Path) -> None:
    text = "kind: A2\nhosts:\n- {address: 'n[0-1]', devices: 0-1}"
    with pytest.raises(SpecError, match="nothing is written") as caught:
        checked_text(table_of(parse_inventory(text, name="i")), "t.json", kind="A2")
    (problem,) = caught.value.problems
    assert problem.startswith("E_NO_IP $.server_list[0].device[0].device_ip, 4 places in all: ")
    text = "kind: 910\nhosts:\n- {address: n, devices: '2-5', device_ips: '10.0.0.[1-4]'}"
    with pytest.raises(SpecError, match="E_910_GROUP"):
        checked_text(table_of(parse_inventory(text, name="i")), "t.json", kind="910")


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    target = tmp_path / "a" / "t.json"
    assert write_table(target, "{}")
    assert not write_table(target, "{}")
    with pytest.raises(SpecError, match="says something else"):
        write_table(target, "[]")
    assert target.read_text() == "{}"
    assert write_table(target, "[]", force=True)
    with pytest.raises(SpecError, match=r"ends in \.json"):
        write_table(tmp_path / "t.txt", "{}")
    with pytest.raises(SpecError, match="cannot be written"):
        write_table(target / "below.json", "{}")


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_are_what_the_tool_makes(name: str, tmp_path: Path) -> None:
    folder = CHECKOUT / "rank_tables"
    made = tmp_path / "t.json"
    done = run_launcher("rank-table", "make", "-i", str(folder / f"{name}.yaml"), "-o", str(made), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert made.read_text() == (folder / f"{name}.json").read_text()
    kind = load_inventory(folder / f"{name}.yaml").kind
    report = check_file(folder / f"{name}.json").for_kind(kind)
    assert report.counts == {}, report.problems


# ------------------------------------------------------------------------------------------- parts of it


def test_hosts_devices_and_order() -> None:
    made = cluster(12, 8)
    part = select(made, hosts="node[9-11],node2", devices="4-5")
    assert [host.name for host in part.hosts] == ["node9", "node10", "node11", "node2"]
    assert [device.device_id for device in part.hosts[0].devices] == [4, 5]
    assert [host.name for host in select(part, order="name").hosts] == ["node2", "node9", "node10", "node11"]
    assert [host.name for host in select(part, order="address").hosts] == ["node2", "node9", "node10", "node11"]
    assert [host.name for host in select(made, hosts="0-1,11").hosts] == ["node0", "node1", "node11"]
    assert [host.name for host in select(made, hosts="node1*").hosts] == ["node1", "node10", "node11"]
    assert [host.name for host in select(made, hosts="10.0.0.3").hosts] == ["node2"]
    assert [device.device_id for device in select(made, devices="3,1").hosts[0].devices] == [3, 1]


@pytest.mark.parametrize(
    ("hosts", "devices", "said"),
    [
        ("node99", None, "no host 'node99'"),
        ("0-12", None, "positions end at 11"),
        ("node[1-", None, "brackets"),
        (None, "4-9", "no device 8-9"),
        (None, "1,1", "named twice"),
        (None, "a", "is no number"),
    ],
)
def test_parts_that_are_not_there(hosts: str | None, devices: str | None, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        select(cluster(12, 8), hosts=hosts, devices=devices)


def test_a_host_whose_name_is_a_number_is_found_by_its_name() -> None:
    named = tuple(replace(host, name=name) for host, name in zip(cluster(3, 1).hosts, ("7", "2", "a"), strict=True))
    made = replace(cluster(3, 1), hosts=named)
    assert [host.name for host in select(made, hosts="2").hosts] == ["2"]
    assert [host.name for host in select(made, hosts="0-1").hosts] == ["7", "2"]
    with pytest.raises(SpecError, match="no host '0'"):  # 2 is a name here, so 0 is no position
        select(made, hosts="0,2")


def test_this_host_is_the_whole_cluster_without_an_inventory(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.devices([0, 1]).npu_smi(info=info_hbm(2))
    found = whole_cluster(None, "10.0.0.9")
    assert [(one.address, [device.device_id for device in one.devices]) for one in found.hosts] == [
        ("10.0.0.9", [0, 1])
    ]
    with pytest.raises(SpecError, match="--address is for this host"):
        whole_cluster(host.root / "hosts.yaml", "10.0.0.9")
    monkeypatch.setattr("launcher.cluster.rank_table.select.own_address", lambda: None)
    with pytest.raises(HostError, match=r"no address but 127\.0\.0\.1"):
        whole_cluster(None, None)


# ------------------------------------------------------------------------------------- merge and convert


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_merging_the_tables_of_single_hosts_gives_the_table_of_all(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"{n}.json", document(cluster(1, 2, first=n))) for n in range(12)]
    for order in (parts, parts[::-1]):
        assert json.loads(checked_text(merge_files(order), "t.json")[0]) == document(cluster(12, 2))
    given_order = merge_files(parts[::-1], order="given")
    assert [server.fields["server_id"] for server in given_order.servers][:2] == ["10.0.0.12", "10.0.0.11"]


def test_merging_keeps_1_2_its_pods_and_every_key(tmp_path: Path) -> None:
    first, second = (document(cluster(1, 2, kind="A3", first=n, pod=f"pod{n}")) for n in (0, 1))
    first["server_list"][0]["hardware_type"] = "800I-A3-64G"
    first["server_list"][0]["device"][0]["device_port"] = "16667"
    merged = merge_files([write(tmp_path / "b.json", second), write(tmp_path / "a.json", first)])
    text, report = checked_text(merged, "t.json", kind="A3")
    found = json.loads(text)
    assert (found["version"], report.verdict) == ("1.2", [])
    assert [pod["super_pod_id"] for pod in found["super_pod_list"]] == ["pod0", "pod1"]
    assert found["server_list"][0]["hardware_type"] == "800I-A3-64G"
    assert found["server_list"][0]["device"][0]["device_port"] == "16667"
    assert [device["rank_id"] for server in found["server_list"] for device in server["device"]] == list("0123")


def test_merging_keeps_the_order_of_old_ranks(tmp_path: Path) -> None:
    path = corpus("rank_tables", "v1.0", "msrun_4p_reordered.json")
    (server,) = merge_files([path]).servers
    assert [(device["device_id"], device["rank_id"]) for device in server.devices] == [
        ("2", "0"), ("3", "1"), ("1", "2"), ("0", "3"),
    ]  # fmt: skip


def test_merging_2_0_tables(tmp_path: Path) -> None:
    one = corpus("rank_tables", "v2.0", "hcomm_example_2p.json")
    two = corpus("rank_tables", "v2.0", "hccl_manual_a5_2.json")
    merged = merge_files([one, two])
    assert (merged.version, [rank["rank_id"] for rank in merged.ranks]) == ("2.0", [0, 1, 2, 3])
    assert check_text(checked_text(merged, "t.json")[0]).verdict == []


def test_keys_that_no_version_knows_are_merged_too(tmp_path: Path) -> None:
    def part(host: int, **top: Any) -> Path:
        return write(tmp_path / f"{host}.json", {**document(cluster(1, 2, first=host)), **top})

    one, two = part(0, made_by="us", site={"row": 4}), part(1, site={"row": 4}, cluster="east")
    merged = json.loads(checked_text(merge_files([one, two]), "t.json")[0])
    assert {key: merged[key] for key in ("made_by", "site", "cluster")} == {
        "made_by": "us", "site": {"row": 4}, "cluster": "east",
    }  # fmt: skip
    with pytest.raises(SpecError, match="site is"):
        merge_files([one, part(2, site={"row": 5})])


def test_keys_of_a_super_pod_are_merged_too(tmp_path: Path) -> None:
    table = document(cluster(1, 2, kind="A3", pod="pod0"))
    table["super_pod_list"][0]["rack"] = "r7"
    merged = json.loads(checked_text(merge_files([write(tmp_path / "one.json", table)]), "t.json", kind="A3")[0])

    assert merged["super_pod_list"][0]["rack"] == "r7"


def test_a_host_s_name_is_no_pod_ip() -> None:
    """msrun's workers register by address; a name in the table would never be found, and the table be ignored."""
    made = cluster(2, 2)
    named = replace(made, hosts=(replace(made.hosts[0], address="node-a"), made.hosts[1]))

    assert [server.get("pod_ip") for server in document(named)["server_list"]] == [None, made.hosts[1].address]


def test_what_does_not_merge(tmp_path: Path) -> None:
    one = write(tmp_path / "1.json", document(cluster(1, 2)))
    copy = write(tmp_path / "copy.json", document(cluster(1, 2)))
    three = write(tmp_path / "3.json", document(cluster(1, 2, kind="A3", first=3, pod="p")))
    bad = write(tmp_path / "bad.json", {"version": "1.0"})
    with pytest.raises(SpecError, match=r"server_id 10.0.0.1 is in .*1.json and in .*copy.json"):
        merge_files([one, copy])
    with pytest.raises(SpecError, match="named twice"):
        merge_files([one, one])
    with pytest.raises(SpecError, match="different versions"):
        merge_files([one, three])
    with pytest.raises(SpecError, match="has errors"):
        merge_files([one, bad])
    renamed = document(cluster(1, 2))
    renamed["server_list"][0]["server_id"] = "other"
    with pytest.raises(SpecError, match=r"device_ip 10\.1\.0\.1 is in"):
        merge_files([one, write(tmp_path / "renamed.json", renamed)])


def test_merging_one_table_renumbers_it(tmp_path: Path) -> None:
    broken = document(cluster(2, 2))
    broken["server_list"][1]["device"][1]["rank_id"] = "9"
    path = write(tmp_path / "gap.json", broken)
    assert check_file(path).verdict == ["E_RANKS"]
    assert json.loads(checked_text(merge_files([path]), "t.json")[0]) == document(cluster(2, 2))


@pytest.mark.parametrize("name", ["tfzoo_lab_2p", "tfzoo_lab_4p", "tfzoo_maskrcnn_1p", "tfzoo_cloud_template2_8p"])
def test_legacy_tables_convert(name: str, tmp_path: Path) -> None:
    path = corpus("rank_tables", "legacy", f"{name}.json")
    old = json.loads(path.read_text())
    done = run_launcher("rank-table", "convert", str(path), "-o", "new.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert check_file(tmp_path / "new.json").verdict == []
    devices = [d for g in old["group_list"] for i in g["instance_list"] for d in i["devices"]]
    new = json.loads((tmp_path / "new.json").read_text())
    assert [d["device_ip"] for s in new["server_list"] for d in s["device"]] == [d["device_ip"] for d in devices]


def test_cloud_ranks_go_by_device_id_as_a_number() -> None:
    devices = [{"device_id": str(n), "device_ip": f"10.0.0.{n}"} for n in (10, 9, 2)]
    old = {"group_list": [{"instance_list": [{"server_id": "s", "devices": devices}]}], "status": "completed"}
    (server,) = convert_legacy(old, "t").servers
    assert [(d["device_id"], d["rank_id"]) for d in server.devices] == [("2", "0"), ("9", "1"), ("10", "2")]


def test_legacy_placeholders_are_refused(tmp_path: Path) -> None:
    path = corpus("rank_tables", "legacy", "mindspore_hccl_single_machine.json")
    done = run_launcher("rank-table", "convert", str(path), "-o", "new.json", cwd=tmp_path)
    assert done.returncode == 2
    assert "[device_ip_0]" in done.stderr
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize(
    "groups",
    [7, [7], [{}], [{"instance_list": [7]}], [{"instance_list": [{"server_id": "s"}]}], [{"instance_list": []}],
     [{"instance_list": [{"server_id": 7, "devices": []}]}],
     [{"instance_list": [{"server_id": "s", "devices": [{"device_id": 0}]}]}],
     [{"instance_list": [{"server_id": "s", "rank_id": "x", "devices": [{"device_id": "0"}]},
                         {"server_id": "s", "devices": [{"device_id": "1"}]}]}],
     [{"instance_list": [{"server_id": "s", "rank_id": "0", "devices": [{"device_id": "0"}]},
                         {"server_id": "s", "devices": [{"device_id": "1"}]}]}]],
)  # fmt: skip
def test_legacy_tables_that_make_no_sense(groups: Any) -> None:
    with pytest.raises(SpecError, match="cannot be converted"):
        convert_legacy({"group_list": groups}, "t")


# --------------------------------------------------------------------------------------------------- show


def test_show(tmp_path: Path) -> None:
    made = CHECKOUT / "rank_tables" / "2x8.json"
    text = run_launcher("rank-table", "show", str(made), cwd=tmp_path).stdout
    lines = [line.split() for line in text.splitlines()[3:]]
    assert lines[9] == ["9", "10.0.0.2", "1", "192.168.101.102"]
    text = run_launcher("rank-table", "show", "--by", "server", str(made), cwd=tmp_path).stdout
    assert text.splitlines()[4].split() == ["8-15", "10.0.0.2", "0-7", "192.168.101.101", "..", "192.168.101.108"]
    found = json.loads(run_launcher("rank-table", "show", "--format", "json", str(made), cwd=tmp_path).stdout)
    assert [entry["rank_id"] for entry in found] == list(range(16))


@pytest.mark.parametrize("folder", ["v1.0", "v1.2", "v2.0", "legacy", "masked", "derived", "broken"])
def test_show_shows_or_says_why_not(folder: str) -> None:
    for path in sorted(corpus("rank_tables", folder).iterdir()):
        done = CliRunner().invoke(rank_table, ["show", str(path)])
        assert done.exit_code == 0 or isinstance(done.exception, SpecError), (path, done.exception)
        assert done.exit_code == 0 or folder in ("derived", "broken"), path


# ------------------------------------------------------------------------------------- this host's cards


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    fake = FakeHost(root=tmp_path)
    for name, value in fake.variables().items():
        monkeypatch.setenv(name, value)
    return fake


def test_make_from_discovery(host: FakeHost) -> None:
    host.devices(list(range(8))).npu_smi(info=info_hbm(8))
    done = host.run("rank-table", "make", "--address", "10.0.0.7", "--devices", "4-7", "-o", "four.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((host.root / "four.json").read_text())
    assert found["server_list"][0]["server_id"] == "10.0.0.7"
    assert [device["device_id"] for device in found["server_list"][0]["device"]] == list("4567")
    addresses = [device["device_ip"] for device in found["server_list"][0]["device"]]
    assert addresses == [f"10.20.0.{n}" for n in range(14, 18)]


def test_make_from_discovery_on_a3_takes_sixteen_devices_and_their_sdids(host: FakeHost) -> None:
    name = "info_-t_spod-info_-i_{}_-c_{}"
    spod = {name.format(n // 2, n % 2): f"\tSDID : {sdid(40, n)}\n\tSuper Pod ID : 3\n" for n in range(16)}
    host.devices(list(range(16))).npu_smi(info=info_a3(), mapping=mapping_a3(), **spod)
    done = host.run("rank-table", "make", "--address", "10.0.0.7", "-o", "a3.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((host.root / "a3.json").read_text())
    assert (found["version"], found["super_pod_list"][0]["super_pod_id"]) == ("1.2", "3")
    devices = found["server_list"][0]["device"]
    assert [device["device_id"] for device in devices] == [str(n) for n in range(16)]
    assert devices[12]["super_device_id"] == "169345036"


def test_make_on_a_host_without_cards_says_what_to_do(host: FakeHost) -> None:
    done = host.run("rank-table", "make")
    assert done.returncode == 5
    assert "--inventory" in done.stderr
    done = host.run("rank-table", "make", "-i", "x.yaml", "--address", "10.0.0.1")
    assert done.returncode == 2


def test_against_host(host: FakeHost) -> None:
    host.devices([0, 1, 2]).write("etc/hccn.conf", "address_0=10.1.0.1\naddress_1=10.9.9.9\n")
    report = Report(name="t")
    compare_with_host(document(cluster(2, 4)), report, look_around(ask_hccn_tool=False), own={"10.0.0.1"})
    assert [(problem.code, problem.path) for problem in report.problems] == [
        ("E_HOST_IP", "$.server_list[0].device[1].device_ip"),
        ("E_HOST_DEVICE", "$.server_list[0].device[3].device_id"),
    ]
    assert "10.9.9.9" in report.problems[0].detail
    report = Report(name="t")
    compare_with_host(document(cluster(2, 4)), report, look_around(ask_hccn_tool=False), own={"192.0.2.1"})
    assert report.verdict == ["W_HOST_UNKNOWN"]


def test_against_host_compares_the_server_that_is_this_host(host: FakeHost) -> None:
    host.devices([0]).npu_smi(info=info_hbm(1))
    mine = own_names()
    assert socket.gethostname() in mine
    assert not {name for name in mine if name == "::1" or name.startswith("127.")}
    table = document(cluster(3, 1))
    table["server_list"][1]["container_ip"] = min(mine)
    table["server_list"][1]["device"][0]["device_ip"] = "10.9.9.9"
    (found,) = reports_of([write(host.root / "t.json", table)], against_host=True)
    assert [(one.code, one.path) for one in found.problems if "HOST" in one.code] == [
        ("E_HOST_IP", "$.server_list[1].device[0].device_ip")
    ]
    (unchanged,) = reports_of([host.root / "t.json"])
    assert not any("HOST" in code for code in unchanged.counts)


def test_each_finding_has_its_rule_and_what_to_do_for_programs(tmp_path: Path) -> None:
    table = document(cluster(1, 2))
    table["server_list"][0]["device"][1]["device_id"] = "0"
    found = check_file(write(tmp_path / "t.json", table)).to_dict()
    assert (found["servers"], found["ranks"], found["verdict"]) == (1, 2, ["E_DUP_DEVICE"])
    assert found["counts"] == {"E_DUP_DEVICE": 1}
    (error,) = found["errors"]
    assert (error["path"], error["value"]) == ("$.server_list[0].device[1].device_id", "0")
    assert error["rule"]
    assert error["fix"]


def test_against_host_command(host: FakeHost) -> None:
    host.devices([0, 1]).npu_smi(info=info_hbm(2))
    good = Cluster(
        target="Ascend",
        hosts=(
            Host(
                name="n",
                address="10.0.0.1",
                devices=tuple(Device(device_id=n, device_ip=f"10.20.0.{10 + n}") for n in range(2)),
            ),
        ),
    )
    write(host.root / "good.json", document(good))
    done = host.run("rank-table", "check", "--against-host", "good.json")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    write(host.root / "bad.json", document(cluster(1, 3)))
    done = host.run("rank-table", "check", "--against-host", "--format", "json", "bad.json")
    assert json.loads(done.stdout)["files"][0]["verdict"] == ["E_HOST_DEVICE", "E_HOST_IP"]
    done = host.run("rank-table", "check", "--against-host", "bad.json", env={"FAKE_HCCN_MODE": "denied"})
    assert "W_HOST_HCCN" in done.stdout


@pytest.mark.parametrize("content", ["[]", "7", '{"server_list": [7, {"device": [8, {"device_id": 3}]}]}', "{"])
def test_against_host_whatever_the_file_says(host: FakeHost, content: str) -> None:
    host.devices([0])
    (host.root / "t.json").write_text(content)
    done = host.run("rank-table", "check", "--against-host", "t.json")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_commands_refuse_what_makes_no_sense(tmp_path: Path) -> None:
    write(tmp_path / "t.json", document(cluster(1, 1)))
    for arguments, said in (
        (["merge", "t.json"], "pass -o merged.json"),
        (["convert", "t.json", "-o", "n.json"], "is not of the old form"),
        (["convert", "none.json", "-o", "n.json"], "cannot read none.json: No such file or directory"),
        (["show", "none.json"], "cannot read none.json: No such file or directory"),
        (["make", "-i", "none.yaml"], "cannot read the inventory"),
    ):
        done = run_launcher("rank-table", *arguments, cwd=tmp_path)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert said in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json"]


def test_a_table_that_is_not_of_the_old_form_is_not_converted(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is not of the old form: no group_list"):
        legacy_table(write(tmp_path / "t.json", document(cluster(1, 1))))
    with pytest.raises(SpecError, match="No such file"):
        legacy_table(tmp_path / "none.json")


def test_a_table_with_errors_is_not_merged(tmp_path: Path) -> None:
    broken = document(cluster(1, 2))
    broken["server_list"][0]["device"][1]["device_ip"] = "10.1.0.999"
    paths = [write(tmp_path / "a.json", document(cluster(1, 2, first=1))), write(tmp_path / "b.json", broken)]
    with pytest.raises(SpecError, match=r"b\.json has errors") as caught:
        merge_files(paths)
    assert "$.server_list[0].device[1].device_ip" in caught.value.problems[0]


def test_a_file_larger_than_hccl_reads_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "t.json").open("wb") as file:
        file.truncate((1 << 30) + 1)
    report = check_file(tmp_path / "t.json")
    assert report.verdict == ["E_JSON"]
    assert "1 GiB" in report.problems[0].detail


def test_rank_ids_never_follow_string_order() -> None:
    found = document(cluster(1, 16, kind="A3"))
    ids = [int(device["device_id"]) for device in found["server_list"][0]["device"]]
    assert ids == list(range(16))
    assert all(a < b for a, b in itertools.pairwise(ids))


def test_a_sample_inventory_is_found_from_any_folder(tmp_path: Path) -> None:
    done = run_launcher("rank-table", "make", "-i", "rank_tables/2x8.yaml", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    made = (tmp_path / "rank_tables" / "2x8.json").read_text()
    assert made == (CHECKOUT / "rank_tables" / "2x8.json").read_text()
