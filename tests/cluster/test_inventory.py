"""Inventories: ranges, groups of hosts, and every problem at once."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cluster.inventory import load_inventory, parse_inventory
from launcher.common.ranges import MOST_RANKS, expand, numbers
from launcher.errors import SpecError

TWO = """
kind: A2
hosts:
  - name: node[0-1]
    address: 10.0.0.[1-2]
    devices: 0-3
    device_ips: 192.168.[1-2].[1-4]
"""


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_inventory(text, name="inv.yaml")
    return list(caught.value.problems) or [caught.value.message]


def test_ranges_count_by_value_and_the_last_runs_fastest() -> None:
    assert expand("10.0.[1-2].[9-11]") == ["10.0.1.9", "10.0.1.10", "10.0.1.11", "10.0.2.9", "10.0.2.10", "10.0.2.11"]
    assert expand("node[08-10]") == ["node08", "node09", "node10"]
    assert expand("n[1,3,7-8]x") == ["n1x", "n3x", "n7x", "n8x"]
    assert expand("plain") == ["plain"]
    assert len(expand("10.0.[1-4].[1-16]")) == 64
    assert numbers("0-3,6") == [0, 1, 2, 3, 6]
    assert numbers(7) == [7]


@pytest.mark.parametrize("text", ["a[1-", "a]1[", "a[[1-2]]", "a[]", "a[x-y]", "a[3-1]", "a[-1]", "a[0-99999999]"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"brackets|no number|backwards|more than"):
        expand(text)


def test_a_range_never_gives_more_than_there_can_be() -> None:
    with pytest.raises(ValueError, match="means 1000000 entries"):
        expand("[0-999].[0-999]")
    assert len(expand("[0-255].[0-255]")) == MOST_RANKS
    with pytest.raises(ValueError, match="more than"):
        numbers("0-65535,70000-139999")


@given(st.lists(st.integers(0, 500), min_size=1, max_size=30))
def test_numbers_reads_what_one_writes(values: list[int]) -> None:
    assert numbers(",".join(map(str, values))) == values


@given(st.text(max_size=30))
def test_no_text_upsets_expand(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert len(expand(text)) >= 1


def test_two_hosts() -> None:
    cluster = parse_inventory(TWO, name="inv.yaml")
    assert (cluster.target, cluster.kind, cluster.num_devices) == ("Ascend", "A2", 8)
    assert [(host.name, host.address) for host in cluster.hosts] == [("node0", "10.0.0.1"), ("node1", "10.0.0.2")]
    assert [device.device_ip for device in cluster.hosts[1].devices] == [f"192.168.2.{n}" for n in range(1, 5)]
    assert [(rank.rank_id, rank.node_rank, rank.local_rank) for rank in cluster.ranks()][4:6] == [(4, 1, 0), (5, 1, 1)]


def test_defaults_follow_from_the_kind() -> None:
    cluster = parse_inventory("kind: A3\nhosts: [{address: 10.0.0.1}]", name="i")
    assert [device.device_id for device in cluster.hosts[0].devices] == list(range(16))
    assert parse_inventory("kind: a3\nhosts: [{address: 10.0.0.1}]", name="i") == cluster
    assert parse_inventory("kind: 910\nhosts: [{address: n1, devices: 3}]", name="i").num_devices == 1


def test_super_pods_and_their_ids() -> None:
    text = "kind: A3\nhosts:\n  - {address: 'n[0-1]', devices: 0-1, super_pod: 'p[0-1]', server_index: 24-25}"
    hosts = parse_inventory(text, name="i").hosts
    assert [host.super_pod_id for host in hosts] == ["p0", "p1"]
    assert [device.super_device_id for device in hosts[0].devices] == [100663296, 100728833]
    text = "kind: A3\nhosts:\n  - {address: n0, devices: 0-1, super_pod: 7, super_device_ids: [5, 6]}"
    (host,) = parse_inventory(text, name="i").hosts
    assert (host.super_pod_id, [device.super_device_id for device in host.devices]) == ("7", [5, 6])


def test_levels_of_a_950() -> None:
    text = """
kind: 950
hosts:
  - address: 10.0.0.[1-2]
    devices: 0-1
    levels:
      - {net_layer: 1, net_instance_id: az0, net_type: CLOS, addr: "10.9.[0-1].[1-2]", plane_id: p0}
      - {net_layer: 0, net_instance_id: rack0, net_type: TOPO_FILE_DESC, addr: "10.8.[0-1].[1-2]", ports: ["0/0"]}
      - {net_layer: 0, net_instance_id: rack0, net_type: TOPO_FILE_DESC, addr: "10.7.[0-1].[1-2]", ports: ["0/1"]}
"""
    device = parse_inventory(text, name="i").hosts[1].devices[0]
    assert [level.net_layer for level in device.levels] == [0, 1]
    assert [address.address for address in device.levels[0].addresses] == ["10.8.1.1", "10.7.1.1"]
    assert device.levels[1].addresses[0].plane_id == "p0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["an inventory is a mapping of keys, this is empty"]),
        ("- a", ["an inventory is a mapping of keys, this is a list"]),
        ("kind: A2", ["missing key hosts"]),
        ("kind: A2\nhosts: []", ["inv.yaml:2: hosts: it is empty"]),
        ("kind: A9\nhosts: [{address: n}]", ["inv.yaml:1: kind: input should be"]),
        ("kind: A2\nhosts: [{addres: n}]", ["missing key hosts.0.address", "unknown key hosts.0.addres"]),
        ("kind: A2\nhosts:\n- address: [1-2]", ["put it in quotes"]),
        ("kind: A2\nhosts:\n- {address: n, devices: [4-7]}", ['expected ids such as 0-7 or "0,2"; YAML reads [1-4]']),
        ("kind: A2\nhosts:\n- {address: n, devices: true}", ["expected ids such as 0-7"]),
        ("kind: A2\nhosts:\n- {address: n, device_ips: [1, 2]}", ["expected addresses such as"]),
        ("kind: 950\nhosts:\n- {address: n, levels: [{net_layer: 9, net_type: CLOS, net_instance_id: a, addr: n}]}",
         ["hosts.0.levels.0.net_layer: input should be less"]),
        ("kind: A3\nhosts:\n- {address: n, super_pod: ''}", ["super_pod: it is empty"]),
        ("a: &a [x, x]\nb: *a", ["aliases"]),
        ("kind: A2\nhosts:\n- address: 'n[1-'", ["brackets do not match"]),
        ("kind: A2\nhosts:\n- address: '-oProxyCommand=x'", ["is no host name and no address"]),
        ("kind: A2\nhosts:\n- address: 'a b'", ["is no host name and no address"]),
        ("kind: A2\nhosts:\n- {address: 'n[1-3]', name: 'm[1-2]'}", ["2 names for 3 addresses"]),
        ("kind: A2\nhosts:\n- {address: n, devices: 0-99}", ["ids of A2 end at 15"]),
        ("kind: 910\nhosts:\n- {address: n, devices: 8}", ["ids of 910 end at 7"]),
        ("kind: A2\nhosts:\n- {address: n, devices: '0,0'}", ["names a device twice"]),
        ("kind: A2\nhosts:\n- {address: n, devices: x}", ["is no number"]),
        ("kind: A2\nhosts:\n- {address: n, devices: 0-3, device_ips: '10.0.0.[1-3]'}", ["3 addresses for 1 host(s)"]),
        ("kind: A2\nhosts:\n- {address: n, devices: 0, device_ips: '10.0.0.256'}", ["is no IPv4 or IPv6 address"]),
        ("kind: A3\nhosts:\n- {address: n, devices: 0, server_index: 1024}", ["each is 0 to 1023"]),
        ("kind: A3\nhosts:\n- {address: n, devices: 0, super_device_ids: '1-2'}", ["2 ids for 1 devices"]),
        ("kind: A3\nhosts:\n- {address: 'n[0-2]', devices: 0, super_pod: 'p[0-1]'}", ["2 super pods for 3 host(s)"]),
        ("kind: A2\nhosts:\n- address: n\n- address: n", ["name n stands twice", "address n stands twice"]),
        ("kind: A2\nhosts:\n- {address: n, devices: 0-1, device_ips: [1.1.1.1, 1.1.1.1]}", ["IP 1.1.1.1 stands twice"]),
        ("kind: A2\nhosts:\n- address: n[1-65536]", ["524288 devices; HCCL takes 65536"]),
        ("kind: A2\nhosts:\n- address: n[1-8192]\n- address: m1", ["65544 devices; HCCL takes 65536"]),
        ("kind: [\n", ["is not YAML"]),
        ("kind: A2\nkind: A2", ["stands twice"]),
    ],
)  # fmt: skip
def test_problems_say_what_and_where(text: str, said: list[str]) -> None:
    found = problems(text)
    assert len(found) == len(said), found
    for words in said:
        assert any(words in problem for problem in found), found


def test_all_problems_come_at_once() -> None:
    text = "kind: A2\nhosts:\n- {address: 'n[1-', devices: x}\n- {address: m, devices: 0, device_ips: no}\n"
    found = problems(text)
    assert [problem.split(":")[1] for problem in found] == ["3", "3", "4"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path, Path("a\x00b")):
        with pytest.raises(SpecError, match="cannot read the inventory"):
            load_inventory(path)
    (tmp_path / "latin.yaml").write_bytes(b"kind: \xe9")
    with pytest.raises(SpecError, match="cannot read the inventory"):
        load_inventory(tmp_path / "latin.yaml")


@pytest.mark.parametrize("address", ["10.0.0.[250-260]", "10.0.0.256", "1.2.3", "fe80::xyz"])
def test_numbers_that_are_no_address_are_no_host_name_either(tmp_path: Path, address: str) -> None:
    file = tmp_path / "hosts.yaml"
    file.write_text(f"kind: A2\nhosts:\n  - {{address: '{address}'}}\n")
    with pytest.raises(SpecError) as caught:
        load_inventory(file)

    assert "is no host name and no address" in str(caught.value)
