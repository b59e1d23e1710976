"""Where ranks meet: addresses, ports, interfaces, time-outs, cards as they are found, and status files."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_host import FakeHost, info_hbm
from support.hosted import Hosted
from support.netlab import lab

from launcher import jobs
from launcher.cluster.model import Device
from launcher.cluster.rank_table import check_text, render_rank_table
from launcher.common.ports import free_port, is_free
from launcher.common.rendering import environment
from launcher.engines.base import tuning
from launcher.errors import HostError
from launcher.jobs import JobPaths
from launcher.plan.launch import Launch, NodePlace, RankPlace
from launcher.schedulers.registration import Registration, problems
from launcher.supervise.multinode.rendezvous import bind_hosts, cluster_of, host_env
from launcher.supervise.multinode.status_file import StatusFile, read_status


def host(number: int, cards: int = 2, **more: object) -> Registration:
    devices = tuple(
        asdict(Device(device_id=n, logic_id=n, device_ip=f"192.168.{number}.{n + 1}")) for n in range(cards)
    )
    values = {
        "name": f"node{number}", "time": 0.0, "versions": {"mindspore": "2.9.0"}, "target": "Ascend", "kind": "A2",
        "addresses": {"docker0": ("172.17.0.1",), "eth0": (f"10.0.0.{number}", f"fd00::{number}")},
        "port": 9000 + number, "devices": devices, **more,
    }  # fmt: skip
    return Registration(**values)  # type: ignore[arg-type]


def launch(cards: int = 2, **node: object) -> Launch:
    return Launch(
        engine="direct", target="Ascend", address="", port=0, program="", rank_table="/jobs/x/rank_table.json",
        ranks=tuple(
            RankPlace(rank_id=n, local_rank=n % cards, host="?", device_id=n % cards, node_rank=n // cards)
            for n in range(2 * cards)
        ),
        nodes=tuple(NodePlace(node_rank=n, name="?", address=f"10.0.0.{n + 1}", **node) for n in range(2)),  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_master_is_the_first_host_at_the_port_that_it_found_free() -> None:
    settled = bind_hosts(launch(), [host(1), host(2)])
    first, second = (settled.for_node(n).programs(JobPaths(root=Path("/jobs/x"))) for n in (0, 1))

    assert [program.name for program in first] == ["scheduler", "rank_0", "rank_1"]
    assert [program.name for program in second] == ["rank_2", "rank_3"]
    env = second[1].command.env
    assert (env["MS_SCHED_HOST"], env["MS_SCHED_PORT"], env["MS_WORKER_NUM"]) == ("10.0.0.1", "9001", "4")
    assert (env["RANK_ID"], env["MS_NODE_ID"], env["DEVICE_ID"], env["RANK_SIZE"]) == ("3", "3", "1", "4")


def test_hccl_is_told_each_hosts_own_address_and_interface() -> None:
    settled = bind_hosts(launch(), [host(1), host(2)])
    envs = [settled.for_node(n).programs(JobPaths(root=Path("/jobs/x")))[-1].command.env for n in (0, 1)]

    assert [env["HCCL_IF_IP"] for env in envs] == ["10.0.0.1", "10.0.0.2"]
    assert [env["HCCL_SOCKET_IFNAME"] for env in envs] == ["=eth0", "=eth0"]
    assert [env["HCCL_SOCKET_FAMILY"] for env in envs] == ["AF_INET", "AF_INET"]
    assert host_env("fd00::1", "eth0")["HCCL_SOCKET_FAMILY"] == "AF_INET6"


def test_what_is_set_on_a_host_or_in_the_spec_wins() -> None:
    settled = bind_hosts(launch(), [host(1, variables={"HCCL_SOCKET_IFNAME": "bond0"}), host(2)])

    assert "HCCL_SOCKET_IFNAME" not in settled.nodes[0].env
    own = replace(settled, env={"HCCL_IF_IP": "10.9.9.9"}).for_node(1)
    assert own.env["HCCL_IF_IP"] == "10.9.9.9"


def test_addresses_of_two_families_are_refused() -> None:
    mixed = replace(launch(), nodes=(NodePlace(node_rank=0, name="a", address="10.0.0.1"),
                                     NodePlace(node_rank=1, name="b", address="fd00::2")))  # fmt: skip
    with pytest.raises(HostError, match=r"IPv4 and IPv6 addresses are mixed: node1 10\.0\.0\.1, node2 fd00::2"):
        bind_hosts(mixed, [host(1), host(2)])


def test_one_msrun_a_host_gets_its_place() -> None:
    settled = replace(bind_hosts(launch(), [host(1), host(2)]), engine="msrun", program="/bin/msrun")
    (program,) = settled.for_node(1).programs(JobPaths(root=Path("/jobs/x")))

    assert program.command.argv[1:6] == (
        "--worker_num=4", "--local_worker_num=2", "--node_rank=1", "--master_addr=10.0.0.1", "--master_port=9001",
    )  # fmt: skip


def test_the_rank_table_is_of_the_cards_that_were_found_and_has_no_errors() -> None:
    found = [host(1), host(2)]
    file = render_rank_table(environment(), cluster_of(bind_hosts(launch(), found), found))

    assert not check_text(file.text, "t").of_level("E")
    assert '"device_ip": "192.168.2.2"' in file.text
    assert file.text.index('"192.168.1.1"') < file.text.index('"192.168.2.1"')


def test_a_card_that_an_inventory_names_must_be_there() -> None:
    with pytest.raises(HostError, match="node1 has no card 1"):
        bind_hosts(launch(visible=(0, 1)), [host(1, cards=1), host(2)])


def test_everything_in_which_hosts_differ_is_listed() -> None:
    odd = host(2, cards=1, versions={"mindspore": "2.7.0"}, kind="910", variables={"HCCL_EXEC_TIMEOUT": "60"})
    named_twice = replace(odd, name="node1")
    lines = problems(launch().nodes, launch().ranks, [host(1), named_twice])

    assert lines == [
        "2 hosts have the name node1; give each its own",
        "node1: 1 card(s) can be used, the job needs 2",
        "node1 has mindspore 2.7.0, node1 has 2.9.0; install the same on all hosts",
        "node1 has cards of kind 910, node1 of kind A2",
        "node1 has HCCL_EXEC_TIMEOUT='60', node1 has ''; set the same on all hosts",
    ]
    assert problems(launch().nodes, launch().ranks, [host(1), host(2)]) == []


def test_one_scheduler_of_many_ranks_gets_more_time() -> None:
    assert tuning(128) == {"MS_RETRY_INTERVAL_LOWER": "1", "MS_RETRY_INTERVAL_UPPER": "1"}
    assert tuning(129)["MS_NODE_TIMEOUT"] == "900"


def test_ports_of_ipv6_addresses_are_tried_too() -> None:
    if not Path("/proc/net/if_inet6").read_text():
        pytest.skip("this machine has no IPv6")
    port = free_port("::1")
    assert is_free(port, "::1")


def test_hosts_with_ipv6_addresses_meet_there(tmp_path: Path, no_survivors: str) -> None:
    with lab(2) as made:
        program = "ready(); step(1); print(os.environ['MS_SCHED_HOST'], flush=True)"
        job = Hosted(root=tmp_path / "job", program=program, mark=no_survivors, hosts=made.hosts)
        job.addresses = [host.v6 for host in made.hosts]
        record = job.start().end()

    assert record.state == jobs.SUCCEEDED
    assert job.paths.rank_log(1).read_text().split()[-1] == "fd77::1"


def test_cards_of_two_hosts_are_found_numbered_and_given_to_their_ranks(tmp_path: Path, no_survivors: str) -> None:
    """Two hosts with stand-ins for the driver; the second one lets the job have cards 4 to 7 alone."""
    with lab(2) as made:
        job = Hosted(root=tmp_path / "job", program="ready(); step(1)", mark=no_survivors, hosts=made.hosts, per_host=4)
        job.program = "ready(); step(1); print(os.environ['ASCEND_RT_VISIBLE_DEVICES'], os.environ['HCCL_IF_IP'])"
        job.target = "Ascend"
        for number, more in enumerate(({}, {"ASCEND_RT_VISIBLE_DEVICES": "4,5,6,7"})):
            fake = FakeHost(root=tmp_path / f"host{number}").devices(list(range(8))).software().npu_smi(info=info_hbm())
            lines = "".join(f"address_{card}=192.168.{number}.{card + 1}\n" for card in range(8))
            fake.write("etc/hccn.conf", lines)
            job.agent_env[number] = {**fake.variables(), "PYTHONPATH": os.environ["PYTHONPATH"], **more,
                                     "LAUNCHER_LOCKS": str(tmp_path / f"locks{number}")}  # fmt: skip
        record = job.start().end()

    assert record.state == jobs.SUCCEEDED, record
    assert job.paths.rank_log(0).read_text().split()[-2:] == ["0,1,2,3", "10.77.0.1"]
    assert job.paths.rank_log(7).read_text().split()[-2:] == ["4,5,6,7", "10.77.0.2"]
    table = (job.root / "rank_table.json").read_text()
    assert not check_text(table, "t").of_level("E")
    assert '"192.168.1.5"' in table
    assert '"192.168.1.1"' not in table


# ------------------------------------------------------------------------------------------------ status files


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text()), min_size=1, max_size=4))
def test_a_status_file_says_what_was_written_last(documents: list[dict[str, object]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        status_file = StatusFile(Path(folder) / "s")
        for document in documents:
            status_file.write(document)
            assert read_status(status_file.path) == document


def test_a_writer_that_was_started_anew_says_less_than_the_one_before(tmp_path: Path) -> None:
    StatusFile(tmp_path / "s").write({"state": "running", "note": "x" * 900})
    StatusFile(tmp_path / "s").write({"state": "here"})
    assert read_status(tmp_path / "s") == {"state": "here"}


def test_a_status_file_is_never_read_half(tmp_path: Path) -> None:
    """A process writes documents of two lengths in turn; every reading is one of them, or nothing."""
    path = tmp_path / "s"
    code = (
        "import sys; from pathlib import Path; from launcher.supervise.multinode.status_file import StatusFile\n"
        "s = StatusFile(Path(sys.argv[1]))\n"
        "for n in range(20000): s.write({'n': n, 'x': 'y' * (n % 2 * 900)})"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    seen, wrong = 0, 0
    while writer.poll() is None:
        document = read_status(path)
        if document is not None:
            seen += 1
            wrong += len(document["x"]) != document["n"] % 2 * 900
    assert seen > 100
    assert wrong == 0


def test_what_is_no_status_file_is_nothing(tmp_path: Path) -> None:
    for text in (b"", b"zz {}", b"00000000 {}", b'{"a": 1}', b"\xff\xfe"):
        (tmp_path / "s").write_bytes(text)
        assert read_status(tmp_path / "s") is None
    assert read_status(tmp_path / "missing") is None
