"""Doctor on one simulated Ascend host: each fault is noticed, and the same host without it passes."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.doctored import found_on, ready_host, statuses
from support.fake_host import KERNELS, TOOLKIT, FakeHost, corpus, info_hbm

from launcher.cluster.discover.hccn import parse_hccn_conf, ping
from launcher.cluster.discover.host import Card, HostReport
from launcher.cluster.discover.npu_smi import Chip, parse_info
from launcher.doctor.cann import check_firmware, check_kernels, check_sourced
from launcher.doctor.cards import check_memory
from launcher.doctor.network import check_segments
from launcher.doctor.nodes import check_nodes
from launcher.doctor.variables import check_interface, check_switches, check_whitelist


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    """An Ascend host with software that fits the installed MindSpore, no cards yet."""
    return ready_host(tmp_path)


# ------------------------------------------------------------------------------------------------- CANN


def test_cann_whose_environment_is_not_set(host: FakeHost) -> None:
    host.devices([0, 1]).npu_smi(info=info_hbm(2)).write("usr/local/Ascend/ascend-toolkit/set_env.sh", "")
    assert statuses(found_on(host), "cann-env", "kernels", "firmware") == ["pass"] * 3
    host.env.pop("ASCEND_HOME_PATH")
    host.env.pop("ASCEND_OPP_PATH")
    found = found_on(host)
    assert (found["cann-env"]["status"], found["kernels"]["status"]) == ("fail", "pass")
    assert found["cann-env"]["fix"] == f"source {host.root}/usr/local/Ascend/ascend-toolkit/set_env.sh"


@pytest.mark.parametrize(
    ("env", "status"),
    [
        ({"ASCEND_HOME_PATH": "/gone"}, "fail"),
        ({"ASCEND_TOOLKIT_HOME": "{home}"}, "warn"),
        ({"ASCEND_OPP_PATH": "{home}/opp"}, "pass"),
        ({"LD_LIBRARY_PATH": "/usr/local/Ascend/ascend-toolkit/latest/lib64"}, "warn"),
    ],
)
def test_environments_of_cann(host: FakeHost, env: dict[str, str], status: str) -> None:
    env = {name: value.format(home=host.root / TOOLKIT) for name, value in env.items()}
    (finding,) = check_sourced(host.root, env)
    assert finding.status == status


def test_no_cann_is_the_matter_of_another_check(tmp_path: Path) -> None:
    assert list(check_sourced(tmp_path, {})) == []
    assert list(check_kernels(tmp_path, "A2", {})) == []
    assert list(check_firmware(tmp_path)) == []


@pytest.mark.parametrize(
    ("kind", "folder"), [("910", "ascend910"), ("A2", "ascend910b"), ("A3", "ascend910_93"), ("310P", "ascend310p")]
)
def test_kernels_of_another_kind_of_card_are_none(host: FakeHost, kind: str, folder: str) -> None:
    assert [finding.status for finding in check_kernels(host.root, kind, {})] == ["pass"]
    shutil.rmtree(host.root / TOOLKIT / KERNELS / folder)
    # What a toolkit without the kernels' package has there.
    host.write(f"{TOOLKIT}/{KERNELS}/{folder}/ops_oam/x.o", "").write(f"{TOOLKIT}/{KERNELS}/config/x.json", "")
    (finding,) = check_kernels(host.root, kind, {})
    assert (finding.status, "Ascend-cann-kernels" in finding.fix) == ("fail", True)


def test_kernels_where_the_kind_is_not_known(host: FakeHost) -> None:
    assert [finding.status for finding in check_kernels(host.root, None, {})] == ["pass"]
    shutil.rmtree(host.root / TOOLKIT / "opp")
    assert [finding.status for finding in check_kernels(host.root, None, {})] == ["warn"]
    assert [finding.status for finding in check_kernels(host.root, "A2", {})] == ["fail"]


def test_firmware_that_the_driver_does_not_take(host: FakeHost) -> None:
    assert [finding.status for finding in check_firmware(host.root)] == ["pass"]
    host.software(firmware="1.79.22.5.220")
    (finding,) = check_firmware(host.root)
    assert (finding.status, "wants 7.0.0 to 8.9.9" in finding.what) == ("fail", True)
    # An older driver states no range, and a container may have no firmware file: nothing to hold it against.
    host.write("usr/local/Ascend/driver/version.info", "Version=23.0.5\n")
    assert list(check_firmware(host.root)) == []


def test_a_driver_whose_interface_is_too_old_for_the_runtime(host: FakeHost) -> None:
    host.write(f"{TOOLKIT}/runtime/version.info", "required_driver_ascendhal_version=8.0.0\n")
    assert [finding.status for finding in check_firmware(host.root)] == ["pass", "fail"]
    host.write(f"{TOOLKIT}/runtime/version.info", corpus("hosts", "env", "runtime_version.info").read_text())
    assert [finding.status for finding in check_firmware(host.root)] == ["pass"]


# ------------------------------------------------------------------------------------------------- cards


def test_memory_in_use_without_a_process(host: FakeHost) -> None:
    host.devices([0, 1]).npu_smi(info=info_hbm(2))
    assert statuses(found_on(host), "hbm", "busy") == ["pass", "pass"]
    host.npu_smi(info=info_hbm(2, hbm="58112/ 65536"))
    found = found_on(host)
    assert statuses(found, "hbm", "busy") == ["fail", "pass"]
    assert "card 0-1: 58112 of 65536 MiB" in found["hbm"]["what"]
    assert "fuser -v /dev/davinci0" in found["hbm"]["fix"]


def test_memory_of_a_listed_process_is_the_process_s(host: FakeHost) -> None:
    host.devices([0]).npu_smi(info=info_hbm(1, hbm="58112/ 65536", processes={0: 4711}))
    found = found_on(host)
    assert found["busy"]["status"] == "fail"
    assert "hbm" not in found


def test_no_recorded_idle_card_is_called_full() -> None:
    for path in sorted(corpus("hosts", "npu-smi").glob("*info*.txt")):
        info = parse_info(path.read_text())
        cards = tuple(Card(device_id=chip.physical_id, chip=chip) for chip in info.chips if not info.processes)
        assert [finding.status for finding in check_memory(cards)] in ([], ["pass"]), path.name
    chip = Chip(npu_id=0, chip_id=0, physical_id=0, name="950", hbm_used_mib=4439, hbm_mib=86016)
    assert [finding.status for finding in check_memory((Card(device_id=0, chip=chip),))] == ["pass"]


@pytest.mark.parametrize("name", ["davinci_manager", "devmm_svm", "hisi_hdc"])
def test_a_device_node_that_the_container_lacks(host: FakeHost, name: str) -> None:
    host.devices([0, 1]).npu_smi(info=info_hbm(2))
    assert found_on(host)["device-nodes"]["status"] == "pass"
    (host.root / "dev" / name).unlink()
    found = found_on(host)["device-nodes"]
    assert (found["status"], f"--device /dev/{name}" in found["fix"]) == ("fail", True)


def test_device_nodes_of_another_group(host: FakeHost) -> None:
    report = HostReport(name="n", cards=(Card(device_id=0), Card(device_id=1)))
    host.devices([0, 1])
    (finding,) = check_nodes(report, host.root, lambda path, mode: path.name != "davinci1")
    assert (finding.status, "/dev/davinci1 may not be opened" in finding.what) == ("fail", True)
    assert finding.fix.startswith("sudo usermod -aG ")
    if os.geteuid():
        (host.root / "dev" / "devmm_svm").chmod(0)
        assert [finding.status for finding in check_nodes(report, host.root)] == ["fail"]
    assert list(check_nodes(report, host.root / "nowhere")) == []


ECC = """\tNPU ID                                   : {npu}
\tHBM Single Bit Error Count               : 12
\tHBM Double Bit Error Count               : {double}
\tHBM Single Bit Aggregate Total Err Cnt   : 3000
\tHBM Double Bit Aggregate Total Err Cnt   : {double}
\tHBM Single Bit Isolated Pages Count      : 0
\tHBM Double Bit Isolated Pages Count      : {pages}
\tHBM Single Bit Next-Isolated Pages Count : 0
\tHBM Double Bit Next-Isolated Pages Count : {waiting}
\tChip ID                                  : 0
"""


@pytest.mark.parametrize(
    ("double", "pages", "waiting", "status", "said"),
    [
        (0, 2, 0, "pass", "2 cards"),
        (3, 0, 1, "fail", "card 1: 3 uncorrectable"),
        (0, 2, 4, "warn", "card 1: 4 bad pages are replaced at the next reset"),
        (0, 80, 0, "warn", "card 1: 80 bad pages"),
    ],
)
def test_memory_errors(host: FakeHost, double: int, pages: int, waiting: int, status: str, said: str) -> None:
    host.devices([0, 1]).npu_smi(info=info_hbm(2))
    assert "ecc" not in found_on(host)  # an npu-smi that does not count them
    sick = ECC.format(npu=1, double=double, pages=pages, waiting=waiting)
    host.npu_smi(**{"info_-t_ecc_-i_0_-c_0": ECC.format(npu=0, double=0, pages=0, waiting=0)})
    host.npu_smi(**{"info_-t_ecc_-i_1_-c_0": sick})
    found = found_on(host)["ecc"]
    assert (found["status"], said in found["what"]) == (status, True), found


# ------------------------------------------------------------------------------------------ the cards' network


def test_tls_switches_that_differ(host: FakeHost) -> None:
    host.devices(list(range(4))).npu_smi(info=info_hbm(4))
    found = found_on(host)
    assert (found["tls"]["status"], found["tls"]["what"]) == ("pass", "off on 4 cards")
    found = found_on(host, FAKE_HCCN_TLS=" 1 2 ")
    assert (found["tls"]["status"], found["tls"]["what"]) == (
        "fail",
        "the TLS switch is on for card 1-2 and off for card 0, 3 (EI0006)",
    )
    assert found["tls"]["fix"] == "for i in 1 2; do sudo hccn_tool -i $i -tls -s enable 0; done"
    assert found_on(host, FAKE_HCCN_TLS=" 0 1 2 3 ")["tls"]["what"] == "on on 4 cards"
    denied = found_on(host, FAKE_HCCN_MODE="denied")
    assert ("tls" in denied, denied["link"]["status"]) == (False, "warn")


def test_an_hccn_tool_that_hangs_ends_the_wait(host: FakeHost) -> None:
    host.devices([0, 1]).npu_smi(info=info_hbm(2)).write("etc/hccn.conf", "address_0=10.1.0.1\naddress_1=10.1.0.2\n")
    began = time.monotonic()
    found = found_on(host, FAKE_HCCN_MODE="hang", LAUNCHER_PROBE_TIMEOUT_S="0.3")
    assert time.monotonic() - began < 10
    assert ("tls" in found, found["link"]["status"], found["hccn"]["status"]) == (False, "warn", "pass")


def test_two_cards_of_one_address(host: FakeHost) -> None:
    host.devices([0, 1]).npu_smi(info=info_hbm(2))
    host.write("etc/hccn.conf", "address_0=10.1.0.1\naddress_1=10.1.0.2\n")
    assert found_on(host)["hccn"]["status"] == "pass"
    host.write("etc/hccn.conf", "address_0=10.1.0.1\naddress_1=10.1.0.1\n")
    found = found_on(host)["hccn"]
    assert (found["status"], found["what"]) == ("fail", "cards 0-1 have one address, 10.1.0.1 (EI0014)")


def test_networks_of_a_first_generation_server() -> None:
    conf = parse_hccn_conf(corpus("hosts", "hccn", "hccn.conf_8x_ipv4").read_text())
    ids = list(range(8))
    assert [finding.status for finding in check_segments(conf, ids, "910")] == ["pass"]
    apart = replace(conf, addresses={**conf.addresses, 5: "192.168.77.1"})
    (finding,) = check_segments(apart, ids, "910")
    assert (finding.status, "cards 1 and 5 are not in one network" in finding.what) == ("warn", True)
    one = replace(conf, addresses={ident: f"10.0.0.{ident + 1}" for ident in ids})
    assert [finding.status for finding in check_segments(one, ids, "910")] == ["warn"]
    # A2 routes between its cards' networks, and four cards or unknown netmasks say nothing.
    assert list(check_segments(one, ids, "A2")) == []
    assert list(check_segments(one, ids[:4], "910")) == []
    assert list(check_segments(replace(one, netmasks={}), ids, "910")) == []


@pytest.mark.parametrize(
    ("lost", "outcome", "fault"), [("", False, ""), (" 10.20.0.11 ", True, "0 of 3 packets came back")]
)
def test_pings_from_card_to_card(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, lost: str, outcome: bool, fault: str
) -> None:
    for name, value in {**host.variables(), "FAKE_HCCN_LOST": lost}.items():
        monkeypatch.setenv(name, value)
    answer = ping(0, "10.20.0.11")
    assert (answer.lost, answer.fault) == (outcome, fault)
    monkeypatch.setenv("FAKE_HCCN_MODE", "denied")
    assert ping(0, "10.20.0.11").lost is None


# --------------------------------------------------------------------------------------------- variables


def test_interfaces_that_the_host_lacks(host: FakeHost) -> None:
    for name in ("lo", "eth0", "enp189s0f0"):
        host.write(f"sys/class/net/{name}/address", "")
    for value, status in (
        ("eth0", "pass"),
        ("=eth0", "pass"),
        ("=eth1,eth0", "pass"),
        ("enp", "pass"),
        ("^docker,lo", "pass"),
        ("^=eth1", "pass"),
        ("eth1", "fail"),
        ("=eth", "fail"),
        ("ib,bond", "fail"),
        ("^lo,eth,enp", "fail"),
        ("^=lo,eth0,enp189s0f0", "fail"),
    ):
        found = list(check_interface(host.root, {"HCCL_SOCKET_IFNAME": value}))
        assert [finding.status for finding in found] == [status], value
    (finding,) = check_interface(host.root, {"HCCL_SOCKET_IFNAME": "ib0"})
    assert finding.fix.startswith("export HCCL_SOCKET_IFNAME==enp189s0f0")
    assert list(check_interface(host.root, {})) == []
    # HCCL_IF_IP wins over the name.
    assert list(check_interface(host.root, {"HCCL_SOCKET_IFNAME": "ib0", "HCCL_IF_IP": "127.0.0.1"})) == []
    (finding,) = check_interface(host.root, {"HCCL_IF_IP": "203.0.113.9"})
    assert (finding.status, "203.0.113.9" in finding.what) == ("fail", True)


def test_the_whitelist(host: FakeHost) -> None:
    good = host.write("white.json", '{"host_ip": ["127.0.0.1"], "device_ip": []}').root / "white.json"
    bad = host.write("bad.json", "{").root / "bad.json"
    for env, statuses_ in (
        ({}, []),
        ({"HCCL_WHITELIST_DISABLE": "1"}, []),
        ({"HCCL_WHITELIST_DISABLE": "0"}, ["fail"]),
        ({"HCCL_WHITELIST_DISABLE": "0", "HCCL_WHITELIST_FILE": "/no/where.json"}, ["fail"]),
        ({"HCCL_WHITELIST_DISABLE": "0", "HCCL_WHITELIST_FILE": str(bad)}, ["fail"]),
        ({"HCCL_WHITELIST_DISABLE": "0", "HCCL_WHITELIST_FILE": str(good)}, ["pass"]),
        ({"HCCL_WHITELIST_DISABLE": "yes"}, ["fail"]),
    ):
        assert [finding.status for finding in check_whitelist(env)] == statuses_, env


def test_switches_left_on(host: FakeHost) -> None:
    host.devices([0]).npu_smi(info=info_hbm(1))
    assert "switches" not in found_on(host)
    found = found_on(host, MS_SIMULATION_LEVEL="1")
    assert (found["switches"]["status"], found["switches"]["fix"]) == ("fail", "unset MS_SIMULATION_LEVEL")
    found = found_on(host, ASCEND_LAUNCH_BLOCKING="1")
    assert (found["switches"]["status"], found["switches"]["fix"]) == ("warn", "unset ASCEND_LAUNCH_BLOCKING")
    on_cpu = check_switches({"MS_SIMULATION_LEVEL": "1"}, ascend=False)
    assert [finding.status for finding in on_cpu] == ["warn"]
    assert list(check_switches({"ASCEND_LAUNCH_BLOCKING": "0", "MS_SIMULATION_LEVEL": ""})) == []
