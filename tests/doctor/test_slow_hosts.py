"""Doctor on hosts that would be slow, on full disks, and on plans that do not fit; each beside a host that is fine."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.doctored import spec_text
from support.fake_host import FakeHost

from launcher.cluster.discover.host import Card
from launcher.cluster.discover.npu_smi import Chip
from launcher.cluster.model import Cluster, Device, Host
from launcher.doctor.findings import Finding, JobNeeds
from launcher.doctor.plan import check_plan
from launcher.doctor.storage import check_storage, inodes_finding, speed_finding, within, write_speed
from launcher.doctor.tuning import check_binding, check_governor, check_host_memory
from launcher.runspec.checking import load_spec

CARDS = tuple(
    Card(
        device_id=ident,
        chip=Chip(npu_id=ident, chip_id=0, physical_id=ident, name="910B3", bus_id=f"0000:C{ident}:00.0"),
    )
    for ident in range(4)
)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    """Two NUMA nodes of four CPUs and two cards each."""
    fake = FakeHost(root=tmp_path)
    for node in (0, 1):
        fake.write(f"sys/devices/system/node/node{node}/cpulist", f"{4 * node}-{4 * node + 3}\n")
    for card in CARDS:
        fake.write(f"sys/bus/pci/devices/0000:c{card.device_id}:00.0/numa_node", f"{card.device_id // 2}\n")
    return fake


def statuses(found: Any) -> list[str]:
    return [finding.status for finding in found]


# ------------------------------------------------------------------------------------------ CPUs and memory


@pytest.mark.parametrize(
    ("governor", "driver", "expected"),
    [
        ("performance", "cppc_cpufreq", ["pass"]),
        ("schedutil", "cppc_cpufreq", ["pass"]),
        ("powersave", "cppc_cpufreq", ["warn"]),
        ("powersave", "intel_pstate", []),  # a laptop: its usual setting, and clocks rise all the same
    ],
)
def test_the_governor(host: FakeHost, governor: str, driver: str, expected: list[str]) -> None:
    assert list(check_governor(host.root)) == []  # a virtual machine has none
    for cpu in range(4):
        host.write(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", f"{governor}\n")
        host.write(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_driver", f"{driver}\n")
    assert statuses(check_governor(host.root)) == expected


def test_cpus_far_from_the_cards(host: FakeHost) -> None:
    assert statuses(check_binding(CARDS, host.root, set(range(8)))) == ["pass"]
    (finding,) = check_binding(CARDS, host.root, {0, 1, 2, 3})
    assert (finding.status, finding.what.startswith("card 2-3: ")) == ("warn", True)
    assert statuses(check_binding(CARDS[:2], host.root, {0, 1, 2, 3})) == ["pass"]
    (finding,) = check_binding(CARDS, host.root, {0, 4})
    assert (finding.status, finding.what) == ("warn", "4 ranks share 2 CPUs")
    assert statuses(check_binding(CARDS, host.root / "nowhere", set(range(8)))) == []


def memory(host: FakeHost, *, free_pages: int = 0, committed_gib: int = 10) -> None:
    host.write(
        "proc/meminfo",
        f"MemTotal:       {512 << 20} kB\nHugePages_Total:  {free_pages}\nHugePages_Free:  {free_pages}\n"
        f"Hugepagesize:       2048 kB\nCommitLimit:    {256 << 20} kB\nCommitted_AS:  {committed_gib << 20} kB\n",
    )


def test_huge_pages_that_nobody_uses(host: FakeHost) -> None:
    assert list(check_host_memory(8, host.root)) == []
    memory(host)
    assert statuses(check_host_memory(8, host.root)) == ["pass"]
    memory(host, free_pages=32 << 10)
    assert statuses(check_host_memory(8, host.root)) == ["pass"]  # 64 of 512 GiB
    memory(host, free_pages=128 << 10)
    (finding,) = check_host_memory(8, host.root)
    assert (finding.status, "256 of 512 GiB" in finding.what) == ("warn", True)


def test_memory_that_will_be_refused(host: FakeHost) -> None:
    for mode, committed_gib, expected in (("0", 250, []), ("1", 250, []), ("2", 10, ["pass"]), ("2", 250, ["warn"])):
        memory(host, committed_gib=committed_gib)
        host.write("proc/sys/vm/overcommit_memory", f"{mode}\n")
        found = [finding.status for finding in check_host_memory(8, host.root) if finding.id == "overcommit"]
        assert found == expected, (mode, committed_gib)


def test_this_machine_is_not_called_slow() -> None:
    root = Path("/")
    found = [*check_host_memory(2, root), *check_binding((), root)]
    assert {finding.status for finding in found} <= {"pass"}


# -------------------------------------------------------------------------------------------------- disk


@pytest.mark.parametrize(
    ("files", "free", "expected"),
    [(0, 0, []), (1 << 20, 1 << 19, ["pass"]), (1 << 20, 9000, ["warn"]), (1 << 20, 5, ["fail"])],
)
def test_inodes(tmp_path: Path, files: int, free: int, expected: list[str]) -> None:
    status: Any = SimpleNamespace(f_files=files, f_favail=free)
    assert statuses(inodes_finding(tmp_path, status)) == expected


def test_the_write_speed_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    speed = write_speed(tmp_path)
    assert speed is not None
    assert speed > 0
    assert list(tmp_path.iterdir()) == []
    assert write_speed(tmp_path / "nowhere") is None


def test_a_disk_that_is_too_slow_for_the_checkpoints(tmp_path: Path) -> None:
    assert statuses(speed_finding(tmp_path, 200 << 20, 0)) == ["pass"]
    assert statuses(speed_finding(tmp_path, 200 << 20, 14 << 30)) == ["pass"]
    (finding,) = speed_finding(tmp_path, 20 << 20, 14 << 30)
    assert (finding.status, "takes 717 s" in finding.what) == ("warn", True)
    assert statuses(speed_finding(tmp_path, 1 << 20, 0)) == ["warn"]
    assert list(speed_finding(tmp_path, None, 1)) == []


def test_a_folder_that_never_answers() -> None:
    never = threading.Event()

    def hang() -> list[Finding]:
        never.wait(60)
        return []

    assert within(0.05, hang) is None
    never.set()
    assert within(5, list) == []


def test_the_folder_of_the_jobs(tmp_path: Path) -> None:
    found = {finding.id: finding for finding in check_storage(JobNeeds(folder=tmp_path), 1, measure=True)}
    assert {"disk", "write-speed"} <= set(found)
    if os.statvfs(tmp_path).f_files:
        assert found["inodes"].status == "pass"


# ------------------------------------------------------------------------------------------------- plan


def a2(cards: int) -> Cluster:
    devices = tuple(Device(device_id=ident) for ident in range(cards))
    return Cluster(target="Ascend", kind="A2", hosts=(Host(name="n", address="127.0.0.1", devices=devices),))


def test_the_plan_of_a_job(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(host.root)
    host.write("mine.yaml", spec_text())
    finding = check_plan(load_spec("mine.yaml"), a2(8))
    assert (finding.status, "8 x 1 x 1" in finding.what) == ("pass", True)
    model = (
        "model: {hidden_size: 8192, num_layers: 80, num_heads: 64, intermediate_size: 28672, vocab_size: 32000, "
        "seq_length: 8192}"
    )
    host.write("large.yaml", spec_text(model=model, parallel="parallel: {data_parallel: 8}"))
    finding = check_plan(load_spec("large.yaml"), a2(8))
    assert (finding.status, "does not fit" in finding.what) == ("fail", True), finding
    assert finding.fix
    host.write("open.yaml", spec_text(model=model))
    finding = check_plan(load_spec("open.yaml"), a2(2))
    assert (finding.status, bool(finding.fix)) == ("fail", True), finding
