"""What engines are told to start: argv and environment, held by hand."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.cluster.model import Cluster, Device, Host
from launcher.engines import ENGINES
from launcher.engines.base import EngineJob, Told, find
from launcher.errors import HostError
from launcher.jobs import JobPaths
from launcher.plan.launch import Launch, Limits
from launcher.plan.placement import Placement, RunOptions, make_launch

PATHS = JobPaths(root=Path("/jobs/bcdfg-x"))


def engine_job(world_size: int = 2, target: str = "CPU", visible: tuple[int, ...] = ()) -> EngineJob:
    return EngineJob(
        paths=PATHS,
        world_size=world_size,
        target=target,
        address="127.0.0.1",
        port=8200,
        rank_table="/jobs/bcdfg-x/rank_table.json",
        visible=visible,
        program="/opt/bin/program",
        env={"MINE": "1"},
    )


def test_msrun_joins_and_gets_a_port_logs_and_the_rank_table() -> None:
    (program,) = ENGINES["msrun"].programs(engine_job())

    assert program.name == "msrun"
    assert program.command.argv == (
        "/opt/bin/program", "--worker_num=2", "--local_worker_num=2", "--node_rank=0", "--master_addr=127.0.0.1",
        "--master_port=8200", "--log_dir=/jobs/bcdfg-x/attempts/1/logs", "--join=True",
        "--tail_worker_log=2", "--cluster_time_out=300",
        "--rank_table_file=/jobs/bcdfg-x/rank_table.json", "python", "-m", "launcher.worker", "/jobs/bcdfg-x",
    )  # fmt: skip


def test_direct_starts_a_scheduler_and_every_rank() -> None:
    scheduler, *ranks = ENGINES["direct"].programs(engine_job())

    assert scheduler.command.env["MS_ROLE"] == "MS_SCHED"
    assert [rank.rank_id for rank in ranks] == [0, 1]
    for rank_id, rank in enumerate(ranks):
        env = rank.command.env
        assert (env["MS_ROLE"], env["MS_NODE_ID"], env["RANK_ID"]) == ("MS_WORKER", str(rank_id), str(rank_id))
        assert (env["MS_WORKER_NUM"], env["MS_SCHED_HOST"], env["MS_SCHED_PORT"]) == ("2", "127.0.0.1", "8200")
        assert (env["DEVICE_ID"], env["RANK_SIZE"]) == (str(rank_id), "2")


def test_one_rank_needs_no_scheduler() -> None:
    for name in ("direct", "mpirun"):
        (program,) = ENGINES[name].programs(engine_job(world_size=1))
        assert "MS_SCHED_HOST" not in program.command.env


def test_mpirun_spawns_dynamic_cluster_workers_on_cpu_and_leaves_ascend_to_hccl() -> None:
    scheduler, mpirun = ENGINES["mpirun"].programs(engine_job())
    (alone,) = ENGINES["mpirun"].programs(engine_job(target="Ascend", visible=(0, 1)))

    assert (scheduler.name, mpirun.name, alone.name) == ("scheduler", "mpirun", "mpirun")
    assert ("--allow-run-as-root" in mpirun.command.argv) == (os.geteuid() == 0)
    assert mpirun.command.argv[mpirun.command.argv.index("-n") + 1] == "2"
    assert mpirun.command.env["MS_SCHED_PORT"] == "8200"
    assert not {"MS_ROLE", "MS_SCHED_HOST", "RANK_TABLE_FILE"} & set(alone.command.env)


@pytest.mark.parametrize("name", ENGINES)
def test_all_programs_are_tuned_and_see_only_the_chosen_cards(name: str) -> None:
    for program in ENGINES[name].programs(engine_job(target="Ascend", visible=(4, 6))):
        env = program.command.env
        assert env["ASCEND_RT_VISIBLE_DEVICES"] == "4,6"
        assert (env["MS_RETRY_INTERVAL_LOWER"], env["MS_RETRY_INTERVAL_UPPER"]) == ("1", "1")
        assert (env["MINE"], env["LAUNCHER_ENGINE"], env["LAUNCHER_ATTEMPT"]) == ("1", name, "1")


def test_logs_of_another_attempt_go_elsewhere() -> None:
    (program,) = ENGINES["msrun"].programs(replace(engine_job(), paths=PATHS.of_attempt(3)))

    assert "--log_dir=/jobs/bcdfg-x/attempts/3/logs" in program.command.argv
    assert program.command.env["LAUNCHER_ATTEMPT"] == "3"


def test_a_launch_reads_back_as_it_was_written() -> None:
    devices = tuple(Device(device_id=n, logic_id=n - 4) for n in (4, 6))
    cluster = Cluster(target="Ascend", hosts=(Host(name="node0", address="10.0.0.1", devices=devices),))
    limits = Limits(hang_timeout_s=5.0, max_restarts=2)
    options = RunOptions(engine="direct", limits=limits, wait_for_cards=True, port=8200)
    launch = make_launch(Placement(cluster=cluster), PATHS, env={"A": "b"}, options=options)

    assert Launch.from_json(launch.to_json()) == launch
    assert launch.visible == (0, 2)
    assert launch.locks == ("card_4", "card_6")
    assert [rank.device_id for rank in launch.ranks] == [4, 6]


def test_a_folder_on_path_that_cannot_be_looked_into_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join(["/" + "a" * 300, "/bin"]))

    assert find("sh", "") == "/bin/sh"
    with pytest.raises(HostError, match="nor on PATH"):
        find("no-such-program", "install it")


NON_ZERO = """
mpirun detected that one or more processes exited with non-zero status, thus causing
the job to be terminated. The first process to do so was:

  Process name: [{name},3]
  Exit code:    7
"""
SIGNALLED = "mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 9 (Killed)."


@pytest.mark.parametrize(
    ("name", "said", "told"),
    [
        ("mpirun", NON_ZERO.format(name="[16433,1]"), Told(rank_id=3, code=7)),
        ("mpirun", NON_ZERO.format(name="prterun-node0-4711@1"), Told(rank_id=3, code=7)),
        ("mpirun", SIGNALLED, Told(rank_id=1, code=-9)),
        ("mpirun", "rank 1 of signal 9", None),
        ("msrun", "Worker process 4711 exit with exception. Error code: -9.", Told(pid=4711, code=-9)),
        ("msrun", "All workers successfully exit!", None),
        ("direct", SIGNALLED, None),
    ],
)
def test_what_an_engine_says_of_the_first_rank_that_failed_is_read(name: str, said: str, told: Told | None) -> None:
    assert ENGINES[name].told(said) == told
