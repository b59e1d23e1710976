"""Jobs under a real Slurm of two nodes on this machine, and batch scripts that hold hostile names."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.events import read_events
from support.hosted import HOST_LIMITS, Hosted
from support.netlab import lab
from support.slurmlab import SlurmLab, slurm_lab
from support.supervised import long, marked, report, wait_until

from launcher import api, jobs
from launcher.cli.output import following, show
from launcher.cli.output.status import status
from launcher.cluster.model import Cluster, Device, Host
from launcher.common.ports import free_port
from launcher.common.processes import ProcessId
from launcher.control.follow import raise_for_end
from launcher.errors import JobCancelled, JobFailed, SpecError
from launcher.jobs import JobPaths, JobRecord
from launcher.plan.launch import Launch, Limits, NodePlace, RankPlace, write_launch
from launcher.schedulers.base import Written
from launcher.schedulers.granted import granted, indices_of, node_names
from launcher.schedulers.slurm import SlurmOptions, limit_s, placement, render_array, render_script
from launcher.sweeps.record import find, read

TRAIN = """
from launcher.worker.main import asked_to_stop_at
from pathlib import Path
ready()
first = 1
if paths.resume.is_dir():
    first = 1 + int(next((paths.resume / f"rank_{rank}").iterdir()).name.rsplit("_", 1)[1].partition(".")[0])
for n in range(first, int(os.environ.get("STEPS", "100000")) + 1):
    step(n, seconds=0.03)
    if n >= asked_to_stop_at(paths):
        break
file = paths.checkpoints / f"rank_{rank}" / f"t_rank_{rank}-1_{n}.safetensors"
file.parent.mkdir(parents=True, exist_ok=True)
header = b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
file.write_bytes(len(header).to_bytes(8, "little") + header + b"xxxx")
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmLab]:
    with lab(2) as made, slurm_lab(made) as found:
        yield found


class Queued(Hosted):
    """A job that is given to Slurm as submit does it, by a command on the first node."""

    slurm: SlurmLab

    def command(self, code: str) -> str:
        result = subprocess.run(
            self.hosts[0].inside(sys.executable, "-c", code, str(self.root)),
            env={**self.slurm.env, "LAUNCHER_TEST": self.mark}, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def launcher(self, *arguments: str, code: int = 0) -> str:
        argv = (sys.executable, "-m", "launcher", *arguments, "--jobs-dir", str(self.root.parent))
        result = subprocess.run(
            self.hosts[0].inside(*argv), env={**self.slurm.env, "LAUNCHER_TEST": self.mark}, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        assert result.returncode == code, result.stderr
        return result.stdout + result.stderr

    def start(self) -> Queued:
        self.prepare(host="")
        self.command(
            "import sys; from pathlib import Path; from launcher import jobs; from launcher.jobs import JobPaths\n"
            "from launcher.plan.launch import read_launch; from launcher.schedulers.slurm import submit\n"
            "p = JobPaths(root=Path(sys.argv[1])); submit(read_launch(p), p, jobs.read_record(p))"
        )
        return self

    @property
    def number(self) -> str:
        return self.record().scheduler_job

    def end(self) -> JobRecord:
        wait_until(lambda: self.record().is_final, "the end")
        wait_until(lambda: not marked(self.mark), "the end of everything")
        return self.record()

    def supervisor_log(self) -> str:
        return super().supervisor_log() + self.slurm.logs()


def queued(slurm: SlurmLab, tmp_path: Path, mark: str, program: str = TRAIN, **more: Any) -> Queued:
    options = {"partition": "low", "sbatch": (), **more.pop("options", {})}
    env = more.pop("env", {})
    job = Queued(root=tmp_path / f"{mark[-5:]}-a 'b", program=program, mark=mark, hosts=slurm.lab.hosts, **more)
    job.limits, job.env = HOST_LIMITS, env
    defaults = {"account": None, "time_limit": None, "gres": None, "exclusive": False, "requeue": True}
    job.scheduler, job.settings = "slurm", {"options": {**defaults, **options}}
    job.addresses = ["", ""]
    job.slurm = slurm
    return job


def test_ranks_run_on_both_nodes(slurm: SlurmLab, tmp_path: Path, no_survivors: str) -> None:
    job = queued(slurm, tmp_path, no_survivors, env={"STEPS": "3"}, per_host=2)
    record = job.start().end()

    assert (record.state, record.exit_code, record.warnings) == (jobs.SUCCEEDED, 0, ()), job.supervisor_log()
    nodes = Launch.from_json(job.paths.start.read_text()).nodes
    assert [(node.name, node.address) for node in nodes] == [("node1", "10.77.0.1"), ("node2", "10.77.0.2")]
    wait_until(lambda: "COMPLETED" in slurm.run("scontrol", "show", "job", job.number), "Slurm's own end")
    assert "2 hosts (node1, node2)" in job.launcher("status", job.root.name)


def test_the_verdict_is_ours_and_not_slurms(slurm: SlurmLab, tmp_path: Path, no_survivors: str) -> None:
    program = "step(1)\nif rank == 1:\n    raise ValueError('no luck')\ntime.sleep(600)"
    job = queued(slurm, tmp_path, no_survivors, program)
    record = job.start().end()

    assert (record.state, record.exit_code) == (jobs.FAILED, 7)
    assert report(record).startswith("rank 1 failed first, after step 1: ValueError: no luck\n")
    assert "on host node2" in report(record)


def test_preempted_queued_again_and_resumed(slurm: SlurmLab, tmp_path: Path, no_survivors: str) -> None:
    job = queued(slurm, tmp_path, no_survivors, env={"STEPS": "300"})
    job.start()
    job.wait_for_pids()
    other = slurm.run(
        "sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2"
    )
    wait_until(lambda: job.record().state == jobs.PLANNED, "preemption")
    note = job.record().note
    assert note is not None
    assert f"Slurm job {job.number}: preempted, queued again; saved at step " in note, job.supervisor_log()
    saved = int(note.rsplit(" ", 1)[1])
    wait_until(lambda: not marked(no_survivors), "an empty machine")
    record = job.end()

    assert record.state == jobs.SUCCEEDED, job.supervisor_log()
    assert (record.attempt, record.earlier[0]["attempt"]) == (2, 1)
    steps = [e["step"] for e in read_events(job.paths.rank_events(1)) if e["event"] == "step"]
    assert (steps[0], steps[-1]) == (saved + 1, 300)
    assert other in slurm.run("squeue", "--states=all", "-h", "-o", "%i")


@long
def test_the_signal_before_the_time_limit_saves_and_queues_again(
    slurm: SlurmLab, tmp_path: Path, no_survivors: str
) -> None:
    job = queued(slurm, tmp_path, no_survivors, env={"STEPS": "300"}, options={"time_limit": "30"})
    job.start()
    job.wait_for_pids()
    assert "--signal=B:USR1@" in (job.root / "slurm.sbatch").read_text()
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)  # as Slurm does it, only sooner
    wait_until(lambda: job.record().state == jobs.PLANNED, "a place in the queue")
    slurm.run("scontrol", "hold", job.number)
    shown = job.launcher("status", job.paths.job_id)
    slurm.run("scontrol", "release", job.number)
    record = job.end()

    assert re.search(rf"Slurm job {job.number}: pending \(.*\); saved at step \d+\)", shown), shown
    assert (record.state, record.attempt) == (jobs.SUCCEEDED, 2), job.supervisor_log()


def test_a_time_limit_that_lets_nothing_be_saved_is_no_reason_to_queue_again(
    slurm: SlurmLab, tmp_path: Path, no_survivors: str
) -> None:
    job = queued(slurm, tmp_path, no_survivors, program="ready()\ntime.sleep(60)", options={"time_limit": "30"})
    job.start()
    wait_until(lambda: job.record().state == jobs.RUNNING, "ranks that are ready")
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)
    record = job.end()

    assert (record.state, record.attempt) == (jobs.FAILED, 1), job.supervisor_log()
    assert "Slurm's time limit came before a step was saved" in report(record)
    assert "with a longer --time" in report(record)


@long
def test_launcher_stop_saves_and_does_not_queue_again_and_resume_goes_on(
    slurm: SlurmLab, tmp_path: Path, no_survivors: str
) -> None:
    job = queued(slurm, tmp_path, no_survivors, env={"STEPS": "300"})
    job.start()
    job.wait_for_pids()
    said = job.launcher("stop", job.root.name, "--save")
    record = job.end()

    assert record.state == jobs.CANCELLED
    assert "saved at step" in said
    assert "Queued again" in job.launcher("resume", job.root.name, "--detach")
    record = job.end()
    assert (record.state, record.attempt) == (jobs.SUCCEEDED, 2), job.supervisor_log()


def test_scancel_ends_everything_and_is_no_reason_to_go_on(slurm: SlurmLab, tmp_path: Path, no_survivors: str) -> None:
    job = queued(slurm, tmp_path, no_survivors)
    job.start()
    job.wait_for_pids()
    began = time.monotonic()
    slurm.run("scancel", job.number)
    record = job.end()

    assert record.state == jobs.CANCELLED, job.supervisor_log()
    assert time.monotonic() - began < 20


def test_a_job_that_waits_says_why_and_can_be_stopped(slurm: SlurmLab, tmp_path: Path, no_survivors: str) -> None:
    job = queued(slurm, tmp_path, no_survivors, options={"sbatch": ("begin=now+3600",)})
    job.start()

    wait_until(lambda: "pending (BeginTime)" in job.launcher("status", job.root.name), "the reason")
    job.launcher("stop", job.root.name)
    assert job.record().state == jobs.CANCELLED


def test_an_array_runs_as_many_as_it_may_at_a_time(slurm: SlurmLab, tmp_path: Path, no_survivors: str) -> None:
    """There is room for two: each asks for one node."""
    made = [queued(slurm, tmp_path / str(place), no_survivors, env={"STEPS": "3"}) for place in range(3)]
    for job in made:
        job.hosts, job.ranks, job.addresses = slurm.lab.hosts[:1], 1, [""]
        job.root = tmp_path / "jobs" / f"{job.root.parent.name} a'b"
        job.prepare(host="")
    made[0].command(
        "import sys; from pathlib import Path; from launcher import jobs; from launcher.jobs import JobPaths\n"
        "from launcher.plan.launch import read_launch; from launcher.schedulers.slurm import submit_array\n"
        "from launcher.schedulers.base import Written\n"
        "every = [JobPaths(root=root) for root in sorted(Path(sys.argv[1]).parent.iterdir())]\n"
        "some = [Written(launch=read_launch(p), paths=p, record=jobs.read_record(p)) for p in every]\n"
        "submit_array(some, Path(sys.argv[1]).parents[1], name='tries', most=1)"
    )
    number = made[0].number.partition("_")[0]
    assert [job.number for job in made] == [f"{number}_{place}" for place in range(1, 4)]
    wait_until(lambda: "pending (JobArrayTaskLimit)" in made[1].launcher("status", made[1].root.name), "the ceiling")
    made[2].launcher("stop", made[2].root.name)
    records = [job.end() for job in made]

    assert [record.state for record in records] == [*[jobs.SUCCEEDED] * 2, jobs.CANCELLED], made[0].supervisor_log()
    assert str(records[0].ended) <= str(records[1].started)


SWEEP = (
    "sweep", "tiny_cpu", "--cards", "1", "--engine", "direct", "--set", "data.sample.size=64",
    "--grid", "lora.r=4,8,16", "--scheduler", "slurm", "--kind", "CPU", "--parallel", "2",
)  # fmt: skip


def test_a_sweep_is_one_array_and_stopping_it_empties_the_queue(
    slurm: SlurmLab, tmp_path: Path, no_survivors: str
) -> None:
    job = queued(slurm, tmp_path, no_survivors)
    sweep_id = job.launcher(*SWEEP, "--sbatch", "begin=now+3600", "--detach").splitlines()[-1]
    paths = find(sweep_id, job.root.parent)
    wait_until(lambda: all(trial.job_id for trial in read(paths).trials), "the jobs")
    records = [jobs.read_record(JobPaths(root=job.root.parent / trial.job_id)) for trial in read(paths).trials]
    numbers = [record.scheduler_job for record in records if record is not None]
    array = numbers[0].partition("_")[0]

    assert numbers == [f"{array}_{place}" for place in (1, 2, 3)]
    assert "--array=1-3%2\n" in (paths.root / "slurm.sbatch").read_text()
    assert slurm.run("squeue", "-h", "-j", array, "-o", "%K %j") == f"1-3%2 {sweep_id}"
    job.launcher("sweep", "stop", sweep_id)
    assert [trial.state for trial in read(paths).trials] == ["stopped"] * 3
    assert slurm.run("squeue", "-h", "-j", array) == ""


def test_an_array_that_sbatch_refuses_leaves_no_job_waiting(slurm: SlurmLab, tmp_path: Path, no_survivors: str) -> None:
    job = queued(slurm, tmp_path, no_survivors)
    said = job.launcher(*SWEEP, "--partition", "nope", code=7)

    assert said.count(" refused: lora.r=") == 3
    assert "sbatch refused the job: sbatch: error: invalid partition specified: nope" in said
    records = [jobs.read_record(JobPaths(root=root)) for root in job.root.parent.iterdir() if root.name != "sweeps"]
    assert [record.state for record in records if record is not None] == [jobs.FAILED] * 3


def test_a_node_that_is_drained_gets_no_job(slurm: SlurmLab, tmp_path: Path, no_survivors: str) -> None:
    slurm.run("scontrol", "update", "nodename=node2", "state=drain", "reason=test")
    try:
        job = queued(slurm, tmp_path, no_survivors, env={"STEPS": "3"})
        job.start()
        wait_until(lambda: "pending (" in job.launcher("status", job.root.name), "the reason")
        assert "node2" in job.launcher("status", job.root.name) or "Nodes" in job.launcher("status", job.root.name)
    finally:
        slurm.run("scontrol", "update", "nodename=node2", "state=resume")
    assert job.end().state == jobs.SUCCEEDED


def test_a_dry_run_shows_the_script_that_slurm_would_get(slurm: SlurmLab, tmp_path: Path, no_survivors: str) -> None:
    job = queued(slurm, tmp_path, no_survivors)
    shown = job.launcher(
        "submit", "tiny_cpu", "--scheduler", "slurm", "--kind", "CPU", "--partition", "low", "--dry-run"
    )

    assert "\n#SBATCH --partition=low\n" in shown
    assert "\n  sbatch --parsable slurm.sbatch, and in it\n" in shown


def test_a_job_that_sbatch_refuses_does_not_wait_for_ever(slurm: SlurmLab, tmp_path: Path, no_survivors: str) -> None:
    job = queued(slurm, tmp_path, no_survivors)
    job.root.parent.mkdir(exist_ok=True)
    said = job.launcher(
        "submit", "tiny_cpu", "--scheduler", "slurm", "--kind", "CPU", "--partition", "nope", "--detach", code=5
    )

    assert "Invalid partition name specified" in said
    assert re.search(r"^state +failed$", job.launcher("status", "last"), re.MULTILINE)


def test_a_slurm_that_cannot_be_reached_is_not_blamed_on_an_option(
    slurm: SlurmLab, tmp_path: Path, no_survivors: str
) -> None:
    dead = tmp_path / "dead.conf"
    dead.write_text(
        f"ClusterName=dead\nSlurmctldHost=localhost\nSlurmctldPort={free_port()}\nAuthType=auth/none\n"
        "NodeName=localhost\nPartitionName=p Nodes=ALL\n"
    )
    said = subprocess.run(
        [sys.executable, "-m", "launcher", "submit", "tiny_cpu", "--scheduler", "slurm", "--kind", "CPU"],
        cwd=tmp_path, env={**os.environ, "SLURM_CONF": str(dead), "LAUNCHER_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (said.returncode, "Slurm cannot be reached" in said.stderr) == (5, True), said.stderr
    assert "hint: sinfo " in said.stderr


def test_slurm_kills_a_node_and_the_job_is_told_from_what_is_left(
    slurm: SlurmLab, tmp_path: Path, no_survivors: str
) -> None:
    job = queued(slurm, tmp_path, no_survivors)
    job.start()
    job.wait_for_pids()
    for pid in job.on_host(1):
        os.kill(pid, signal.SIGKILL)
    record = job.end()

    assert report(record).startswith("host node2 (10.77.0.2) failed first")


def test_srun_that_is_killed_is_the_cause_and_no_host(slurm: SlurmLab, tmp_path: Path, no_survivors: str) -> None:
    job = queued(slurm, tmp_path, no_survivors)
    job.start()
    job.wait_for_pids()
    (srun,) = [p for p in marked(no_survivors) if p.name() == "srun" and "srun" not in (p.parent() or p).name()]
    srun.kill()
    record = job.end()

    assert record.state == jobs.FAILED, job.supervisor_log()
    assert report(record).startswith("srun, which holds the agents on all hosts, failed first: killed by SIGKILL")


def test_the_leading_hosts_agent_that_is_killed_is_no_time_limit(
    slurm: SlurmLab, tmp_path: Path, no_survivors: str
) -> None:
    job = queued(slurm, tmp_path, no_survivors)
    job.start()
    job.wait_for_pids()
    agents = [p for p in marked(no_survivors) if "--attempt" in p.cmdline() and p.pid in job.on_host(0)]
    next(p for p in agents if p.ppid() not in {q.pid for q in agents} and "srun" not in p.name()).kill()
    record = job.end()

    assert record.state == jobs.FAILED, job.supervisor_log()
    assert report(record).startswith("host node1 (10.77.0.1) failed first: its agent was killed"), job.supervisor_log()


def test_a_slurm_that_does_not_answer_has_lost_nothing(slurm: SlurmLab, tmp_path: Path, no_survivors: str) -> None:
    job = queued(slurm, tmp_path, no_survivors)
    job.start()
    job.wait_for(jobs.RUNNING)
    controller = int((slurm.folder / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        shown = job.launcher("status", job.root.name)
    finally:
        os.kill(controller, signal.SIGCONT)
    assert f"state     running (Slurm job {job.number}: Slurm does not answer)" in shown
    job.launcher("stop", job.root.name)
    assert job.end().state == jobs.CANCELLED


def test_ctrl_c_twice_stops_at_once(slurm: SlurmLab, tmp_path: Path, no_survivors: str) -> None:
    deaf = "for number in (signal.SIGTERM, signal.SIGHUP):\n    signal.signal(number, signal.SIG_IGN)\n"
    job = queued(slurm, tmp_path, no_survivors, deaf + "ready()\nstep(1)\ntime.sleep(600)")
    job.limits = replace(HOST_LIMITS, grace_s=600.0)
    job.start()
    job.wait_for_pids()
    argv = (sys.executable, "-m", "launcher", "attach", job.root.name, "--jobs-dir", str(job.root.parent))
    env = {**slurm.env, "LAUNCHER_TEST": no_survivors}
    attached = subprocess.Popen(job.hosts[0].inside(*argv), env=env, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: "attach" in " ".join(psutil.Process(attached.pid).cmdline()[-5:]), "attach")
    time.sleep(2.0)
    attached.send_signal(signal.SIGINT)
    wait_until(lambda: job.record().state == jobs.STOPPING, "the first request")
    attached.send_signal(signal.SIGINT)
    said = attached.communicate(timeout=60)[1]

    assert attached.returncode == 143, said
    assert job.end().state == jobs.CANCELLED


def test_cards_that_slurm_grants_are_found(slurm: SlurmLab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    number = slurm.run(
        "sbatch", "--parsable", "-N2", "--ntasks-per-node=1", "--gres=npu:1", "-o", "/dev/null", "--wrap",
        f"scontrol show job -d $SLURM_JOB_ID > {out}",
    )  # fmt: skip
    wait_until(lambda: out.is_file() and "GRES=" in out.read_text(), f"job {number}")

    assert indices_of(out.read_text(), "node2") in ([0], [1])
    assert indices_of(out.read_text(), "node9") is None


# ------------------------------------------------------------------------------------------------ without Slurm


def test_gres_lists_of_scontrol_are_read() -> None:
    text = (
        "   Nodes=node[1-2] CPU_IDs=0 Mem=0 GRES=npu:2(IDX:0-1)\n   Nodes=node3 CPU_IDs=0 Mem=0 GRES=npu:2(IDX:4,6)\n"
    )

    assert indices_of(text, "node2") == [0, 1]
    assert indices_of(text, "node3") == [4, 6]
    assert indices_of(" Nodes=a CPU_IDs=0 Mem=0 GRES=npu(CNT:2)\n", "a") is None
    assert granted({"SLURM_STEP_GPUS": "1,3", "SLURM_JOB_ID": "1"}) == [1, 3]
    assert granted({"ASCEND_RT_VISIBLE_DEVICES": "2", "SLURM_STEP_GPUS": "1,3"}) is None
    assert granted({}) is None
    assert node_names("node[1-2,07],login,x[1-2]y") == ["node1", "node2", "node07", "login", "x1y", "x2y"]


def cluster(hosts: int = 2, cards: int = 8) -> Cluster:
    devices = tuple(Device(device_id=n) for n in range(cards))
    return Cluster(target="Ascend", hosts=tuple(Host(name=f"n{n}", address="", devices=devices) for n in range(hosts)))


@pytest.mark.parametrize(
    "options",
    [
        SlurmOptions(partition="a b"),
        SlurmOptions(partition="--wrap=x"),
        SlurmOptions(account="$(touch x)"),
        SlurmOptions(time_limit="1;ls"),
        SlurmOptions(gres="npu:4"),
        SlurmOptions(gres="npu:8\n#SBATCH --wrap=ls"),
        SlurmOptions(sbatch=("qos=a b",)),
        SlurmOptions(sbatch=("wrap=ls",)),
        SlurmOptions(sbatch=("Q'=x",)),
        SlurmOptions(sbatch=("arr=0-1",)),
        SlurmOptions(sbatch=("a=0-1",)),
        SlurmOptions(sbatch=("test-only",)),
        SlurmOptions(time_limit="\u0662\u0660"),
        SlurmOptions(gres="npu:\u0668"),
    ],
)
def test_values_that_sbatch_could_take_for_something_else_are_refused(options: SlurmOptions) -> None:
    with pytest.raises(SpecError, match="cannot be passed to sbatch"):
        placement(cluster(), options)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1", 60), ("0", None), ("0:30", 60), ("90:01", 91 * 60), ("1:00:00", 3600), ("1-12", 36 * 3600),
     ("2-0:30", 2 * 86400 + 1800), ("1-1:1:1", 86400 + 3600 + 120)],
)  # fmt: skip
def test_time_limits_are_read_as_sbatch_reads_them(text: str, seconds: int | None) -> None:
    assert limit_s(text) == seconds


def test_a_time_limit_that_leaves_no_time_before_its_warning_is_refused() -> None:
    for text in ("1", "1:30"):
        with pytest.raises(SpecError, match="pass 3 minutes at the least"):
            placement(cluster(), SlurmOptions(time_limit=text), grace_s=30.0)
    for text in ("3", "0", "1:00:00"):
        placement(cluster(), SlurmOptions(time_limit=text), grace_s=30.0)


def test_the_signal_before_the_time_limit_is_called_that(tmp_path: Path) -> None:
    record = JobRecord(
        job_id="x", name="x", state=jobs.CANCELLED, created=jobs.now(), host="n", cards=1, target="CPU",
        versions={}, exit_code=128 + signal.SIGUSR1, scheduler="slurm",
    )  # fmt: skip
    with pytest.raises(JobCancelled, match="SIGUSR1, which Slurm sends before its time limit"):
        raise_for_end(JobPaths(root=tmp_path), record)


def test_a_supervisor_that_hangs_after_the_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Agents write the end of a job whose leader is stopped; its guard then waits for ever."""
    monkeypatch.setattr(api, "_LEAVE_S", 0.1)
    paths = JobPaths(root=tmp_path / "x")
    paths.root.mkdir()
    guard = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    record = JobRecord(
        job_id="x", name="x", state=jobs.FAILED, created=jobs.now(), host="n", cards=1, target="CPU",
        versions={}, supervisor=ProcessId(pid=guard.pid, started=0.0), verdict={"text": "lost"},
    )  # fmt: skip
    jobs.write_record(paths, record)
    try:
        with pytest.raises(JobFailed):
            following.follow_to_end(api.Job(paths, guard), show.Progress(1), [])
    finally:
        os.kill(guard.pid, signal.SIGKILL)
        os.waitpid(guard.pid, 0)

    assert f"kill -9 {guard.pid}" in capsys.readouterr().err


def test_before_hosts_are_known_status_does_not_show_where_they_are_led_from(tmp_path: Path) -> None:
    paths = JobPaths(root=tmp_path / "x")
    paths.root.mkdir()
    write_launch(paths, launch_of(SlurmOptions()))
    record = JobRecord(
        job_id="x", name="x", state=jobs.STARTING, created=jobs.now(), host="login", cards=2, target="CPU",
        versions={},
    )  # fmt: skip
    shown = status(paths, record)

    assert "2 on CPU, 2 hosts," in shown
    assert "login" not in shown


def launch_of(options: SlurmOptions) -> Launch:
    settings = placement(cluster(), options).settings
    return Launch(
        engine="direct", target="Ascend", address="", port=0, program="", rank_table="", limits=Limits(),
        ranks=(RankPlace(rank_id=0, local_rank=0, host="n0", device_id=0),), scheduler="slurm",
        settings=settings,
        nodes=tuple(NodePlace(node_rank=n, name=f"n{n}", address="") for n in range(2)),
    )  # fmt: skip


def test_the_script_asks_for_what_the_user_asked_for() -> None:
    options = SlurmOptions(
        partition="p", account="a", time_limit="1-00", gres="npu:8", sbatch=("qos=high", "reservation=r")
    )
    lines = render_script(launch_of(options), JobPaths(root=Path("/jobs/x")), "llama").text.splitlines()

    assert [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")] == [
        "--job-name=llama", "--nodes=2", "--ntasks-per-node=1", "--output=/dev/null", "--signal=B:USR1@90", "--requeue",
        "--open-mode=append", "--partition=p", "--account=a", "--time=1-00", "--gres=npu:8", "--qos=high",
        "--reservation=r",
    ]  # fmt: skip
    assert lines[-1] == f"exec {sys.executable} -m launcher node --lead --job /jobs/x"


def test_an_array_asks_for_the_same_for_each_task() -> None:
    paths = JobPaths(root=Path("/jobs/x y"))
    record = JobRecord(
        job_id="x", name="x", state=jobs.PLANNED, created="", host="", cards=2, target="Ascend", versions={}
    )
    one = Written(launch=launch_of(SlurmOptions(gres="npu:8")), paths=paths, record=record)
    lines = render_array([one, one], name="tries", most=3).text.splitlines()
    assert "#SBATCH --array=1-2%3" in lines
    assert "#SBATCH --job-name=tries" in lines
    leads = f"set -- {sys.executable} -m launcher node --lead --job '/jobs/x y' ;;"
    assert f"2) exec >>'/jobs/x y/supervisor.log' 2>&1; {leads}" in lines
    other = Written(launch=launch_of(SlurmOptions(gres="npu:8", partition="p")), paths=paths, record=record)
    with pytest.raises(SpecError, match="different things: --partition=p"):
        render_array([one, other], name="tries", most=3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=40))
def test_nothing_in_a_folders_name_becomes_a_command(tmp_path: Path, name: str) -> None:
    """The script, run by a shell, starts one program with the very name as an argument, and nothing else happens."""
    if name in (".", ".."):
        return
    root = tmp_path / "log" / name
    script = render_script(launch_of(SlurmOptions()), JobPaths(root=root), "x").text
    show = f"{shlex.quote(sys.executable)} -c 'import sys; print(ascii(sys.argv[-1]))'"
    script = script.replace(f"exec {sys.executable} -m launcher", f"exec {show}", 1)
    script = script.replace(f"exec >>{shlex.quote(str(root / 'supervisor.log'))} 2>&1", "", 1)
    result = subprocess.run(["/bin/sh"], input=script, capture_output=True, text=True, timeout=20, check=False)

    assert (result.returncode, result.stdout, result.stderr) == (0, ascii(str(root)) + "\n", "")
    directives = [line for line in script.split("\n") if line.startswith("#SBATCH")]
    assert len(directives) == 8
