"""Agents and their leader, for real: hosts in network namespaces, a shared folder, and what is said when one fails."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.events import read_events
from support.hosted import HOST_LIMITS, Hosted
from support.netlab import Lab, lab
from support.supervised import TIMEOUT_S, marked, report, wait_until

from launcher import jobs

TRAIN = "ready()\nfor n in range(1, 100000):\n    step(n, seconds=0.05)\n"

SAVES_WHEN_ASKED = """
from launcher.jobs.events import read_position
from launcher.worker.main import asked_to_stop_at
ready()
everybody = [paths.rank_position(other) for other in range(int(os.environ["RANK_SIZE"]))]
for n in range(1, 100000):
    step(n, seconds=0.02)
    while min(map(read_position, everybody)) < n:  # as collectives have them wait
        time.sleep(0.005)
    if n >= asked_to_stop_at(paths):
        break
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Lab]:
    with lab(2) as made:
        yield made


def test_ranks_of_both_hosts_train_and_the_job_succeeds(hosts: Lab, tmp_path: Path, no_survivors: str) -> None:
    program = "ready(); step(1); print('on', os.uname().nodename, os.environ['MS_SCHED_HOST'], flush=True)"
    job = Hosted(root=tmp_path / "job", program=program, mark=no_survivors, hosts=hosts.hosts, per_host=2)
    record = job.start().end()

    assert (record.state, record.exit_code, record.warnings) == (jobs.SUCCEEDED, 0, ())
    logs = [job.paths.rank_log(rank).read_text() for rank in range(4)]
    assert [line.split()[-3:] for line in logs] == [["on", f"node{n // 2 + 1}", "10.77.0.1"] for n in range(4)]
    assert [e["event"] for e in read_events(job.paths.rank_events(3))] == ["begin", "ready", "step", "done"]


def test_the_rank_that_failed_first_is_named_with_its_host_and_traceback(
    hosts: Lab, tmp_path: Path, no_survivors: str
) -> None:
    program = "step(1)\nif rank == 3:\n    raise ValueError('no luck')\ntime.sleep(600)"
    job = Hosted(root=tmp_path / "job", program=program, mark=no_survivors, hosts=hosts.hosts, per_host=2)
    record = job.start().end()

    assert (record.state, record.exit_code) == (jobs.FAILED, 7)
    assert report(record).startswith("rank 3 failed first, after step 1: ValueError: no luck\n")
    assert "on host node2, local rank 1, device 1" in report(record)
    assert "stopped by launcher afterwards: rank 2\n" in report(record)
    assert report(record).endswith("stopped by launcher afterwards, on other hosts: node1")


def test_a_host_that_dies_is_named_and_nothing_is_left_on_the_other(
    hosts: Lab, tmp_path: Path, no_survivors: str
) -> None:
    job = Hosted(root=tmp_path / "job", program=TRAIN, mark=no_survivors, hosts=hosts.hosts, per_host=2)
    job.start()
    job.wait_for_pids()
    for pid in job.on_host(1):  # all at once, as when the power goes
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    record = job.end()

    assert record.state == jobs.FAILED
    assert report(record).startswith("host node2 (10.77.0.2) failed first: it is lost: no sign of life for 3 s\n")
    assert "it had ranks 2-3" in report(record)
    assert record.verdict is not None
    assert (record.verdict["host"], record.verdict["retry"]) == ("node2", True)
    assert time.monotonic() - began < 10
    assert not marked(no_survivors)


def test_an_agent_that_stands_still_is_lost_and_ends_its_own_ranks(
    hosts: Lab, tmp_path: Path, no_survivors: str
) -> None:
    job = Hosted(root=tmp_path / "job", program=TRAIN, mark=no_survivors, hosts=hosts.hosts)
    job.start()
    job.wait_for_pids()
    agents = [p.pid for p in marked(no_survivors) if "node" in p.cmdline() and p.pid in job.on_host(1)]
    os.kill(max(agents), signal.SIGSTOP)
    record = job.end()

    assert report(record).startswith("host node2 (10.77.0.2) failed first: it is lost")
    wait_until(lambda: not marked(no_survivors), "the end of what the agent had started")


@pytest.mark.parametrize("node_rank", [0, 1])
def test_an_agent_that_is_killed_is_no_request_to_stop(
    hosts: Lab, tmp_path: Path, no_survivors: str, node_rank: int
) -> None:
    job = Hosted(root=tmp_path / "job", program=TRAIN, mark=no_survivors, hosts=hosts.hosts)
    job.start()
    job.wait_for_pids()
    job.agents[node_rank].kill()
    record = job.end()

    assert record.state == jobs.FAILED
    name = hosts.hosts[node_rank].name
    assert report(record).startswith(f"host {name} (10.77.0.{node_rank + 1}) failed first: its agent was killed")
    assert record.verdict is not None
    assert record.verdict["retry"]


def test_when_the_leader_is_lost_agents_end_everything_and_one_writes_the_verdict(
    hosts: Lab, tmp_path: Path, no_survivors: str
) -> None:
    job = Hosted(root=tmp_path / "job", program=TRAIN, mark=no_survivors, hosts=hosts.hosts)
    job.start()
    record = job.wait_for_pids()
    for process in (record.guard, record.supervisor):
        assert process is not None
        process.send(signal.SIGKILL)
    wait_until(lambda: not marked(no_survivors), "the end of all ranks")
    assert job.guard is not None
    job.guard.wait()
    for agent in job.agents:
        agent.wait(timeout=30)
    record = job.record()

    assert (record.state, record.exit_code) == (jobs.FAILED, 7)
    assert "from which the job was led, failed first: it is lost" in report(record)


def test_a_job_whose_folder_is_removed_ends_on_all_hosts(hosts: Lab, tmp_path: Path, no_survivors: str) -> None:
    job = Hosted(root=tmp_path / "job", program=TRAIN, mark=no_survivors, hosts=hosts.hosts)
    job.start()
    job.wait_for_pids()
    job.root.rename(tmp_path / "renamed")
    assert job.guard is not None
    job.guard.wait(timeout=TIMEOUT_S)
    wait_until(lambda: not marked(no_survivors), "the end of all agents")

    assert not job.root.exists()
    for agent in job.agents:
        agent.wait(timeout=30)


def test_a_stop_reaches_all_hosts_and_saves_after_the_same_step(hosts: Lab, tmp_path: Path, no_survivors: str) -> None:
    job = Hosted(root=tmp_path / "job", program=SAVES_WHEN_ASKED, mark=no_survivors, hosts=hosts.hosts, per_host=2)
    job.start()
    job.wait_for_pids()
    record = job.stop(save=True)

    assert (record.state, record.exit_code, record.warnings) == (jobs.CANCELLED, 143, ())
    last = {read_events(job.paths.rank_events(rank))[-2]["step"] for rank in range(4)}
    assert len(last) == 1
    assert record.note == f"saved at step {last.pop()}"


def test_a_signal_to_one_agent_stops_the_job_after_a_checkpoint(hosts: Lab, tmp_path: Path, no_survivors: str) -> None:
    job = Hosted(root=tmp_path / "job", program=SAVES_WHEN_ASKED, mark=no_survivors, hosts=hosts.hosts)
    job.start()
    job.wait_for_pids()
    job.agents[1].terminate()
    record = job.end()

    assert record.state == jobs.CANCELLED
    assert record.note is not None
    assert record.note.startswith("saved at step ")


def test_clocks_that_differ_do_not_hide_who_failed_first(hosts: Lab, tmp_path: Path, no_survivors: str) -> None:
    """Node 2 is a minute ahead: by its own clock, its failure comes after that of node 1, which follows from it."""
    (tmp_path / "sitecustomize.py").write_text("import time\nreal = time.time\ntime.time = lambda: real() + 60\n")
    program = """
    step(1)
    if rank == 1:
        time.sleep(2)
        raise ValueError('the cause')
    while True:
        time.sleep(0.2)
        from launcher.jobs.events import EventReader
        if any(e["event"] == "error" for e in EventReader(path=paths.rank_events(1)).records()):
            time.sleep(0.3)  # on a busy machine the clocks' difference is known less exactly
            raise RuntimeError('a victim')
    """
    job = Hosted(root=tmp_path / "job", program=program, mark=no_survivors, hosts=hosts.hosts)
    job.agent_env = {1: {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])}}
    record = job.start().end()

    assert report(record).startswith("rank 1 failed first, after step 1: ValueError: the cause\n")
    assert any("the clock of node2 is 60 s ahead of this host's" in warning for warning in record.warnings)


def test_hosts_that_do_not_fit_together_are_told_before_anything_runs(
    hosts: Lab, tmp_path: Path, no_survivors: str
) -> None:
    site = tmp_path / "site" / "mindspore-1.2.3.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: mindspore\nVersion: 1.2.3\n")
    paths = os.pathsep.join([str(site.parent), os.environ["PYTHONPATH"]])
    job = Hosted(root=tmp_path / "job", program=TRAIN, mark=no_survivors, hosts=hosts.hosts)
    job.agent_env = {1: {"PYTHONPATH": paths, "HCCL_EXEC_TIMEOUT": "60"}}
    job.addresses = ["10.77.0.1", "10.77.0.9"]
    record = job.start().end()

    assert record.state == jobs.FAILED
    lines = report(record).splitlines()
    assert lines[0] == "the hosts cannot run this job together"
    assert "  - node2: no interface has the address 10.77.0.9; it has 10.77.0.2, fd77::2" in lines
    assert any(line.startswith("  - node2 has mindspore 1.2.3, node1 has ") for line in lines)
    assert "  - node2 has HCCL_EXEC_TIMEOUT='60', node1 has ''; set the same on all hosts" in lines
    assert not job.paths.rank_log(0).exists()


def test_a_host_that_never_comes_is_named(hosts: Lab, tmp_path: Path, no_survivors: str) -> None:
    limits = replace(HOST_LIMITS, register_s=4.0)
    job = Hosted(root=tmp_path / "job", program=TRAIN, mark=no_survivors, hosts=hosts.hosts, limits=limits)
    job.starts_agents = False
    job.start()
    job.start_agents([0])
    record = job.end()

    assert report(record).startswith("host node2 (10.77.0.2) failed first: it did not report within 4 s")


def test_an_agent_without_the_shared_folder_says_so(hosts: Lab, tmp_path: Path, no_survivors: str) -> None:
    job = Hosted(root=tmp_path / "job", program=TRAIN, mark=no_survivors, hosts=hosts.hosts)
    job.root.mkdir()
    agent = job.agent(0, job=tmp_path / "elsewhere")

    assert agent.wait(timeout=60) == 6
    assert "is the jobs folder shared by all hosts, under the same path?" in (job.root / "agent_0.txt").read_text()


def test_ranks_that_make_no_progress_are_found_over_all_hosts(hosts: Lab, tmp_path: Path, no_survivors: str) -> None:
    program = "ready()\nfor n in range(1, 4):\n    step(n)\nif rank == 0:\n    position.enter(4)\ntime.sleep(600)"
    limits = replace(HOST_LIMITS, hang_timeout_s=3.0)
    job = Hosted(root=tmp_path / "job", program=program, mark=no_survivors, hosts=hosts.hosts, limits=limits)
    record = job.start().end()

    said = r"host node2 \(10\.77\.0\.2\) failed first: no progress: no rank finished a step for \d+ s"
    assert re.match(said, report(record))
    assert "not yet in step 4: rank 1" in report(record)


@pytest.mark.parametrize("kind", ["eval", "save"])
def test_an_evaluation_or_a_checkpoint_is_no_hang_on_several_hosts(
    hosts: Lab, tmp_path: Path, no_survivors: str, kind: str
) -> None:
    program = f"""
    ready(); step(1)
    if rank == 1:
        events.write("{kind}", step=1)
        time.sleep(6)
        events.write("{kind}", step=1, loss=1.0, seconds=6.0)
    else:
        time.sleep(6)
    step(2)
    """
    limits = replace(HOST_LIMITS, hang_timeout_s=2.0)
    job = Hosted(root=tmp_path / "job", program=program, mark=no_survivors, hosts=hosts.hosts, limits=limits)

    assert job.start().end().state == jobs.SUCCEEDED


def test_a_rank_that_does_not_start_is_found_over_all_hosts(hosts: Lab, tmp_path: Path, no_survivors: str) -> None:
    program = "if rank == 1:\n    time.sleep(600)\nready()\ntime.sleep(600)"
    limits = replace(HOST_LIMITS, start_timeout_s=4.0)
    job = Hosted(root=tmp_path / "job", program=program, mark=no_survivors, hosts=hosts.hosts, limits=limits)
    record = job.start().end()

    assert report(record).startswith("host node2 (10.77.0.2) failed first: rank 1 did not start within 4 s")


def test_a_failure_explains_why_another_rank_did_not_start(hosts: Lab, tmp_path: Path, no_survivors: str) -> None:
    """The agent of the rank that died is stopped meanwhile: its report comes after the leader has judged."""
    program = """
    import psutil
    if rank == 1:
        rank_agents = [p for p in psutil.Process().parents() if "node" in p.cmdline()]
        agent = rank_agents[0].pid
        os.kill(agent, signal.SIGSTOP)
        if os.fork() == 0:
            time.sleep(4)
            os.kill(agent, signal.SIGCONT)
            os._exit(0)
        raise ValueError("the cause")
    time.sleep(600)
    """
    limits = replace(HOST_LIMITS, start_timeout_s=3.0, lost_s=9.0)
    job = Hosted(root=tmp_path / "job", program=program, mark=no_survivors, hosts=hosts.hosts, limits=limits)
    record = job.start().end()

    assert "rank 1 failed first, before its first step: ValueError: the cause" in report(record)


def test_one_msrun_a_host(hosts: Lab, tmp_path: Path, no_survivors: str) -> None:
    job = Hosted(root=tmp_path / "job", program="ready(); step(1)", mark=no_survivors, hosts=hosts.hosts, per_host=2)
    job.engine = "msrun"
    record = job.start().end()

    assert record.state == jobs.SUCCEEDED
    assert [read_events(job.paths.rank_events(rank))[-1]["event"] for rank in range(4)] == ["exit"] * 4
