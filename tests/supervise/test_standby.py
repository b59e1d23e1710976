"""Restarts that are carried out by processes that were waiting for it; with real processes, without MindSpore."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.supervised import LIMITS, Supervised, report, wait_until

from launcher import jobs
from launcher.engines.base import Command, Program
from launcher.plan.launch import Launch
from launcher.supervise.standby import Standby
from launcher.worker import standby
from launcher.worker.standby import Part, give_part

# In attempt 1 rank 1 is killed once the others wait; attempt 2 says by whom it is carried out, and ends as asked.
PROGRAM = """
from launcher.worker.standby import is_taken_over
from pathlib import Path
ready(); step(1)
if paths.attempt == 1:
    while not paths.log("standby").exists():
        time.sleep(0.01)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
Path(paths.work / f"by_{{rank}}").write_text(f"{{is_taken_over()}} {{Path.cwd().name}} {{os.getppid()}}")
step(2)
if rank == 1:
    {end}
elif {end!r} != "pass":
    time.sleep(600)
"""


def job(folder: Path, mark: str, engine: str = "direct", end: str = "pass") -> Supervised:
    limits = replace(LIMITS, max_restarts=1)
    return Supervised(root=folder / "job", program=PROGRAM.format(end=end), mark=mark, engine=engine, limits=limits)


def by_whom(ended: Supervised) -> list[str]:
    return [(ended.paths.work / f"by_{rank}").read_text().rsplit(" ", 1)[0] for rank in (0, 1)]


@pytest.mark.parametrize("engine", ["direct", "msrun"])
def test_the_ranks_of_a_restart_are_the_processes_that_waited(tmp_path: Path, no_survivors: str, engine: str) -> None:
    supervised = job(tmp_path, no_survivors, engine)
    record = supervised.run()

    assert (record.state, record.attempt, record.warnings) == (jobs.SUCCEEDED, 2, ())
    assert by_whom(supervised) == ["True work", "True work"]
    # After the last restart that is allowed nobody waits for another.
    assert not supervised.paths.log("standby").exists()


@pytest.mark.parametrize(
    ("engine", "end", "said"),
    [
        ("direct", "os.kill(os.getpid(), signal.SIGKILL)", "rank 1 failed first, after step 2: killed by SIGKILL"),
        ("msrun", "os.kill(os.getpid(), signal.SIGKILL)", "rank 1 failed first, after step 2: killed by SIGKILL"),
        ("msrun", "os._exit(3)", "rank 1 failed first, after step 2: exit code 3"),
        ("msrun", "raise ValueError('no luck')", "rank 1 failed first, after step 2: ValueError: no luck"),
    ],
)
def test_how_such_a_rank_ends_is_known(tmp_path: Path, no_survivors: str, engine: str, end: str, said: str) -> None:
    supervised = job(tmp_path, no_survivors, engine, end)
    record = supervised.run()

    assert record.state == jobs.FAILED
    assert said in report(record)
    assert by_whom(supervised) == ["True work", "True work"]


@pytest.mark.parametrize("how", ["stop", "supervisor"])
def test_what_waits_ends_with_the_job(tmp_path: Path, no_survivors: str, how: str) -> None:
    program = "ready(); number = 0\nwhile True:\n    number += 1; step(number)"
    supervised = job(tmp_path, no_survivors)
    supervised.program = program
    supervised.start()
    wait_until(lambda: supervised.paths.log("standby").exists(), "standby processes")
    if how == "stop":
        assert supervised.stop().state == jobs.CANCELLED
        return
    supervisor = supervised.record().supervisor
    assert supervisor is not None
    supervisor.send(signal.SIGKILL)
    assert supervised.end().state == jobs.LOST


def test_one_that_could_not_import_begins_as_if_it_had_not_tried(tmp_path: Path) -> None:
    """Half of a package that is imported twice fails in ways that say nothing: here by a name of the first try."""
    (tmp_path / "broken.py").write_text("import sys\nsys.modules['half'] = None\nraise OSError('no memory')\n")
    (tmp_path / "rank.py").write_text("import sys\nprint('half' in sys.modules, sys.argv[1:], flush=True)\n")
    name, env = f"launcher-test-{os.urandom(6).hex()}", {**os.environ}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(standby.address(name, 0))
        listening.listen()
        argv = (sys.executable, "-m", "launcher.worker.standby", str(listening.fileno()), "broken")
        waiting = subprocess.Popen(
            argv, pass_fds=(listening.fileno(),), env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        part = Part(argv=(str(tmp_path / "rank.py"), "job"), env=env, cwd=str(tmp_path))
        connection = give_part(name, 0, part)
    assert connection is not None
    said, errors = waiting.communicate(timeout=60)
    connection.close()

    assert (said, waiting.returncode) == ("False ['job']\n", 0)
    assert "OSError: no memory" in errors


def test_where_nobody_waits_a_program_is_started(tmp_path: Path) -> None:
    launch = Supervised(root=tmp_path, program="", mark="").launch()
    program = Program(name="rank_0", command=Command(argv=("python", "x")), rank_id=0)

    assert Standby(launch).take(program, Supervised(root=tmp_path, program="", mark="").prepare()) is None
    assert give_part("launcher-nobody", 0, Part(argv=("x",), env={}, cwd="/")) is None


@pytest.mark.parametrize(
    "change",
    [
        {"limits": replace(LIMITS, standby=False)},
        {"engine": "mpirun", "target": "Ascend"},
        {"nodes": ("a", "b")},
    ],
    ids=["switched off", "ranks of MPI", "several hosts"],
)
def test_none_waits_where_none_can(tmp_path: Path, change: dict[str, object]) -> None:
    launch: Launch = replace(Supervised(root=tmp_path, program="", mark="").launch(), **change)  # type: ignore[arg-type]
    waiting = Standby(launch)
    waiting.start(Supervised(root=tmp_path, program="", mark="").prepare())

    assert waiting.processes == []


def test_the_part_is_taken_from_the_same_user_only() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert standby.is_from_this_user(ours, os.getuid())
        assert not standby.is_from_this_user(ours, os.getuid() + 1)
