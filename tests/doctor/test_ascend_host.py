"""Doctor on one simulated Ascend host: each fault is noticed, and the same host without it passes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.doctored import doctor, statuses
from support.fake_host import KERNELS, TOOLKIT, FakeHost, corpus, info_hbm

from launcher.cluster.discover.host import Card, HostReport
from launcher.cluster.discover.npu_smi import Chip, parse_info
from launcher.doctor.cann import check_firmware, check_kernels, check_sourced
from launcher.doctor.cards import check_memory
from launcher.doctor.nodes import check_nodes

# ------------------------------------------------------------------------------------------------- CANN


def test_cann_whose_environment_is_not_set(host: FakeHost) -> None:
    host.devices([0, 1]).npu_smi(info=info_hbm(2)).write("usr/local/Ascend/ascend-toolkit/set_env.sh", "")
    assert statuses(doctor(host), "cann-env", "kernels", "firmware") == ["pass"] * 3
    host.env.pop("ASCEND_HOME_PATH")
    host.env.pop("ASCEND_OPP_PATH")
    found = doctor(host)
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
    assert statuses(doctor(host), "hbm", "busy") == ["pass", "pass"]
    host.npu_smi(info=info_hbm(2, hbm="58112/ 65536"))
    found = doctor(host)
    assert statuses(found, "hbm", "busy") == ["fail", "pass"]
    assert "card 0-1: 58112 of 65536 MiB" in found["hbm"]["what"]
    assert "fuser -v /dev/davinci0" in found["hbm"]["fix"]


def test_memory_of_a_listed_process_is_the_process_s(host: FakeHost) -> None:
    host.devices([0]).npu_smi(info=info_hbm(1, hbm="58112/ 65536", processes={0: 4711}))
    found = doctor(host)
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
    assert doctor(host)["device-nodes"]["status"] == "pass"
    (host.root / "dev" / name).unlink()
    found = doctor(host)["device-nodes"]
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
