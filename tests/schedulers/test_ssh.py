"""Jobs over ssh: two hosts in network namespaces, each with its own sshd and no shell of ours on them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.events import read_events
from support.hosted import HOST_LIMITS, Hosted
from support.netlab import lab
from support.sshlab import SshLab, ssh_lab, wait_for_ssh
from support.supervised import long, marked, report, wait_until

from launcher import jobs
from launcher.cli.output.status import status
from launcher.control import start
from launcher.observe.history import read_history
from launcher.observe.report import make_report
from launcher.plan.launch import read_launch
from launcher.schedulers.connection import forwarded, remote, ssh_argv

TRAIN = "ready()\nfor n in range(1, 100000):\n    step(n, seconds=0.05)\n"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshLab]:
    with lab(2) as made, ssh_lab(made, tmp_path_factory.mktemp("ssh")) as found:
        wait_for_ssh(found)
        yield found


def hosted(servers: SshLab, tmp_path: Path, mark: str, program: str = TRAIN, **more: Any) -> Hosted:
    settings = {
        "ssh_config": str(servers.config),
        "env": {"PATH": os.environ["PATH"], "LAUNCHER_TEST": mark},
    }
    job = Hosted(root=tmp_path / f"{mark[-6:]}-job", program=program, mark=mark, hosts=servers.lab.hosts, **more)
    job.scheduler, job.settings = "ssh", settings
    job.entered = servers.lab.client
    return job


def test_ranks_run_on_both_hosts_and_nothing_of_ssh_is_left(servers: SshLab, tmp_path: Path, no_survivors: str) -> None:
    program = "ready(); step(1); print('on', os.uname().nodename, flush=True)"
    job = hosted(servers, tmp_path, no_survivors, program, per_host=2)
    record = job.start().end()

    assert (record.state, record.warnings) == (jobs.SUCCEEDED, ())
    assert [job.paths.rank_log(rank).read_text().split()[-1] for rank in (0, 3)] == ["node1", "node2"]
    assert not [p for p in marked(job.paths.job_id.partition("-")[0]) if "ssh" in p.name()]


def test_a_rank_that_was_killed_is_started_again_on_the_same_hosts(
    servers: SshLab, tmp_path: Path, no_survivors: str
) -> None:
    program = "ready(); step(1)\nif rank == 1 and paths.attempt == 1:\n    os.kill(os.getpid(), 9)\nstep(2)"
    job = hosted(servers, tmp_path, no_survivors, program)
    job.limits = replace(HOST_LIMITS, max_restarts=1)
    record = job.start().end()

    assert (record.state, record.attempt) == (jobs.SUCCEEDED, 2)
    assert record.earlier[0]["reason"] == "killed by SIGKILL"


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshLab]:
    with lab(4) as made, ssh_lab(made, tmp_path_factory.mktemp("ssh4")) as found:
        wait_for_ssh(found)
        yield found


def with_spares(servers: SshLab, tmp_path: Path, mark: str, program: str, restarts: int) -> Hosted:
    """A job on node1 and node2, with the others as spares."""
    job = hosted(servers, tmp_path, mark, program)
    job.hosts, job.spares = servers.lab.hosts[:2], servers.lab.hosts[2:]
    job.__post_init__()  # its ranks follow from its hosts
    job.limits = replace(HOST_LIMITS, max_restarts=restarts)
    return job


# As checkpoints do, the file says how far all attempts have got.
DIES_ON_NODE2 = """
import pathlib
ready()
print('on', os.uname().nodename, flush=True)
step(1)
if os.uname().nodename == "node2":
    os.kill(os.getpid(), 9)
time.sleep(1)
step(2)
"""


def test_a_spare_host_takes_the_place_of_one_that_failed_twice(four: SshLab, tmp_path: Path, no_survivors: str) -> None:
    """The first spare cannot be reached, so the second is taken. It failed after the same step: without a spare it
    would end."""
    job = with_spares(four, tmp_path, no_survivors, DIES_ON_NODE2, restarts=4)
    four.lab.cut(four.lab.hosts[2])
    try:
        record = job.start().end()
    finally:
        four.lab.mend()

    assert (record.state, record.attempt) == (jobs.SUCCEEDED, 3)
    assert [entry["suspect"] for entry in record.earlier] == ["node2", "node2"]
    said = (
        "restart 2 of 4 after 2 s: a fault of the machine or of communication; "
        "node2 failed in attempt 1 too and is left out, node4 takes its place"
    )
    assert record.earlier[1]["restart"]["en"] == said
    events = read_events(job.paths.of_attempt(2).supervisor_events)
    assert [(e["event"], e["why"], e["left_out"], e["spare"]) for e in events] == [("restart", said, "node2", "node4")]
    paths = job.paths.of_attempt(3)
    assert [paths.rank_log(rank).read_text().split()[-1] for rank in (0, 1)] == ["node1", "node4"]
    bound = json.loads(paths.start.read_text())
    assert [(node["name"], node["address"]) for node in bound["nodes"]] == [
        ("node1", "10.77.0.1"), ("node4", "10.77.0.4"),
    ]  # fmt: skip
    # What a resume reads, and status shows.
    launch = read_launch(job.paths)
    assert ([n.name for n in launch.spares], launch.left_out) == (["node3"], ("node2",))
    text = status(paths, record)
    assert "2 hosts (node1, node4), spare: node3, left out: node2, engine" in text
    assert f"attempt 2 ended: killed by SIGKILL; {said}" in text
    assert said in make_report([read_history(paths, record)], "en")


def reached(job: Hosted, attempt: int) -> bool:
    return bool(job.record().attempt == attempt)


def test_a_host_that_is_off_is_replaced_and_without_a_spare_the_job_says_so(
    four: SshLab, tmp_path: Path, no_survivors: str
) -> None:
    """node2 goes off while it trains, and is still off when the job is started again; then so do the others."""
    job = with_spares(four, tmp_path, no_survivors, TRAIN, restarts=9)
    job.spares = job.spares[:1]
    job.start()
    try:
        for attempt, host in ((1, 1), (3, 2)):
            wait_until(partial(reached, job, attempt), f"attempt {attempt}")
            job.wait_for_pids()
            four.lab.cut(four.lab.hosts[host])
        record = job.end()
    finally:
        four.lab.mend()

    why = [entry["restart"]["en"] for entry in record.earlier]
    assert [entry["suspect"] for entry in record.earlier] == ["node2", "node2", "node3"]
    assert record.earlier[1]["reason"].startswith("host node2: no agent could be started there (exit code 255)")
    assert why[1].endswith("; node2 failed in attempt 1 too and is left out, node3 takes its place")
    assert (record.state, record.attempt) == (jobs.FAILED, 4)
    assert report(record).splitlines()[-1].endswith("; node3 failed in attempt 3 too, and no spare host is left")

    # What resume does once node3 is on again: the job goes on where it was, on the host that had taken node2's place.
    with job._inside():
        job.guard = start._begin_again_here(job.paths, record, read_launch(job.paths)).guard
    wait_until(partial(reached, job, 5), "attempt 5")
    going = job.wait_for_pids()
    assert not going.is_final, going.verdict
    bound = json.loads(job.paths.of_attempt(5).start.read_text())
    assert [node["name"] for node in bound["nodes"]] == ["node1", "node3"]
    assert job.stop().state == jobs.CANCELLED


def test_a_cut_link_is_named_and_both_sides_are_cleared(servers: SshLab, tmp_path: Path, no_survivors: str) -> None:
    job = hosted(servers, tmp_path, no_survivors).start()
    job.wait_for_pids()
    servers.lab.cut(servers.lab.hosts[1])
    try:
        began = time.monotonic()
        record = job.end()
        took = time.monotonic() - began
        wait_until(lambda: not marked(no_survivors), "the end on the host that is cut off")
    finally:
        servers.lab.mend()

    assert report(record).startswith("host node2 (10.77.0.2) failed first: it cannot be reached any more")
    assert took < 15


@pytest.mark.parametrize("victim", ["ssh", "leader"])
def test_killing_the_client_leaves_no_remote_process(
    servers: SshLab, tmp_path: Path, no_survivors: str, victim: str
) -> None:
    job = hosted(servers, tmp_path, no_survivors).start()
    record = job.wait_for_pids()
    began = time.monotonic()
    if victim == "ssh":
        for process in marked(job.paths.job_id.partition("-")[0]):
            with suppress(psutil.NoSuchProcess):  # it may be one that is just ending
                if process.name() == "ssh":
                    process.send_signal(signal.SIGKILL)
    else:
        for leader in (record.guard, record.supervisor):
            assert leader is not None
            leader.send(signal.SIGKILL)
    wait_until(lambda: not job.on_host(0) and not job.on_host(1), "the end of everything on the hosts")
    assert time.monotonic() - began < 10
    assert job.guard is not None
    job.guard.wait()
    wait_until(lambda: job.record().verdict, "the verdict")
    assert job.record().state == jobs.FAILED


def submit(
    servers: SshLab, folder: Path, *options: str, config: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """``launcher submit --scheduler ssh`` on the client."""
    argv = servers.lab.client.inside(
        sys.executable, "-m", "launcher", "submit", "tiny_cpu", "--scheduler", "ssh", "--ssh-config",
        str(config or servers.config), *options,
    )  # fmt: skip
    env = {**os.environ, "LAUNCHER_CACHE": str(folder / "cache")}
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_all_that_is_wrong_with_hosts_is_said_before_a_job_begins(servers: SshLab, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yaml"
    inventory.write_text("kind: CPU\nhosts:\n  - {address: 10.77.0.1}\n  - {address: 10.77.0.99}\n")
    result = submit(servers, tmp_path, "--inventory", str(inventory))

    assert result.returncode == 5
    assert "10.77.0.99: ssh: connect to host 10.77.0.99 port 22: No route to host" in result.stderr
    assert not list((tmp_path / "jobs").iterdir())


def test_a_spare_host_is_checked_like_the_others_before_a_job_begins(servers: SshLab, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yaml"
    inventory.write_text("kind: CPU\nhosts:\n  - {address: 10.77.0.1}\n  - {address: 10.77.0.99}\n")
    result = submit(servers, tmp_path, "--inventory", str(inventory), "--spare-hosts", "1", "--max-restarts", "2")

    assert result.returncode == 5
    assert "10.77.0.99: ssh: connect to host 10.77.0.99 port 22: No route to host" in result.stderr
    assert not list((tmp_path / "jobs").iterdir())


def test_a_host_whose_key_is_not_known_is_refused(servers: SshLab, tmp_path: Path) -> None:
    result = submit(servers, tmp_path, "--inventory", str(servers.inventory(tmp_path)), config=servers.unknown)

    assert result.returncode == 5
    assert result.stderr.count("Host key verification failed.") == 2
    assert "ssh-keyscan 10.77.0.2" in result.stderr


def test_a_host_whose_key_is_another_is_told_from_one_that_is_not_known(servers: SshLab, tmp_path: Path) -> None:
    """Its key must not be taken as a new host's is."""
    known = servers.config.with_name("known").read_text().splitlines()
    swapped = [
        f"{address} {key}"
        for address, key in zip(("10.77.0.2", "10.77.0.1"), (k.split(" ", 1)[1] for k in known), strict=True)
    ]
    (tmp_path / "swapped").write_text("\n".join(swapped) + "\n")
    config = tmp_path / "config"
    config.write_text(
        servers.config.read_text().replace(str(servers.config.with_name("known")), str(tmp_path / "swapped"))
    )
    result = submit(servers, tmp_path, "--inventory", str(servers.inventory(tmp_path)), config=config)

    assert "ssh-keygen -R 10.77.0.1" in result.stderr
    assert "ssh-keyscan" not in result.stderr


def test_a_jobs_folder_that_hosts_do_not_share_is_found(servers: SshLab, tmp_path: Path) -> None:
    """On a tmpfs that is mounted for the client alone."""
    inventory = servers.inventory(tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    script = f'mount -t tmpfs none {shlex.quote(str(own))} && exec "$@"'
    argv = servers.lab.client.inside(
        "unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "launcher", "submit", "tiny_cpu",
        "--scheduler", "ssh", "--ssh-config", str(servers.config), "--inventory", str(inventory),
        "--jobs-dir", str(own / "j"),
    )  # fmt: skip
    result = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    assert result.returncode == 5
    assert result.stderr.count("is the jobs folder shared by all hosts, under the same path?") == 2


@long
@pytest.mark.mindspore
def test_the_tiny_model_trains_over_both_hosts(servers: SshLab, tmp_path: Path) -> None:
    result = submit(
        servers, tmp_path, "--inventory", str(servers.inventory(tmp_path)), "--set", "training.steps=4",
        "--set", "training.epochs=1", "--set", "data.sample={size: 256, seed: 1}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "2 rank(s) on CPU, 4 steps." in result.stdout


# ------------------------------------------------------------------------------------------------ what is sent


def test_only_what_training_needs_is_sent() -> None:
    here = {
        "PATH": "/bin", "LD_LIBRARY_PATH": "/lib", "ASCEND_HOME_PATH": "/a", "HCCL_BUFFSIZE": "1", "MS_X": "y",
        "HOME": "/root", "AWS_SECRET": "s", "MS_ROLE": "MS_SCHED", "HCCL_IF_IP": "1.2.3.4", "MSX": "no",
    }  # fmt: skip
    assert sorted(forwarded(here)) == ["ASCEND_HOME_PATH", "HCCL_BUFFSIZE", "LD_LIBRARY_PATH", "MS_X", "PATH"]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_the_far_shell_gives_every_argument_back_as_it_was(words: list[str]) -> None:
    """As ssh does it: the last argument is one line for the login shell over there."""
    line = ssh_argv({}, "bcdfg-x", "node1", [sys.executable, "-c", "import sys; print(ascii(sys.argv[1:]))", *words])[
        -1
    ]
    result = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, timeout=20, check=True)
    assert result.stdout == ascii(words) + "\n"


def test_options_that_keep_ssh_from_asking_or_trusting() -> None:
    argv = ssh_argv({"ssh_config": "/c"}, "bcdfg-x", "10.0.0.1", ["true"])

    assert argv[:4] == ("ssh", "-F", "/c", "-T")
    assert argv[-3:] == ("--", "10.0.0.1", "true")
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "ControlMaster=auto", "ForwardAgent=no"} < set(argv)
    assert remote({"env": {"A": "b c"}}, ["x"])[:2] == ("env", "A=b c")
