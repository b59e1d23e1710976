"""Supervision with real processes and every engine: who failed first, and nothing left running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.events import read_events
from support.supervised import LIMITS, TIMEOUT_S, Supervised, marked, report, wait_until

from launcher import jobs

ENGINES = ("direct", "msrun", "mpirun")

WAIT = "position.enter(1)\ntime.sleep(600)\n"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def job(tmp_path: Path, program: str, mark: str, engine: str = "direct") -> Supervised:
    return Supervised(root=tmp_path / "job", program=program, mark=mark, engine=engine)


def test_ranks_that_say_done_are_a_success(tmp_path: Path, engine: str, no_survivors: str) -> None:
    supervised = job(tmp_path, "ready(); step(1); step(2)", no_survivors, engine)
    record = supervised.run()

    assert (record.state, record.exit_code, record.warnings) == (jobs.SUCCEEDED, 0, ())
    assert set(record.processes) == {"rank_0", "rank_1"}
    kinds = [event["event"] for event in read_events(supervised.paths.rank_events(1))]
    assert [kind for kind in kinds if kind != "exit"] == ["begin", "ready", "step", "step", "done"]
    assert supervised.supervisor_log() == ""
    assert not supervised.paths.reserve.exists()


def test_the_rank_that_raised_is_named_with_its_traceback(tmp_path: Path, engine: str, no_survivors: str) -> None:
    program = "step(1)\nif rank == 1:\n    raise ValueError('no luck')\ntime.sleep(600)"
    record = job(tmp_path, program, no_survivors, engine).run()

    assert (record.state, record.exit_code) == (jobs.FAILED, 7)
    assert report(record).startswith("rank 1 failed first, after step 1: ValueError: no luck\n")
    assert "Traceback (most recent call last):" in report(record)
    assert "stopped by launcher afterwards: rank 0" in report(record)
    assert record.verdict is not None
    assert (record.verdict["rank_id"], record.verdict["stopped"], record.verdict["retry"]) == (1, [0], False)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
        ("os._exit(3)", "exit code 3, without a Python exception"),
        ("os._exit(0)", "exit code 0, without a Python exception"),
        ("sys.exit(3)", "SystemExit: 3"),
        ("sys.exit(0)", "SystemExit: 0"),
    ],
)
def test_a_rank_that_ends_early_is_named_with_how(
    tmp_path: Path, engine: str, no_survivors: str, how: str, expected: str
) -> None:
    program = f"print('my last words', flush=True)\nif rank == 1:\n    time.sleep(0.5)\n    {how}\ntime.sleep(600)"
    record = job(tmp_path, program, no_survivors, engine).run()

    assert record.state == jobs.FAILED
    assert report(record).startswith(f"rank 1 failed first, before its first step: {expected}")
    if "Exit" not in expected and "SEGV" not in expected:
        assert "my last words" in report(record)


def test_the_earlier_of_two_errors_counts(tmp_path: Path, engine: str, no_survivors: str) -> None:
    """Ranks start at different times: rank 0 waits for rank 1's error, then reports its own at once."""
    program = """
    if rank == 0:
        while '"error"' not in paths.rank_events(1).read_text():
            time.sleep(0.001)
    raise ValueError(f"I am {rank}")
    """
    record = job(tmp_path, program, no_survivors, engine).run()

    assert "rank 1 failed first" in report(record)
    assert "I am 1" in report(record)


def test_a_rank_that_fails_before_the_others_have_begun_is_named(
    tmp_path: Path, engine: str, no_survivors: str
) -> None:
    record = job(tmp_path, "if rank == 1: raise ImportError('no such module')", no_survivors, engine).run()

    assert record.state in (jobs.FAILED, jobs.SUCCEEDED)
    assert "ImportError" in report(record)


DIES_EARLY = """
import os, signal
me = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("RANK_ID"))
if me in {victims!r} and os.environ.get("MS_ROLE") != "MS_SCHED":
    print("words before the end", flush=True)
    {how}
"""


@pytest.mark.parametrize(("how", "expected"), [("os._exit(1)", "exit code 1"), ("os.kill(os.getpid(), 9)", "SIGKILL")])
@pytest.mark.parametrize(("ranks", "victims"), [(1, ("0",)), (3, ("1",)), (2, ("0", "1"))])
def test_a_rank_that_dies_before_it_reports_anything_is_named(
    tmp_path: Path, engine: str, no_survivors: str, ranks: int, victims: tuple[str, ...], how: str, expected: str
) -> None:
    """In its interpreter's own start, as with a broken installation: 20 ms after its engine has started it."""
    (tmp_path / "sitecustomize.py").write_text(DIES_EARLY.format(victims=victims, how=how))
    supervised = job(tmp_path, "time.sleep(600)", no_survivors, engine)
    supervised.ranks = ranks
    supervised.env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    supervised.limits = replace(LIMITS, start_timeout_s=TIMEOUT_S)
    text = report(supervised.run())

    assert text.splitlines()[0].startswith(tuple(f"rank {v} failed first, before its first step: " for v in victims))
    assert expected in text.splitlines()[0]
    assert "words before the end" in text


def test_a_crash_after_done_is_a_success_with_a_warning(tmp_path: Path, engine: str, no_survivors: str) -> None:
    """MindSpore's own exit crashes now and then, when everything is saved."""
    program = """
    import atexit
    ready()
    other = paths.rank_events(0)
    while rank == 1 and not (other.exists() and '"done"' in other.read_text()):
        time.sleep(0.05)  # msrun kills the others when one has crashed
    atexit.register(lambda: os.kill(os.getpid(), signal.SIGSEGV) if rank == 1 else None)
    """
    record = job(tmp_path, program, no_survivors, engine).run()

    assert record.state == jobs.SUCCEEDED
    assert record.warnings == ("rank 1 ended with SIGSEGV after everything was saved",)


def test_a_child_of_a_rank_that_ignores_term_is_gone_too(tmp_path: Path, engine: str, no_survivors: str) -> None:
    program = """
    import subprocess
    child = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.setsid(); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", child])
    time.sleep(0.5)
    if rank == 0:
        raise ValueError
    time.sleep(600)
    """
    assert "rank 0 failed first" in report(job(tmp_path, program, no_survivors, engine).run())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("name", ["msrun", "mpirun"])
def test_an_engine_that_is_ended_is_the_cause_and_not_its_ranks(
    tmp_path: Path, no_survivors: str, name: str, signum: int
) -> None:
    supervised = job(tmp_path, WAIT, no_survivors, name).start()
    supervised.wait_for_pids()
    (own,) = [process for process in marked(no_survivors) if name in " ".join(process.cmdline()[:2])]
    own.send_signal(signum)
    record = supervised.end()

    assert record.state == jobs.FAILED
    assert report(record).startswith(f"{name} failed first: ")
    assert record.verdict is not None
    assert record.verdict["retry"]


def test_a_scheduler_that_is_killed_is_the_cause(tmp_path: Path, engine: str, no_survivors: str) -> None:
    supervised = job(tmp_path, WAIT, no_survivors, engine).start()
    supervised.wait_for_pids()
    wait_until(lambda: read_events(supervised.paths.scheduler_events), "scheduler")
    event = read_events(supervised.paths.scheduler_events)[0]
    os.kill(event["pid"], signal.SIGKILL)

    assert report(supervised.end()).startswith("MindSpore's scheduler failed first: killed by SIGKILL")


def test_a_scheduler_that_raises_is_the_cause(tmp_path: Path, engine: str, no_survivors: str) -> None:
    supervised = job(tmp_path, WAIT, no_survivors, engine)
    supervised.env["SCHEDULER_PROGRAM"] = "raise RuntimeError('bind: Address already in use')"
    text = report(supervised.run())

    assert text.startswith("MindSpore's scheduler failed first: RuntimeError: bind: Address already in use")
    assert "probable cause: the scheduler could not listen on its port" in text


@pytest.mark.parametrize("victims", [("supervisor",), ("guard",), ("supervisor", "guard")])
def test_a_supervisor_that_is_killed_takes_everything_along(
    tmp_path: Path, engine: str, no_survivors: str, victims: tuple[str, ...]
) -> None:
    program = "import subprocess\nsubprocess.Popen(['sleep', '600'])\n" + WAIT
    supervised = job(tmp_path, program, no_survivors, engine).start()
    record = supervised.wait_for_pids()
    for victim in victims:
        process = getattr(record, victim)
        process.send(signal.SIGKILL)
    assert supervised.guard is not None
    supervised.guard.wait(timeout=TIMEOUT_S)
    nested_children_survive = len(victims) == 2  # children of ranks; nobody is left who could know them
    wait_until(lambda: all("sleep" in p.name() for p in marked(no_survivors)), "end of ranks")
    if nested_children_survive:
        for process in marked(no_survivors):
            process.kill()
    wait_until(lambda: not marked(no_survivors), "end of everything")
    state = supervised.record().state
    assert state == (jobs.CANCELLED if victims == ("guard",) else jobs.LOST)
    if victims == ("supervisor",):
        assert "the job's supervisor was ended from outside (SIGKILL)" in report(supervised.record())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_the_job_and_leaves_nothing(
    tmp_path: Path, engine: str, no_survivors: str, signum: int
) -> None:
    supervised = job(tmp_path, WAIT, no_survivors, engine).start()
    record = supervised.wait_for_pids()
    assert record.supervisor is not None
    record.supervisor.send(signum)
    record = supervised.end()

    assert (record.state, record.exit_code) == (jobs.CANCELLED, 128 + signum)


def test_ranks_get_time_to_end_in_order(tmp_path: Path, engine: str, no_survivors: str) -> None:
    program = """
    def leave(signum, frame):
        (paths.work / f"left_{rank}").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    position.enter(1)
    time.sleep(600)
    """
    supervised = job(tmp_path, program, no_survivors, engine).start()
    record = supervised.wait_for_pids()
    assert record.supervisor is not None
    record.supervisor.send(signal.SIGTERM)

    assert supervised.end().state == jobs.CANCELLED
    assert {path.name for path in supervised.paths.work.glob("left_*")} == {"left_0", "left_1"}


def test_a_signal_to_the_whole_process_group_is_one_request(tmp_path: Path, engine: str, no_survivors: str) -> None:
    """As systemd sends it: to the guard, which passes it on, and to the supervisor."""
    program = """
    def save(signum, frame):
        time.sleep(1.5)
        (paths.work / f"saved_{rank}").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, save)
    position.enter(1)
    time.sleep(600)
    """
    supervised = job(tmp_path, program, no_survivors, engine)
    supervised.limits = replace(LIMITS, grace_s=TIMEOUT_S)
    supervised.start().wait_for_pids()
    assert supervised.guard is not None
    os.killpg(supervised.guard.pid, signal.SIGTERM)

    assert supervised.end().state == jobs.CANCELLED
    assert {path.name for path in supervised.paths.work.glob("saved_*")} == {"saved_0", "saved_1"}


def test_asked_twice_through_the_guard_it_stops_at_once(tmp_path: Path, no_survivors: str) -> None:
    supervised = job(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAIT, no_survivors)
    supervised.limits = replace(LIMITS, grace_s=1000.0)
    supervised.start().wait_for_pids()
    assert supervised.guard is not None
    supervised.guard.send_signal(signal.SIGINT)
    supervised.wait_for(jobs.STOPPING)
    supervised.guard.send_signal(signal.SIGINT)
    record = supervised.end()

    assert (record.state, record.exit_code) == (jobs.CANCELLED, 130)


def test_a_signal_that_comes_after_the_childs_end_does_nothing() -> None:
    script = """
import os, signal
from launcher.common.signals import Forwarding
child = os.fork()
if child == 0:
    os._exit(3)
code = Forwarding(child, {signal.SIGTERM: signal.SIGTERM}).wait()
os.kill(os.getpid(), signal.SIGTERM)
print("cleared up, child ended with", code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )

    assert (done.stdout, done.stderr, done.returncode) == ("cleared up, child ended with 3\n", "", 0)


def test_how_a_forwarders_child_ended_is_not_lost_with_the_forwarder() -> None:
    """mpirun kills a rank's parent that has just learned how the rank ended; the supervisor adopts the rank then."""
    script = """
import os, signal
from launcher.common.processes import adopt_orphans
from launcher.common.signals import Forwarding
adopt_orphans()
middle = os.fork()
if middle == 0:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    Forwarding(child, {}).wait()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(middle, 0)
print(os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )

    assert (done.stdout, done.stderr) == ("-15\n", "")


def test_asked_twice_it_stops_at_once(tmp_path: Path, engine: str, no_survivors: str) -> None:
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAIT
    supervised = job(tmp_path, program, no_survivors, engine)
    supervised.limits = replace(LIMITS, grace_s=1000.0)
    supervised.start()
    record = supervised.wait_for_pids()
    assert record.supervisor is not None
    record.supervisor.send(signal.SIGINT)
    supervised.wait_for(jobs.STOPPING)
    record.supervisor.send(signal.SIGINT)

    assert supervised.end().state == jobs.CANCELLED


def test_a_rank_that_is_suspended_is_named(tmp_path: Path, engine: str, no_survivors: str) -> None:
    program = "if rank == 1:\n    os.kill(os.getpid(), signal.SIGSTOP)\n" + WAIT
    supervised = job(tmp_path, program, no_survivors, engine)
    supervised.limits = replace(LIMITS, stopped_s=1.0)

    assert "rank 1 failed first, before its first step: its process has been suspended" in report(supervised.run())


def test_a_rank_that_never_starts_is_named(tmp_path: Path, engine: str, no_survivors: str) -> None:
    supervised = job(tmp_path, "ready() if rank == 0 else None\n" + WAIT, no_survivors, engine)
    supervised.limits = replace(LIMITS, start_timeout_s=8.0)  # in which rank 0 starts on a busy machine too

    assert "rank 1 failed first, before its first step: it did not start within 8 s" in report(supervised.run())


def test_a_hang_names_the_rank_that_has_not_entered_the_step(tmp_path: Path, engine: str, no_survivors: str) -> None:
    program = """
    def wait_for_the_other():
        time.sleep(600)
    ready(); step(1)
    if rank == 0:
        position.enter(2)
    wait_for_the_other()
    """
    supervised = job(tmp_path, program, no_survivors, engine)
    supervised.limits = replace(LIMITS, hang_timeout_s=1.0)
    text = report(supervised.run())

    assert text.startswith("rank 1 failed first, after step 1: no progress: no rank finished a step for ")
    assert "not yet in the step: rank 1" in text
    assert f"stack of rank 1 (those of all ranks: {supervised.paths.logs})" in text
    assert "wait_for_the_other" in text
    for rank_id in (0, 1):  # py-spy writes a file of its own, where it is installed
        stacks = supervised.paths.rank_stacks(rank_id)
        file = stacks if stacks.is_file() else supervised.paths.rank_log(rank_id)
        assert "wait_for_the_other" in file.read_text()


@pytest.mark.parametrize("kind", ["eval", "save"])
def test_an_evaluation_or_a_checkpoint_is_no_hang(tmp_path: Path, engine: str, no_survivors: str, kind: str) -> None:
    program = f"""
    ready(); step(1)
    events.write("{kind}", step=1)
    time.sleep(2.5)
    events.write("{kind}", step=1, loss=1.0, seconds=2.5)
    step(2)
    """
    supervised = job(tmp_path, program, no_survivors, engine)
    supervised.limits = replace(LIMITS, hang_timeout_s=0.8)

    assert supervised.run().state == jobs.SUCCEEDED


def test_two_jobs_side_by_side_do_not_touch_each_other(tmp_path: Path, engine: str, no_survivors: str) -> None:
    other = Supervised(root=tmp_path / "other", program=WAIT, mark=no_survivors, engine=engine).start()
    pids = other.wait_for_pids().processes
    job(tmp_path, "raise ValueError", no_survivors, engine).run()

    record = other.record()
    assert not record.is_final
    assert all(process.is_alive() for process in {**pids, **record.processes}.values())
    assert record.supervisor is not None
    record.supervisor.send(signal.SIGTERM)
    assert other.end().state == jobs.CANCELLED


def test_logs_and_events_that_vanish_end_nothing(tmp_path: Path, engine: str, no_survivors: str) -> None:
    program = """
    import shutil
    ready(); step(1)
    if rank == 0:
        while '"step"' not in paths.rank_events(1).read_text():
            time.sleep(0.01)
        shutil.rmtree(paths.logs)
        shutil.rmtree(paths.events)
    print("still here", flush=True)
    step(2)
    time.sleep(0.5)
    if rank == 1:
        raise ValueError("the end")
    time.sleep(600)
    """
    text = report(job(tmp_path, program, no_survivors, engine).run())

    assert text.startswith("rank 1 failed first, after step 2: ValueError: the end")


def test_a_job_whose_folder_is_removed_ends(tmp_path: Path, engine: str, no_survivors: str) -> None:
    supervised = job(tmp_path, WAIT, no_survivors, engine).start()
    supervised.wait_for_pids()
    shutil.rmtree(supervised.root)
    assert supervised.guard is not None
    supervised.guard.wait(timeout=TIMEOUT_S)

    assert not supervised.root.exists()
    assert not marked(no_survivors)


def test_what_starts_late_does_not_bring_a_removed_folder_back(tmp_path: Path, engine: str, no_survivors: str) -> None:
    """On a busy host the scheduler may come to its events after the ranks train, and after the folder is removed."""
    late = "import os, time\ntime.sleep(1.5) if os.environ.get('MS_ROLE') == 'MS_SCHED' else None\n"
    (tmp_path / "sitecustomize.py").write_text(late)
    supervised = job(tmp_path, WAIT, no_survivors, engine)
    supervised.env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    supervised.start().wait_for_pids()
    shutil.rmtree(supervised.root)
    assert supervised.guard is not None
    supervised.guard.wait(timeout=TIMEOUT_S)

    assert not supervised.root.exists()


def test_the_jobs_folder_keeps_its_mode(tmp_path: Path, no_survivors: str) -> None:
    program = "paths.root.chmod(0o750)\n" + WAIT
    supervised = job(tmp_path, program, no_survivors)
    supervised.root.mkdir(mode=0o755)
    supervised.start().wait_for_pids()
    wait_until(lambda: supervised.root.stat().st_mode & 0o777 == 0o755, "the folder's mode")
    supervised.stop()


def test_a_port_that_was_taken_meanwhile_is_the_cause(tmp_path: Path, no_survivors: str) -> None:
    """MindSpore's scheduler says it in its log alone; what it raises names three reasons."""
    supervised = job(tmp_path, "time.sleep(600)", no_survivors)
    supervised.env["SCHEDULER_PROGRAM"] = (
        "print('[WARNING] DISTRIBUTED(1,7f,python):2026-11-24-22:53:04.177.475 [mindspore/ccsrc/cluster/rpc/tcp/"
        "socket_operation.cc:454] Listen] Failed to call bind, url: 127.0.0.1:40965 Address already in use')\n"
        "raise RuntimeError('Failed to initialize distributed job cluster because some processes in the cluster are "
        "not successfully spawned.')"
    )
    text = report(supervised.run())

    assert "scheduler: Failed to call bind, url: 127.0.0.1:40965 Address already in use" in text
    assert "probable cause: the scheduler could not listen on its port" in text


def test_a_rank_that_prints_much_is_no_burden(tmp_path: Path, engine: str, no_survivors: str) -> None:
    program = """
    line = "x" * 1023 + "\\n"
    for _ in range(20 << 10):
        sys.stdout.write(line)
    if rank == 1:
        raise ValueError("said enough")
    time.sleep(600)
    """
    supervised = job(tmp_path, program, no_survivors, engine)
    assert "ValueError: said enough" in report(supervised.run())
    assert supervised.paths.rank_log(1).stat().st_size > 20 << 20


def test_an_engine_that_cannot_start_is_said(tmp_path: Path, no_survivors: str) -> None:
    supervised = job(tmp_path, "", no_survivors, "msrun")
    paths = supervised.start().paths
    supervised.end()
    text = paths.launch.read_text().replace("programs/msrun", "programs/none")
    again = Supervised(root=tmp_path / "again", program="", mark=no_survivors)
    again.root.mkdir()
    (again.root / "launch.json").write_text(text)
    (again.root / "job.json").write_text(paths.record.read_text().replace('"succeeded"', '"planned"'))
    from launcher import supervise

    again.guard = supervise.start(jobs.JobPaths(root=again.root))
    assert "No such file or directory" in report(again.end())


def test_the_supervisor_is_small(tmp_path: Path, no_survivors: str) -> None:
    supervised = job(tmp_path, WAIT, no_survivors).start()
    record = supervised.wait_for_pids()
    assert record.supervisor is not None
    assert record.guard is not None
    sizes = [psutil.Process(process.pid).memory_info().rss for process in (record.supervisor, record.guard)]
    record.supervisor.send(signal.SIGTERM)
    supervised.end()

    assert sum(sizes) < 60 << 20


def test_the_supervisor_imports_nothing_heavy(tmp_path: Path) -> None:
    script = """
import sys
import launcher.supervise.supervisor, launcher.worker.main
heavy = {"mindspore", "mindformers", "numpy", "pydantic", "jinja2", "rich", "click", "yaml"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=TIMEOUT_S)


def test_events_of_many_ranks_arrive_whole(tmp_path: Path, no_survivors: str) -> None:
    program = """
    ready()
    for number in range(1, 501):
        events.write("step", step=number, loss=1.0, lr=0.1, overflow=False, grad_norm=None, step_s=0.1)
    time.sleep(0.2)
    """
    supervised = job(tmp_path, program, no_survivors)
    supervised.ranks = 8
    began = time.time()
    record = supervised.run()

    assert record.state == jobs.SUCCEEDED
    for rank_id in range(8):
        steps = [e["step"] for e in read_events(supervised.paths.rank_events(rank_id)) if e["event"] == "step"]
        assert steps == list(range(1, 501))
    assert began < time.time()
