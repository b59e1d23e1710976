"""Supervision with real processes: who failed first, and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import jobs, supervise
from launcher.cluster import Cluster, Device, Host
from launcher.engines.base import Command
from launcher.errors import JobCancelled, JobFailed
from launcher.jobs import JobPaths, JobRecord, JobStore
from launcher.plan import Degrees, Inputs, LaunchPlan
from launcher.spec import load_spec

ENGINE = Path(__file__).parent / "programs" / "engine.py"


def make_plan(root: Path, program: str, mark: str, ranks: int = 2) -> LaunchPlan:
    devices = tuple(Device(device_id=n) for n in range(ranks))
    host = Host(name=os.uname().nodename, address="127.0.0.1", devices=devices)
    argv = (sys.executable, str(ENGINE), str(root), str(ranks), f"{textwrap.dedent(program)}\n# {mark}")
    return LaunchPlan(
        paths=JobPaths(root=root),
        spec=load_spec("tiny_cpu"),
        spec_name="tiny_cpu",
        cluster=Cluster(target="CPU", hosts=(host,)),
        degrees=Degrees(data_parallel=ranks, model_parallel=1, pipeline_stage=1),
        inputs=Inputs(dataset="x", rows=None, tokenizer=None, checkpoint=None),
        steps=2,
        files=(),
        links=(),
        command=Command(argv=argv),
    )


def make_record(plan: LaunchPlan) -> JobRecord:
    return JobRecord(
        job_id=plan.paths.job_id,
        name="x",
        state=jobs.PLANNED,
        created=jobs.now(),
        host=plan.cluster.hosts[0].name,
        cards=plan.cluster.num_devices,
        target="CPU",
        argv=plan.command.argv,
        versions={},
    )


def run(root: Path, program: str, mark: str) -> JobRecord:
    plan = make_plan(root, program, mark)
    return supervise.run(plan, make_record(plan), lambda event: None)


def stored(root: Path) -> JobRecord:
    return JobStore(root.parent).get(root.name)[1]


def test_ranks_that_say_done_are_a_success(tmp_path: Path, no_survivors: str) -> None:
    record = run(tmp_path / "job", "step(1); step(2); events.write('done')", no_survivors)

    assert (record.state, record.exit_code) == (jobs.SUCCEEDED, 0)
    assert stored(tmp_path / "job") == record
    assert set(record.processes) == {"rank_0", "rank_1"}


def test_events_reach_the_caller_in_order(tmp_path: Path, no_survivors: str) -> None:
    plan = make_plan(tmp_path / "job", "step(1); step(2); events.write('done')", no_survivors)
    seen: list[tuple[int, str]] = []
    supervise.run(plan, make_record(plan), lambda event: seen.append((event["rank_id"], event["event"])))

    for rank in (0, 1):
        assert [kind for who, kind in seen if who == rank] == ["begin", "step", "step", "done"]


def test_the_rank_that_raised_is_named_with_its_traceback(tmp_path: Path, no_survivors: str) -> None:
    program = """
    step(1)
    if rank == 1:
        fail("ValueError", "no luck")
        sys.exit(1)
    time.sleep(60)
    """
    with pytest.raises(JobFailed, match="rank 1 failed first, after step 1: ValueError: no luck") as caught:
        run(tmp_path / "job", program, no_survivors)

    assert "Traceback (most recent call last):" in caught.value.message
    assert caught.value.hint == "launcher logs job --rank 1"
    record = stored(tmp_path / "job")
    assert (record.state, record.exit_code) == (jobs.FAILED, 7)
    assert record.verdict is not None
    assert record.verdict["rank_id"] == 1


def test_the_earlier_of_two_errors_counts(tmp_path: Path, no_survivors: str) -> None:
    program = """
    step(1)
    if rank == 0:
        time.sleep(0.2)
    fail("ValueError", f"I am {rank}")
    time.sleep(60)
    """
    with pytest.raises(JobFailed, match=r"rank 1 failed first.*I am 1"):
        run(tmp_path / "job", program, no_survivors)


def test_a_killed_rank_is_named_with_its_signal(tmp_path: Path, no_survivors: str) -> None:
    program = """
    print("my last words", flush=True)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    """
    with pytest.raises(JobFailed, match="rank 1 failed first, before its first step: killed by SIGKILL") as caught:
        run(tmp_path / "job", program, no_survivors)

    assert "my last words" in caught.value.message


def test_a_rank_that_leaves_early_with_code_0_has_failed(tmp_path: Path, no_survivors: str) -> None:
    program = """
    if rank == 1:
        sys.exit(0)
    time.sleep(60)
    """
    with pytest.raises(JobFailed, match=r"rank 1 failed first.*its process is gone, without a Python exception"):
        run(tmp_path / "job", program, no_survivors)


def test_an_engine_that_dies_first_is_the_cause(tmp_path: Path, no_survivors: str) -> None:
    plan = make_plan(tmp_path / "job", "", no_survivors)
    program = "print('cannot do it'); raise SystemExit(9)"
    plan = replace(plan, command=Command(argv=(sys.executable, "-c", f"{program} # {no_survivors}")))
    with pytest.raises(JobFailed, match=r"the engine ended \(exit code 9\)") as caught:
        supervise.run(plan, make_record(plan), lambda event: None)

    assert "cannot do it" in caught.value.message


def test_a_crash_after_done_is_a_success(tmp_path: Path, no_survivors: str) -> None:
    """MindSpore's own exit crashes now and then, when everything is saved."""
    program = "events.write('done'); os.kill(os.getpid(), signal.SIGSEGV)"

    assert run(tmp_path / "job", program, no_survivors).state == jobs.SUCCEEDED


def test_a_child_of_a_rank_that_ignores_term_is_gone_too(tmp_path: Path, no_survivors: str) -> None:
    program = f"""
    import subprocess
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600) # {no_survivors}"
    subprocess.Popen([sys.executable, "-c", child])
    time.sleep(0.5)
    step(1)
    if rank == 0:
        fail("ValueError", "x")
    time.sleep(60)
    """
    with pytest.raises(JobFailed, match="rank 0 failed first"):
        run(tmp_path / "job", program, no_survivors)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_the_job_and_leaves_nothing(tmp_path: Path, no_survivors: str, signum: int) -> None:
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_supervise import make_plan, make_record
from launcher import supervise
plan = make_plan(Path(sys.argv[1]), "step(1); time.sleep(600)", {no_survivors!r})
supervise.run(plan, make_record(plan), lambda event: None)
"""
    root = tmp_path / "job"
    process = subprocess.Popen([sys.executable, "-c", script, str(root)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list((root / "events").glob("*.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=60)

    assert b"JobCancelled" in stderr
    record = stored(root)
    assert (record.state, record.exit_code) == (jobs.CANCELLED, 128 + signum)


def test_cancelled_carries_128_plus_the_signal() -> None:
    assert JobCancelled("x", signum=2).exit_code == 130


def test_an_existing_folder_is_never_reused(tmp_path: Path, no_survivors: str) -> None:
    (tmp_path / "job").mkdir()
    with pytest.raises(FileExistsError):
        run(tmp_path / "job", "", no_survivors)
