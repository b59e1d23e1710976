"""Doctor: right on this machine and on hosts that are not there, in all four layouts."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.doctored import doctor, ready_host, spec_text, statuses
from support.fake_host import (
    CHECKOUT,
    FakeHost,
    corpus,
    info_310p,
    info_950,
    info_a3,
    info_hbm,
    mapping_a3,
    run_launcher,
)

from launcher.cluster.discover.hccn import HccnConf, Port
from launcher.cluster.discover.software import Software
from launcher.cluster.model import Cluster, Device, Host
from launcher.doctor.cards import check_bfloat16
from launcher.doctor.checks import cheap_checks
from launcher.doctor.findings import Finding, JobNeeds, NeededFile, failed, passed, warned, worst
from launcher.doctor.fleet import Checkup
from launcher.doctor.hosts import check_inventory, clocks_finding, reached_finding
from launcher.doctor.job import check_degrees, check_files, check_rank_table, checkpoint_bytes, needs_of_spec
from launcher.doctor.network import check_addresses, links_finding
from launcher.doctor.software import check_packages, check_programs, check_python, check_triple
from launcher.doctor.storage import check_storage, size
from launcher.doctor.system import (
    check_hccl_ports,
    check_host_name,
    check_scheduler_port,
    check_shared_memory,
    resolve,
)
from launcher.doctor.variables import check_environment
from launcher.plan.memory import parameter_count
from launcher.runspec.checking import load_spec
from launcher.runspec.sections import ModelSpec
from launcher.upstream.versions import MATRIX, for_cann, for_mindspore, release_key, same_release


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    """An Ascend host with software that fits the installed MindSpore, no cards yet."""
    return ready_host(tmp_path)


# --------------------------------------------------------------------------------------- on this machine


def test_on_this_machine(tmp_path: Path) -> None:
    done = run_launcher("doctor", "--format", "json", cwd=tmp_path)
    findings = {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["python"]["status"] == "pass"
    if not Path("/usr/local/Ascend").exists():
        assert findings["cards"]["status"] == "pass"
        assert "CPU" in findings["cards"]["what"]
        assert "cann" not in findings
    if shutil.which("mpirun") is None:
        assert findings["mpirun"]["status"] == "warn"
    assert findings["disk"]["status"] == "pass"


def test_text_has_a_line_to_type_for_everything_that_is_no_pass(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "RANK_ID": "0", "MS_ROLE": "MS_WORKER"}
    done = run_launcher("doctor", cwd=tmp_path, env=env)
    lines = done.stdout.splitlines()
    for line, following in itertools.pairwise(lines):
        assert line.startswith(("warn", "fail")) == following.lstrip().startswith("-> ")
    assert "-> unset MS_ROLE RANK_ID" in done.stdout
    assert " warn, " in lines[-1]


def test_an_unknown_spec_is_a_clear_error(tmp_path: Path) -> None:
    done = run_launcher("doctor", "nothing_of_that_name", cwd=tmp_path)
    assert done.returncode == 2
    assert "no run spec" in done.stderr


# ------------------------------------------------------------------------------------ four kinds of host


def test_a_good_a2_host(host: FakeHost) -> None:
    host.devices(list(range(8))).npu_smi(info=info_hbm(8))
    found = doctor(host)
    good = ("packages", "cann", "driver", "cards", "health", "busy", "hccn", "link", "hccl-ports")
    assert statuses(found, *good) == ["pass"] * len(good)
    assert found["cards"]["what"] == "8 of 8 cards can be used"
    assert found["link"]["what"] == "8 links up"


def test_a_good_a3_host(host: FakeHost) -> None:
    host.devices(list(range(16))).npu_smi(info=info_a3(), mapping=mapping_a3())
    found = doctor(host)
    assert found["cards"]["what"] == "16 of 16 cards can be used"
    assert statuses(found, "health", "busy", "hccn", "link") == ["pass"] * 4


def test_a_good_310p_host_and_a_good_950_host(host: FakeHost) -> None:
    host.devices([0, 1, 2, 3]).npu_smi(info=info_310p())
    assert statuses(doctor(host), "cards", "health", "busy") == ["pass"] * 3
    host.devices(list(range(8))).npu_smi(info=info_950())
    found = doctor(host)
    assert (found["cards"]["what"], found["health"]["status"]) == ("8 of 8 cards can be used", "pass")


def test_a_first_generation_910_that_calls_itself_910b_lacks_bfloat16(host: FakeHost) -> None:
    info = corpus("hosts", "npu-smi", "info_910A_named_910B_8x_24.1.0.txt").read_text()
    host.devices(list(range(8))).npu_smi(info=info)
    host.write("bf16.yaml", spec_text(precision="precision: {params: float32, compute: bfloat16}"))
    assert doctor(host, "bf16.yaml", "--cards", "8")["bfloat16"]["status"] == "fail"
    host.npu_smi(info=info_hbm(8))
    assert doctor(host, "bf16.yaml", "--cards", "8")["bfloat16"]["status"] == "pass"


def test_busy_sick_and_unlinked_cards_are_named(host: FakeHost) -> None:
    host.devices(list(range(8)))
    host.npu_smi(info=info_hbm(8, health={3: "Alarm", 5: "Warning"}, processes={1: 4711}))
    found = doctor(host, FAKE_HCCN_DOWN=" 6 ")
    assert statuses(found, "health", "busy", "link") == ["fail"] * 3
    assert "card 3 Alarm" in found["health"]["what"]
    assert found["health"]["fix"] == "npu-smi info -t health -i 3 -c 0"
    assert "card 1: pid 4711 (python3.10, 28754 MiB)" in found["busy"]["what"]
    assert "kill 4711" in found["busy"]["fix"]
    assert "card 6" in found["link"]["what"]
    # A job that takes the first card alone has nothing to fear from the others.
    found = doctor(host, "--cards", "1", FAKE_HCCN_DOWN=" 6 ")
    assert statuses(found, "health", "busy", "link") == ["pass"] * 3


def test_a_warning_of_npu_smi_is_a_warning(host: FakeHost) -> None:
    host.devices([0, 1]).npu_smi(info=info_hbm(2, health={1: "Warning"}))
    found = doctor(host)
    assert (found["health"]["status"], found["health"]["fix"]) == ("warn", "npu-smi info -t health -i 1 -c 0")
    warning = corpus("hosts", "npu-smi", "warning_partial_driver.txt").read_text()
    host.npu_smi(info=warning + info_hbm(2))
    assert "not be completely installed" in doctor(host)["health"]["what"]


@pytest.mark.parametrize(
    ("name", "said", "fix"),
    [
        ("no_card.txt", "no NPU card", "dmesg"),
        ("dcmi_init_failed.txt", "-8005", "reboot"),
        ("device_used.txt", "-8020", "end the container"),
    ],
)
def test_what_npu_smi_says_instead_of_cards(host: FakeHost, name: str, said: str, fix: str) -> None:
    host.npu_smi(info=corpus("hosts", "npu-smi", name).read_text())
    found = doctor(host)
    assert found["cards"]["status"] == "fail"
    assert said in found["cards"]["what"]
    assert fix in found["cards"]["fix"]


@pytest.mark.parametrize(
    ("mode", "status", "fix"),
    [
        ("hang", "fail", "in state D a card hangs"),
        ("crash", "fail", "dmesg"),
        ("endless", "fail", "in state D"),
        ("garbage", "warn", "npu-smi info"),  # perhaps only a table that is newer than this program
    ],
)
def test_npu_smi_that_is_no_use(host: FakeHost, mode: str, status: str, fix: str) -> None:
    host.devices([0, 1])
    found = doctor(host, FAKE_NPU_SMI_MODE=mode, LAUNCHER_PROBE_TIMEOUT_S="1")
    assert statuses(found, "cards", "health") == ["pass", status]
    assert "npu-smi" in found["health"]["what"]
    assert fix in found["health"]["fix"]


@pytest.mark.parametrize(
    ("name", "said"), [("dcmi_init_failed.txt", "-8005"), ("device_used.txt", "-8020"), ("no_card.txt", "no NPU card")]
)
def test_an_error_of_dcmi_fails_although_the_devices_are_there(host: FakeHost, name: str, said: str) -> None:
    host.devices([0, 1]).npu_smi(info=corpus("hosts", "npu-smi", name).read_text())
    found = doctor(host)
    assert found["health"]["status"] == "fail"
    assert said in found["health"]["what"]


def test_a_container_without_npu_smi_only_warns(host: FakeHost) -> None:
    host.devices([0, 1])
    found = doctor(host, PATH=os.defpath)
    assert statuses(found, "cards", "health", "device-nodes") == ["pass", "warn", "pass"]


def test_too_few_cards_and_variables_that_hide_them(host: FakeHost) -> None:
    host.devices([0, 1, 2, 3]).npu_smi(info=info_hbm(4))
    assert doctor(host, "--cards", "8")["cards"]["status"] == "fail"
    found = doctor(host, "--cards", "4", ASCEND_RT_VISIBLE_DEVICES="0,1")
    assert statuses(found, "cards", "visible") == ["fail", "pass"]
    found = doctor(host, ASCEND_RT_VISIBLE_DEVICES="0 1")
    assert (found["visible"]["status"], found["visible"]["fix"]) == ("fail", "export ASCEND_RT_VISIBLE_DEVICES=0,1,2,3")
    assert "no logic id 7" in doctor(host, ASCEND_RT_VISIBLE_DEVICES="0,7")["visible"]["what"]
    assert "none of which" in doctor(host, ASCEND_RT_VISIBLE_DEVICES="9")["cards"]["what"]
    assert "device 4 is not" in doctor(host, ASCEND_VISIBLE_DEVICES="0-4")["visible"]["what"]


def test_a_driver_too_old_and_a_cann_that_does_not_fit(host: FakeHost) -> None:
    host.devices([0]).npu_smi(info=info_hbm(1)).software(driver="24.1.RC2", cann="8.1.RC1")
    found = doctor(host)
    assert statuses(found, "cann", "driver") == ["fail", "fail"]
    assert found["cann"]["fix"] == "install CANN 9.0.0, or pip install mindspore==2.6.0 mindformers==1.5.0"
    assert found["driver"]["fix"] == "install driver 25.0.RC1"


def test_a_driver_that_is_half_installed(host: FakeHost) -> None:
    host.devices([0]).npu_smi(info=info_hbm(1)).write("etc/ascend_install.info", "Driver_Install_Status=no\n")
    findings = json.loads(host.run("doctor", "--format", "json").stdout)["findings"]
    assert [f["status"] for f in findings if f["id"] == "driver"] == ["fail", "pass"]


def test_hccn_conf_matters_with_several_hosts(host: FakeHost) -> None:
    host.devices([0, 1]).npu_smi(info=info_hbm(2))
    assert doctor(host, FAKE_HCCN_UNSET=" 1 ")["hccn"]["status"] == "warn"


def test_an_inventory_with_errors_is_a_finding(host: FakeHost) -> None:
    host.write("inv.yaml", "kind: A2\nhosts:\n- address: n\n- address: n\n")
    found = doctor(host, "-i", "inv.yaml")
    assert found["inventory"]["status"] == "fail"
    assert "name n stands twice" in found["inventory"]["what"]


# ------------------------------------------------------------------------------------------ single checks


def test_python_and_packages() -> None:
    assert [check_python(version).status for version in ((3, 9), (3, 10), (3, 11), (3, 12))] == [
        "fail", "pass", "pass", "fail",
    ]  # fmt: skip
    assert check_packages("2.9.0", "1.9.0").status == "pass"
    assert check_packages("2.7.0", "1.9.0").fix == "pip install mindspore==2.9.0"
    assert check_packages("2.9.0", "0.0.1").status == "warn"
    assert check_packages(None, "1.9.0").what == "mindspore not installed"
    assert check_packages(None, None).what == "mindspore and mindformers not installed"


@pytest.mark.parametrize("entry", MATRIX, ids=lambda entry: entry.mindformers)
def test_every_set_of_the_matrix_passes(entry: Any) -> None:
    software = Software(driver=entry.driver or "26.1.0", cann=entry.cann)
    assert check_packages(entry.mindspore[0], entry.mindformers).status == "pass"
    assert worst(check_triple(software, entry.mindspore[0])) == "pass"


def test_triple_without_cann_driver_or_known_mindspore() -> None:
    assert [f.status for f in check_triple(Software(), "2.9.0")] == ["fail", "fail"]
    assert [f.status for f in check_triple(Software(driver="1.0", cann="9.0.0"), "9.9.9")] == ["warn", "fail"]
    assert [f.status for f in check_triple(Software(driver="1.0", cann="77"), "2.9.0")] == ["warn", "pass"]
    assert [f.status for f in check_triple(Software(driver="1.0", cann="7"), "2.9.0")] == ["fail", "pass"]


def test_versions_sort_as_releases_do() -> None:
    order = [
        "8.0.RC1",
        "8.0.RC2.beta1",
        "8.0.RC3",
        "8.0.0",
        "8.1.RC1",
        "8.5.0",
        "24.1.RC2",
        "24.1.rc3",
        "24.1.0",
        "25.0.rc1.1",
    ]
    assert sorted(order[::-1], key=release_key) == order
    assert same_release("8.0.RC2", "8.0.rc2.beta1")
    assert not same_release("8.0.0", "8.0.RC1")
    assert release_key("nonsense") == (0, 0, 0, 1, 0)
    assert for_mindspore("2.6.0rc1") is for_cann("8.1.RC1")


def test_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {finding.id: finding.status for finding in check_programs(JobNeeds(programs=("nosuchprogram",)))}
    assert found["nosuchprogram"] == "fail"
    assert found["mpirun"] == "warn"
    (tmp_path / "mpirun").write_text("#!/bin/sh\n")
    (tmp_path / "mpirun").chmod(0o755)
    assert {f.id: f.status for f in check_programs(JobNeeds(programs=("mpirun",)))}["mpirun"] == "pass"


def test_host_names() -> None:
    assert check_host_name(["10.0.0.1"], "n", several=True).status == "pass"
    assert check_host_name(["127.0.1.1", "10.0.0.1"], "n", several=True).what == "n is 10.0.0.1"
    assert check_host_name(["127.0.1.1"], "n", several=True).status == "fail"
    assert check_host_name(["::1"], "n", several=False).status == "warn"
    assert check_host_name(None, "n", several=True).status == "fail"
    assert resolve("no-such-host.invalid") is None
    assert resolve("localhost")
    assert resolve("x" * 300) is None


def test_ports_in_use_are_found(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        assert check_scheduler_port(port).status == "fail"
        if port <= 65520 - 31:
            (finding,) = check_hccl_ports(tmp_path, {"HCCL_IF_BASE_PORT": str(port)})
            assert (finding.status, f"port {port} " in finding.what) == ("fail", True)
    assert check_scheduler_port(None).status == "pass"


@pytest.mark.parametrize("value", ["0", "65521", "x", "", "-1"])
def test_a_base_port_that_hccl_refuses(tmp_path: Path, value: str) -> None:
    (finding,) = check_hccl_ports(tmp_path, {"HCCL_IF_BASE_PORT": value})
    assert (finding.status, "EI0001" in finding.what) == ("fail", True)


@pytest.mark.parametrize(
    ("span", "reserved", "status"),
    [
        ("32768 60999", "", "warn"),
        ("32768 60999", "60000-60031", "pass"),
        ("32768 60999", "1,60000-60030", "warn"),
        ("32768 50000", "", "pass"),
        ("garbage", "x-y", "pass"),
    ],
)
def test_ports_that_the_system_may_hand_out(tmp_path: Path, span: str, reserved: str, status: str) -> None:
    host = FakeHost(root=tmp_path).write("proc/sys/net/ipv4/ip_local_port_range", span)
    host.write("proc/sys/net/ipv4/ip_local_reserved_ports", reserved + "\n")
    (finding,) = check_hccl_ports(tmp_path, {})
    assert finding.status == status or "in use" in finding.what


def test_shared_memory(tmp_path: Path) -> None:
    assert check_shared_memory(tmp_path).status == "warn"  # there is none
    (tmp_path / "dev" / "shm").mkdir(parents=True)
    assert check_shared_memory(tmp_path).status == "pass"  # the disk below tmp_path, larger than 1 GiB


def test_limits_are_those_of_the_process(tmp_path: Path) -> None:
    code = "from launcher.doctor.system import check_limits\nfor f in check_limits(16): print(f.status, f.fix)"

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 8192))

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, preexec_fn=lower, cwd=CHECKOUT
    )
    assert done.stdout.splitlines()[0] == "warn ulimit -n 8192"


def test_disk(tmp_path: Path) -> None:
    found = check_storage(JobNeeds(folder=tmp_path / "not" / "yet", checkpoint_bytes=1 << 20), 2)
    assert {finding.status for finding in found} == {"pass"}
    finding = next(iter(check_storage(JobNeeds(folder=tmp_path, checkpoint_bytes=1 << 57), 8)))
    assert (finding.status, "1048576 TiB" in finding.what) == ("fail", True)
    assert list(check_storage(JobNeeds(), 1)) == []
    finding = next(iter(check_storage(JobNeeds(folder=Path("/proc/x")), 1)))
    assert finding.status == "fail" or os.geteuid() == 0


def test_sizes() -> None:
    assert [size(n) for n in (0, 1023, 1024, 1536, 20 << 20, 3 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "20 MiB", "3.0 TiB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("env", "status"),
    [
        ({}, "pass"),
        ({"RANK_TABLE_FILE": ""}, "pass"),
        ({"RANK_TABLE_FILE": "x"}, "warn"),
        ({"HCCL_CONNECT_TIMEOUT": "60"}, "fail"),
        ({"HCCL_CONNECT_TIMEOUT": "soon"}, "fail"),
        ({"HCCL_CONNECT_TIMEOUT": "600", "HCCL_EXEC_TIMEOUT": "300"}, "fail"),
        ({"HCCL_CONNECT_TIMEOUT": "600", "HCCL_EXEC_TIMEOUT": "1800"}, "pass"),
        ({"HCCL_EXEC_TIMEOUT": "x"}, "fail"),
        ({"HCCL_INTRA_PCIE_ENABLE": "1", "HCCL_INTRA_ROCE_ENABLE": "1"}, "fail"),
    ],
)
def test_environment(env: dict[str, str], status: str) -> None:
    assert worst(check_environment(env)) == status


def test_addresses_and_links() -> None:
    conf = HccnConf(addresses={0: "10.0.0.1"})
    assert check_addresses(conf, [0], required=True).status == "pass"
    assert check_addresses(conf, [0, 1], required=True).status == "fail"
    assert check_addresses(conf, [0, 1], required=False).status == "warn"
    locked = HccnConf(fault="/etc/hccn.conf cannot be read: Permission denied")
    assert check_addresses(locked, [0], required=True).fix == "sudo chmod 644 /etc/hccn.conf, or run as root"
    assert check_addresses(HccnConf(bad_lines=("hccn.conf:1: x=y=z",)), [], required=False).status == "fail"
    assert links_finding([Port(device_id=0, link="UP")]).status == "pass"
    assert links_finding([Port(device_id=0, fault="denied"), Port(device_id=1, link="UP")]).status == "warn"
    assert links_finding([Port(device_id=0, link="DOWN"), Port(device_id=1, fault="denied")]).status == "fail"


def test_files_and_degrees(tmp_path: Path) -> None:
    there, locked = tmp_path / "a", tmp_path / "b"
    there.touch()
    locked.touch(mode=0)
    needs = JobNeeds(
        files=tuple(NeededFile(what="base checkpoint", path=p, fix="make it") for p in (there, locked, tmp_path / "c"))
    )
    found = list(check_files(needs))
    readable = "pass" if os.access(locked, os.R_OK) else "fail"  # root reads everything
    assert [finding.status for finding in found] == ["pass", readable, "fail"]
    assert found[0].id == "base-checkpoint"
    for data, model, stages, cards, status in (
        (2, 2, 2, 8, "pass"),
        (None, 2, 2, 8, "pass"),
        (4, 2, 2, 8, "fail"),
        (None, 3, 1, 8, "fail"),
        (2, 1, 1, None, "pass"),
    ):
        needs = JobNeeds(cards=cards, data_parallel=data, model_parallel=model, pipeline_stage=stages)
        assert [finding.status for finding in check_degrees(needs, 2)] == [status], (data, model, stages, cards)
    assert list(check_degrees(JobNeeds(), 2)) == []


def test_bfloat16() -> None:
    wants = JobNeeds(bfloat16=True)
    for kind, status in (
        ("A2", "pass"),
        ("A3", "pass"),
        ("950", "pass"),
        ("910", "fail"),
        ("310P", "fail"),
        (None, "warn"),
    ):
        assert [finding.status for finding in check_bfloat16(wants, {kind})] == [status]
    assert list(check_bfloat16(JobNeeds(), {"910"})) == []


def test_needs_of_a_spec(tmp_path: Path) -> None:
    spec = load_spec("llama_7b_lora")
    needs = needs_of_spec(spec, cards=8, folder=tmp_path)
    assert needs.cards == 8
    assert (needs.model_parallel, needs.pipeline_stage) == (1, 1)
    model = replace_model(spec.model, hidden_size=4096, num_layers=32, num_heads=32, n_kv_heads=None,
                          intermediate_size=11008, vocab_size=32000)  # fmt: skip
    assert parameter_count(model) == 6_738_415_616  # LLaMA 7B (Touvron et al., arXiv:2302.13971)
    # 16-bit weights, LoRA r 16 on four projections of 32 layers with two float32 moments, keep + 1 of them.
    lora = 32 * 4 * 2 * 4096 * spec.lora.r if spec.lora else 0
    seven = spec.model_copy(update={"model": model})
    assert checkpoint_bytes(seven) == ((6_738_415_616 + lora) * 2 + lora * 8) * (spec.checkpoint.keep + 1)
    assert needs.copies(8) == 8


def replace_model(model: ModelSpec, **values: Any) -> ModelSpec:
    return model.model_copy(update=values)


def test_files_of_a_spec_are_looked_for(host: FakeHost) -> None:
    host.write("mine.yaml", spec_text(data="data: {train: rows.mindrecord}"))
    found = doctor(host, "mine.yaml")
    assert statuses(found, "dataset", "dataset-index") == ["fail", "fail"]
    host.write("rows.mindrecord", "").write("rows.mindrecord.db", "")
    found = doctor(host, "mine.yaml")
    assert statuses(found, "dataset", "dataset-index") == ["pass", "pass"]


# ---------------------------------------------------------------------------------------------- preflight


def test_cheap_checks_run_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost(root=tmp_path).software().devices([0, 1])
    for name, value in host.variables(path=str(tmp_path)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FAKE_NPU_SMI_MODE", "hang")
    cluster = Cluster(
        target="Ascend", kind="910", hosts=(Host(name="n", address="127.0.0.1", devices=(Device(device_id=0),)),)
    )
    started = time.monotonic()
    found = {
        finding.id: finding for finding in cheap_checks(cluster, JobNeeds(cards=1, bfloat16=True, folder=tmp_path))
    }
    assert time.monotonic() - started < 10
    assert found["bfloat16"].status == "fail"
    assert found["busy"].status == "pass"
    assert found["driver"].status == "pass"


def test_cheap_checks_find_who_has_a_card_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc" / "4711" / "fd").mkdir(parents=True)
    (tmp_path / "proc" / "4711" / "comm").write_text("python3\n")
    (tmp_path / "proc" / "4711" / "fd" / "3").symlink_to("/dev/davinci0")
    (tmp_path / "proc" / "12" / "fd").mkdir(parents=True)
    (tmp_path / "proc" / "12" / "fd" / "3").symlink_to("/dev/davinci_manager")
    monkeypatch.setenv("LAUNCHER_HOST_ROOT", str(tmp_path))
    devices = (Device(device_id=0), Device(device_id=1))
    cluster = Cluster(target="Ascend", hosts=(Host(name="n", address="127.0.0.1", devices=devices),))
    busy = next(finding for finding in cheap_checks(cluster, JobNeeds()) if finding.id == "busy")
    assert (busy.status, busy.what) == ("warn", "pid 4711 (python3) has card 0 open")


def test_cheap_checks_on_the_cpu() -> None:
    cluster = Cluster(target="CPU", hosts=(Host(name="n", address="127.0.0.1", devices=(Device(device_id=0),)),))
    found = cheap_checks(cluster, JobNeeds())
    assert {"cann", "driver", "busy", "hccl-ports"}.isdisjoint(finding.id for finding in found)


# ------------------------------------------------------------------------------------------- other hosts


def two_hosts() -> Cluster:
    names = ("203.0.113.1", "203.0.113.2")
    return Cluster(
        target="Ascend", kind="A2", hosts=tuple(Host(name=n, address=n, devices=(Device(device_id=0),)) for n in names)
    )


def checkup(address: str, **more: Any) -> Checkup:
    return Checkup(name=address, address=address, **more)


def test_clocks() -> None:
    good = checkup("a", ahead_s=0.2, error_s=0.1)
    assert clocks_finding([good]).status == "pass"
    late = clocks_finding([good, checkup("b", ahead_s=-40.0, error_s=0.1)])
    assert (late.status, "b is 40.0 s behind" in late.what) == ("warn", True)
    # A slow answer proves nothing: the difference must exceed what the answer's way may have taken.
    assert clocks_finding([checkup("d", ahead_s=2.5, error_s=2.0)]).status == "pass"


@pytest.mark.parametrize(
    ("fault", "fix"),
    [
        ("ssh: connect to host 203.0.113.1 port 22: Connection timed out", "ping 203.0.113.1: is the address right"),
        ("me@203.0.113.1: Permission denied (publickey).", "ssh-copy-id 203.0.113.1"),
        ("Host key verification failed.", "ssh 203.0.113.1, and compare its key"),
        ("/usr/bin/python3: No module named launcher", "install this launcher on 203.0.113.1"),
    ],
)
def test_hosts_that_do_not_answer_fail_with_what_fits(fault: str, fix: str) -> None:
    """It was a warning about clocks, with ssh-copy-id for a host that was down."""
    found = reached_finding([checkup("203.0.113.1", fault=fault), checkup("203.0.113.2", fault=fault)])
    assert (found.id, found.status) == ("hosts", "fail")
    assert "2 of 2 hosts do not answer: 203.0.113.1: " in found.what
    assert found.fix.startswith(fix)
    assert reached_finding([checkup("a"), checkup("b", fault=fault)]).status == "fail"
    assert reached_finding([checkup("a"), checkup("b")]).status == "pass"


def three(host: Host) -> tuple[Device, ...]:
    return tuple(Device(device_id=index, device_ip=f"10.1.{host.name[-1]}.{index}") for index in range(1, 4))


def test_the_rank_table_of_an_inventory_is_held_to_its_kind() -> None:
    without = two_hosts()
    hosts = tuple(
        replace(
            host, devices=tuple(Device(device_id=index, device_ip=f"10.1.{number}.{index}") for index in range(1, 4))
        )
        for number, host in enumerate(without.hosts)
    )
    good = replace(without, hosts=hosts)
    found = [check_rank_table(cluster) for cluster in (good, without, replace(good, kind="910"))]

    assert [finding.status for finding in found] == ["pass", "fail", "fail"]
    assert ("E_NO_IP" in found[1].what, "E_910_GROUP" in found[2].what) == (True, True)


def test_inventory_findings() -> None:
    assert list(check_inventory(JobNeeds())) == []
    assert [f.status for f in check_inventory(JobNeeds(hosts=two_hosts()))] == ["pass"]
    same = replace(two_hosts(), hosts=tuple(replace(host, name="x") for host in two_hosts().hosts))
    assert [f.status for f in check_inventory(JobNeeds(hosts=same))] == ["fail"]
    assert [f.status for f in check_inventory(JobNeeds(inventory_fault="bad"))] == ["fail"]


def test_the_worst_of_findings() -> None:
    good, slight, bad = passed("a", "b"), warned("a", "b", "c"), failed("a", "b", "c")
    assert [worst(findings) for findings in ([], [good], [good, slight], [bad, slight])] == [
        "pass", "pass", "warn", "fail",
    ]  # fmt: skip
    assert isinstance(good, Finding)
