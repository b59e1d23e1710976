"""What this host has: npu-smi in four layouts, hccn.conf, version files, visible devices."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_host import FakeHost, corpus, info_310p, info_950, info_a3, info_hbm, mapping_a3

from launcher.cluster.discover import ascend_device_ids, local_cluster, look_around
from launcher.cluster.discover.hccn import parse_hccn_conf, read_hccn_conf
from launcher.cluster.discover.kinds import kind_of
from launcher.cluster.discover.npu_smi import Chip, known_fault, parse_fields, parse_info, parse_list, parse_mapping
from launcher.cluster.discover.pci import pci_kind
from launcher.cluster.discover.programs import run_program
from launcher.cluster.discover.software import read_software
from launcher.cluster.discover.visible import container_visible, runtime_visible
from launcher.cluster.model import KINDS
from launcher.errors import HostError


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """A host without anything, this process on it."""
    fake = FakeHost(root=tmp_path)
    for name, value in fake.variables().items():
        monkeypatch.setenv(name, value)
    for name in ("ASCEND_RT_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES", "ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        monkeypatch.delenv(name, raising=False)
    return fake


def npu_smi_file(name: str) -> str:
    return corpus("hosts", "npu-smi", name).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------ npu-smi info


def test_first_generation_910_that_calls_itself_910b() -> None:
    info = parse_info(npu_smi_file("info_910A_named_910B_8x_24.1.0.txt"))
    assert (info.layout, info.driver, len(info.chips)) == ("HBM", "24.1.0", 8)
    chip = info.chips[0]
    assert (chip.physical_id, chip.name, chip.health, chip.bus_id) == (0, "910B", "OK", "0000:C1:00.0")
    assert (chip.hbm_used_mib, chip.hbm_mib, chip.memory_mib) == (1365, 32768, 13553)
    assert {kind_of(chip, info.layout) for chip in info.chips} == {"910"}
    assert not KINDS["910"].bfloat16


@pytest.mark.parametrize("name", ["info_910A_23.0.5_ok_elided.txt", "info_910A_23.0.5_warning_elided.txt"])
def test_rows_wider_than_the_frame_and_rows_left_out(name: str) -> None:
    info = parse_info(npu_smi_file(name))
    first = "Warning" if "warning" in name else "OK"
    assert [(chip.npu_id, chip.health) for chip in info.chips] == [(0, first), (7, "OK")]
    assert [kind_of(chip, info.layout) for chip in info.chips] == ["910", "910"]
    assert info.processes == ()


def test_950_layout_of_the_manual() -> None:
    info = parse_info(npu_smi_file("950_info.txt"))
    assert (info.layout, len(info.chips)) == ("950", 1)
    assert (info.chips[0].hbm_used_mib, info.chips[0].hbm_mib, info.chips[0].bus_id) == (4439, 86016, "0000:91:00.0")
    assert kind_of(info.chips[0], info.layout) == "950"


def test_a2_a3_310p_and_950_layouts() -> None:
    a2 = parse_info(info_hbm(8, hbm="21784/ 65536"))
    assert [chip.physical_id for chip in a2.chips] == list(range(8))
    assert (a2.chips[3].hbm_used_mib, kind_of(a2.chips[3], a2.layout)) == (21784, "A2")
    a3 = parse_info(info_a3())
    assert (a3.layout, [chip.physical_id for chip in a3.chips]) == ("A3", list(range(16)))
    assert [(chip.npu_id, chip.chip_id) for chip in a3.chips[:3]] == [(0, 0), (0, 1), (1, 0)]
    assert kind_of(a3.chips[15], a3.layout) == "A3"
    small = parse_info(info_310p())
    assert (small.layout, [chip.physical_id for chip in small.chips]) == ("310", [0, 1, 2, 3])
    assert [chip.npu_id for chip in small.chips] == [2144, 2144, 32768, 32768]
    assert (small.chips[0].hbm_mib, kind_of(small.chips[0], small.layout)) == (44280, "310P")
    assert [chip.physical_id for chip in parse_info(info_950()).chips] == list(range(8))


def test_processes_and_health_are_read() -> None:
    info = parse_info(info_hbm(2, health={1: "Alarm"}, processes={1: 4711}))
    assert [chip.health for chip in info.chips] == ["OK", "Alarm"]
    (process,) = info.processes
    assert (process.npu_id, process.chip_id, process.pid) == (1, 0, 4711)
    assert (process.name, process.memory_mib) == ("python3.10", 28754)


@pytest.mark.parametrize(
    ("chip", "hbm", "memory", "layout", "kind"),
    [
        ("910B", 32768, 13553, "HBM", "910"),
        ("910B", 0, 0, "", "910"),
        ("910B4", 32768, 0, "HBM", "A2"),
        ("910B4-1", 65536, 0, "HBM", "A2"),
        ("910B2C", 65536, 0, "HBM", "A2"),
        ("Ascend 910B3", 0, 0, "", "A2"),
        ("Ascend 910A", 0, 0, "", "910"),
        ("910ProB", 32768, 13553, "HBM", "910"),
        ("Ascend910_9391", 0, 0, "", "A3"),
        ("Ascend910", 65536, 0, "A3", "A3"),
        ("Ascend 310P3", 0, 0, "", "310P"),
        ("xxx", 65536, 0, "HBM", "A2"),
        ("xxx", 0, 0, "", None),
    ],
)
def test_kind_of_chip(chip: str, hbm: int, memory: int, layout: str, kind: str | None) -> None:
    found = Chip(npu_id=0, chip_id=0, physical_id=0, name=chip, hbm_mib=hbm, memory_mib=memory)
    assert kind_of(found, layout) == kind


_ROWS = st.sampled_from(
    ["| 0 910B3 | OK | 1", "|", "| Chip | Bus-Id |", "+==+", "| 0 | 0000:C1 | 0/0 |", "| Process id |"]
)


@given(st.text() | st.lists(_ROWS).map("\n".join))
def test_no_text_upsets_the_parsers(text: str) -> None:
    parse_info(text)
    parse_mapping(text)
    parse_list(text)
    parse_fields(text)
    known_fault(text)
    parse_hccn_conf(text)


@given(st.integers(0, len(info_a3())), st.integers(0, 200))
def test_cut_output_never_invents_chips(start: int, length: int) -> None:
    text = info_a3()
    whole = {(chip.npu_id, chip.chip_id, chip.physical_id) for chip in parse_info(text).chips}
    cut = parse_info(text[:start] + text[start + length :])
    assert cut.layout in ("", "A3", "HBM", "310", "950")
    if start > 700:  # behind the header
        assert len(cut.chips) <= len(whole)


# ------------------------------------------------------------------------------ info -m, -l, and failures


def test_mapping_in_four_and_five_columns() -> None:
    a2 = parse_mapping(npu_smi_file("rendered_info_m_a2_8x.txt"))
    assert [chip.physical_id for chip in a2.chips] == list(range(8))
    assert (a2.layout, a2.chips[0].name) == ("HBM", "Ascend 910B3")
    a3 = parse_mapping(npu_smi_file("rendered_info_m_a3_16die.txt"))
    assert (a3.layout, [chip.physical_id for chip in a3.chips]) == ("A3", list(range(16)))
    assert parse_mapping(mapping_a3()) == a3
    small = parse_mapping(npu_smi_file("rendered_info_m_310p_ids.txt"))
    assert [(chip.npu_id, chip.physical_id) for chip in small.chips] == [(2144, 0), (32768, 1), (7, 2)]
    assert parse_mapping(npu_smi_file("950_info_m.txt")).layout == "950"
    assert len(parse_mapping(npu_smi_file("dump_910A_8x_23.0.5_before.txt")).chips) == 8


def test_list_counts_chips() -> None:
    assert parse_list(npu_smi_file("rendered_info_l_server_8x.txt")) == dict.fromkeys(range(8), 1)
    assert parse_list(npu_smi_file("950_info_l.txt")) == {0: 1}
    assert parse_fields(npu_smi_file("rendered_spod_info_a3.txt"))["SDID"] == "167772160"


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("no_card.txt", "no NPU card"), ("dcmi_init_failed.txt", "-8005"), ("device_used.txt", "-8020")],
)
def test_known_failures_are_explained(name: str, meaning: str) -> None:
    assert meaning in known_fault(npu_smi_file(name))
    assert parse_info(npu_smi_file(name)).chips == ()


# ------------------------------------------------------------------------------------------- running them


def test_a_program_that_hangs_leaves_nothing_behind(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NPU_SMI_MODE", "hang")
    monkeypatch.setenv("LAUNCHER_MARK", str(host.root))
    started = time.monotonic()
    result = run_program("npu-smi", "info", timeout_s=0.5)
    assert result.fault == "npu-smi did not answer within 0.5 s"
    assert time.monotonic() - started < 20
    deadline = time.monotonic() + 10
    while any(_has_mark(pid, str(host.root)) for pid in Path("/proc").glob("[0-9]*")):  # a kill takes its time
        assert time.monotonic() < deadline, "something of it is left running"
        time.sleep(0.05)


def _has_mark(process: Path, mark: str) -> bool:
    if process.name == str(os.getpid()):
        return False
    try:
        return f"LAUNCHER_MARK={mark}".encode() in (process / "environ").read_bytes()
    except OSError:
        return False


def test_a_program_that_prints_without_end_is_stopped(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NPU_SMI_MODE", "endless")
    result = run_program("npu-smi", "info", timeout_s=30)
    assert result.fault == "npu-smi prints without end"
    assert len(result.stdout) < 6 << 20


def test_programs_that_crash_fail_or_are_missing(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = run_program("npu-smi", "info", "-x").fault
    assert fault == "npu-smi ended with status 255 and said: This device does not support it."
    monkeypatch.setenv("FAKE_NPU_SMI_MODE", "crash")
    assert "signal 11" in run_program("npu-smi", "info").fault
    assert "not on PATH" in run_program("npu-smi-of-nobody").fault
    (host.root / "bin").mkdir()
    broken = host.root / "bin" / "npu-smi"
    broken.write_text("#!/nonexistent/interpreter\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}{os.pathsep}{os.environ['PATH']}")
    assert "cannot be run" in run_program("npu-smi", "info").fault


def test_the_time_out_must_be_a_number(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_PROBE_TIMEOUT_S", "soon")
    with pytest.raises(HostError, match="LAUNCHER_PROBE_TIMEOUT_S"):
        run_program("npu-smi", "info")


# ------------------------------------------------------------------------------------------- hccn.conf


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("hccn.conf_gateway", {0: "192.168.10.21", 1: "192.168.20.21"}),
        ("hccn.conf_ipv6", {0: "2001:db8::10", 1: "2001:db8::11"}),
        ("hccn.conf_empty", {}),
        ("hccn.conf_hixl_ut_bad", {}),
    ],
)
def test_hccn_conf_of_the_corpus(name: str, addresses: dict[int, str]) -> None:
    conf = read_hccn_conf(corpus("hosts", "hccn", name))
    assert conf.addresses == addresses
    assert bool(conf.fault) == (not addresses)
    assert len(conf.bad_lines) == (1 if "bad" in name else 0)


def test_hccn_conf_of_eight_cards() -> None:
    conf = read_hccn_conf(corpus("hosts", "hccn", "hccn.conf_8x_ipv4"))
    assert list(conf.addresses) == list(range(8))
    assert conf.addresses[7] == "192.168.103.102"
    assert len(read_hccn_conf(corpus("hosts", "hccn", "hccn.conf_paddle_doc")).addresses) == 8


def test_ipv4_wins_over_ipv6_and_a_missing_file_says_so(tmp_path: Path) -> None:
    conf = parse_hccn_conf("IPv6address_0=2001:db8::1\naddress_0=10.0.0.1\nIPv6address_1=2001:db8::2\n")
    assert conf.addresses == {0: "10.0.0.1", 1: "2001:db8::2"}
    assert "is not there" in read_hccn_conf(tmp_path / "none").fault
    assert "cannot be read" in read_hccn_conf(tmp_path).fault


# ---------------------------------------------------------------------------------- version files, PCI


def test_versions_of_the_corpus(host: FakeHost) -> None:
    env = corpus("hosts", "env")
    host.write("usr/local/Ascend/driver/version.info", (env / "driver_version.info").read_text())
    old = "usr/local/Ascend/ascend-toolkit/latest/aarch64-linux/ascend_toolkit_install.info"
    host.write(old, (env / "ascend_toolkit_install.info").read_text())
    found = read_software(host.root)
    assert (found.driver, found.firmware, found.cann, found.driver_complete) == ("25.3.rc1", None, "8.1.RC1", None)
    newer = "usr/local/Ascend/cann/aarch64-linux/ascend_toolkit_install.info"
    host.write(newer, (env / "ascend_toolkit_install.info_8.5.0").read_text())
    host.write("etc/ascend_install.info", "Driver_Install_Status=complete\n")
    found = read_software(host.root)
    assert (found.cann, found.driver_complete) == ("8.5.0", True)


def test_set_env_chooses_the_cann(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.software(cann="9.0.0")
    host.write("opt/cann/x86_64-linux/ascend_toolkit_install.info", "version=8.2.RC1\n")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(host.root / "opt/cann"))
    assert read_software(host.root).cann == "8.2.RC1"


@pytest.mark.parametrize(
    ("device", "kind"),
    [("0xd801", "910"), ("0xd802", "A2"), ("0xd803", "A3"), ("0xd806", "950"), ("0xa126", None)],
)
def test_kind_by_pci_id(host: FakeHost, device: str, kind: str | None) -> None:
    for slot, vendor, ident in (("0000:c1:00.0", "0x19e5", device), ("0000:01:00.0", "0x8086", "0xd801")):
        host.write(f"sys/bus/pci/devices/{slot}/vendor", f"{vendor}\n")
        host.write(f"sys/bus/pci/devices/{slot}/device", f"{ident}\n")
    assert pci_kind(host.root) == kind


# ------------------------------------------------------------------------------------ visible devices


@pytest.mark.parametrize(
    ("value", "ids", "fault"),
    [
        ("4,5,6,7", (4, 5, 6, 7), ""),
        ("0", (0,), ""),
        ("0, 1", (0,), "reading stops"),
        ("0-3", (), "reading stops"),
        ("1,1", (1,), "twice"),
        ("2,1", (2,), "ascending"),
        ("", (), "reading stops"),
    ],
)
def test_runtime_visible(value: str, ids: tuple[int, ...], fault: str) -> None:
    visible = runtime_visible(value)
    assert visible.ids == ids
    assert fault in visible.fault
    assert bool(visible.fault) == bool(fault)


def test_container_visible() -> None:
    assert container_visible("0-2,4").ids == (0, 1, 2, 4)
    assert container_visible("0-x").fault


def test_local_cluster_on_cards(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.devices([4, 5, 6, 7, 10]).write("etc/hccn.conf", "address_5=10.0.0.5\n")
    assert ascend_device_ids() == [4, 5, 6, 7, 10]
    cluster = local_cluster()
    assert (cluster.target, [device.device_id for device in cluster.hosts[0].devices]) == ("Ascend", [4, 5, 6, 7, 10])
    assert cluster.hosts[0].devices[1].device_ip == "10.0.0.5"
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1,4")
    devices = local_cluster().hosts[0].devices
    assert [(device.device_id, device.logic_id) for device in devices] == [(5, 1), (10, 4)]
    with pytest.raises(HostError, match="this host has 2 Ascend cards"):
        local_cluster(3)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1,9")
    with pytest.raises(HostError, match="no logic id 9"):
        local_cluster()


def test_local_cluster_on_the_cpu(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CPU_DEVICES", "3")
    assert (local_cluster().target, local_cluster().num_devices, local_cluster(2).num_devices) == ("CPU", 3, 2)
    with pytest.raises(HostError, match="this host has 3 CPU ranks"):
        local_cluster(4)
    monkeypatch.setenv("LAUNCHER_CPU_DEVICES", "none")
    with pytest.raises(HostError, match="LAUNCHER_CPU_DEVICES"):
        local_cluster()


# ------------------------------------------------------------------------------------- all put together


def test_look_around_on_a2(host: FakeHost) -> None:
    host.devices(list(range(8))).software().npu_smi(info=info_hbm(8, processes={2: 99}))
    host.write("etc/hccn.conf", "address_0=10.9.0.1\n")
    report = look_around()
    assert (report.kind, report.layout, len(report.usable), report.npu_smi_fault) == ("A2", "HBM", 8, "")
    assert [card.address for card in report.cards][:3] == ["10.9.0.1", "10.20.0.11", "10.20.0.12"]
    assert [process.pid for process in report.cards[2].processes] == [99]
    assert report.software.cann == "9.0.0"


def test_look_around_on_a3_with_hidden_cards(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.devices(list(range(16))).npu_smi(info=info_a3(), mapping=mapping_a3())
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "14,15")
    report = look_around()
    assert report.kind == "A3"
    assert [card.device_id for card in report.usable] == [14, 15]


def test_cards_that_only_npu_smi_or_only_dev_knows(host: FakeHost) -> None:
    host.devices([0, 1]).npu_smi(info=info_hbm(1))
    report = look_around()
    known = [(card.device_id, card.chip is not None, card.usable) for card in report.cards]
    assert known == [(0, True, True), (1, False, True)]
    (host.root / "dev/davinci0").unlink()
    assert [(card.device_id, card.usable) for card in look_around().cards] == [(0, False), (1, True)]


def test_a_chip_that_is_only_counted_is_warned_about(host: FakeHost) -> None:
    listing = corpus("hosts", "npu-smi", "rendered_info_l_server_8x.txt").read_text()
    host.devices(list(range(7))).npu_smi(info=info_hbm(7), listing=listing)
    assert "counts 8 chips" in look_around().npu_smi_warning


@pytest.mark.parametrize("mode", ["hang", "garbage", "crash", "endless"])
def test_devices_command_whatever_npu_smi_does(host: FakeHost, mode: str) -> None:
    host.devices([0, 1])
    done = host.run("devices", env={"FAKE_NPU_SMI_MODE": mode, "LAUNCHER_PROBE_TIMEOUT_S": "1"})
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "npu-smi" in done.stdout


def test_devices_command_as_json(host: FakeHost) -> None:
    host.devices(list(range(8))).software(driver="24.1.0")
    host.npu_smi(info=npu_smi_file("info_910A_named_910B_8x_24.1.0.txt"))
    done = host.run("devices", "--format", "json")
    found = json.loads(done.stdout)
    assert (found["target"], found["kind"], found["driver"]) == ("Ascend", "910", "24.1.0")
    assert {(card["bfloat16"], card["hbm_mib"]) for card in found["devices"]} == {(False, 32768)}
    text = host.run("devices").stdout
    assert "first-generation 910" in text
    assert "0000:" not in text
