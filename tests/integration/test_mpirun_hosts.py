"""Open MPI across two hosts: its orted over ssh, and our worker's mapping of its ranks to MindSpore's cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.events import read_events
from support.netlab import lab, need
from support.sshlab import ssh_lab, wait_for_ssh
from support.supervised import long, marked, wait_until

from launcher.engines import ENGINES
from launcher.engines.base import EngineJob
from launcher.jobs import JobPaths

TRAIN = Path(__file__).parent / "faults" / "train.py"


@long
@pytest.mark.mindspore
def test_ranks_of_one_mpirun_on_two_hosts_train_together(tmp_path: Path, no_survivors: str) -> None:
    need("mpirun", "sshd")
    paths = JobPaths(root=tmp_path / "job")
    for folder in (paths.logs, paths.events, paths.work):
        folder.mkdir(parents=True)
    job = EngineJob(
        paths=paths, world_size=2, target="CPU", address="10.77.0.1", port=8200, rank_table="", program="mpirun",
        worker=(str(TRAIN),), env={"FAULT": "none", "LAUNCHER_TEST": no_survivors},
    )  # fmt: skip
    scheduler, mpirun = ENGINES["mpirun"].programs(job)
    (tmp_path / "ssh").mkdir()
    with lab(2) as made, ssh_lab(made, tmp_path / "ssh") as servers:
        wait_for_ssh(servers)
        sent = [part for name in (*mpirun.command.env, "PYTHONPATH") for part in ("-x", name)]
        network = ("--mca", "btl_tcp_if_include", "10.77.0.0/24", "--mca", "oob_tcp_if_include", "10.77.0.0/24")
        argv = (
            "mpirun", "--allow-run-as-root", "--bind-to", "none", "-H", "10.77.0.1:1,10.77.0.2:1", *network,
            "--mca", "plm_rsh_agent", f"ssh -F {servers.config}", *sent, "-n", "2",
            *mpirun.command.argv[mpirun.command.argv.index("-n") + 2 :],
        )  # fmt: skip
        head = made.hosts[0]
        first = subprocess.Popen(
            head.inside(*scheduler.command.argv), env={**os.environ, **scheduler.command.env}, cwd=paths.work
        )
        try:
            result = subprocess.run(
                head.inside(*argv), env={**os.environ, **mpirun.command.env}, cwd=paths.work, capture_output=True,
                text=True, timeout=240, check=False,
            )  # fmt: skip
        finally:
            first.kill()
            first.wait()
        wait_until(lambda: not marked(no_survivors), "the end of everything")

    assert result.returncode in (0, 139), result.stderr  # MindSpore's own exit crashes now and then
    for rank in (0, 1):
        events = read_events(paths.rank_events(rank))
        assert [e["step"] for e in events if e["event"] == "step"] == list(range(1, 9))
        assert {e["loss"] for e in events if e["event"] == "step"} == {2.0}
