"""Jobs from Python: real supervisors, ranks that are small programs."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.supervised import Supervised, wait_until

import launcher
from launcher import api
from launcher.errors import JobCancelled, JobError, JobFailed, SpecError
from launcher.jobs import JobRecord
from launcher.jobs.events import Event, Step
from launcher.jobs.labels import Labels, write_labels

GOOD = "ready()\nfor n in range(1, 4):\n    step(n)\nprint('three steps')\n"
LONG = "ready()\nfor n in range(1, 100000):\n    step(n, seconds=0.05)\n"


@pytest.fixture
def supervised(tmp_path: Path, no_survivors: str) -> Supervised:
    return Supervised(root=tmp_path / "jobs" / "bcdfg-api", program=GOOD, mark=no_survivors)


def test_a_job_is_followed_to_its_end_and_read(supervised: Supervised, tmp_path: Path) -> None:
    job = api.Job(supervised.start().paths, supervised.guard)
    events: list[Event] = []
    states: list[JobRecord] = []

    assert job.wait(on_event=events.append, on_state=states.append) is job
    assert job.state == "succeeded"
    assert states[-1].state == "succeeded"
    assert sorted((event.rank_id, event.step) for event in events if isinstance(event, Step)) == [
        (rank, step) for rank in (0, 1) for step in (1, 2, 3)
    ]
    assert job.verdict is None
    said = sorted(line for line in job.logs() if "three steps" in line)
    assert [(line[:9], line[-11:]) for line in said] == [(f"rank {rank} | ", "three steps") for rank in (0, 1)]
    assert [line.split()[-2:] for line in job.logs(rank=1, lines=1)] == [["three", "steps"]]
    assert list(job.metrics("loss")["step"]) == [1, 2, 3]
    assert {"step", "time", "loss"} <= set(job.metrics())
    assert job.summary().done_steps == 3
    page = job.report(tmp_path / "page.html")
    assert "bcdfg-api" in page.read_text(encoding="utf-8")


def test_what_fails_is_raised_with_its_verdict_unless_it_is_not_to_be(supervised: Supervised) -> None:
    supervised.program = "ready(); step(1)\nif rank == 1:\n    raise ValueError('out of apples')\ntime.sleep(600)"
    job = api.Job(supervised.start().paths, supervised.guard)

    with pytest.raises(JobFailed, match="rank 1 failed first") as caught:
        job.wait()
    assert "launcher logs bcdfg-api --rank 1" in caught.value.hint
    assert job.wait(check=False).state == "failed"
    assert job.verdict is not None
    assert job.verdict["rank_id"] == 1


def test_waiting_ends_and_the_job_does_not(supervised: Supervised) -> None:
    supervised.program = LONG
    job = api.Job(supervised.start().paths, supervised.guard)

    with pytest.raises(TimeoutError, match=r"job bcdfg-api is .* after 0.2 s; it runs on"):
        job.wait(0.2)
    supervised.wait_for("running")
    assert job.stop().state == "cancelled"
    with pytest.raises(JobCancelled):
        job.wait()
    with pytest.raises(JobError, match="is not running: cancelled"):
        job.stop()


def test_threads_wait_for_jobs(supervised: Supervised) -> None:
    """Signals are the main thread's; nothing here needs them."""
    job = api.Job(supervised.start().paths, supervised.guard)
    ends: list[str] = []
    waiting = [threading.Thread(target=lambda: ends.append(job.wait().state)) for _ in range(2)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join(60)

    assert ends == ["succeeded", "succeeded"]


# As a notebook does it: SIGINT raises KeyboardInterrupt in the cell.
WAITS = """
import sys
from launcher import job
found = job(sys.argv[1])
try:
    print("waiting", flush=True)
    found.wait()
except KeyboardInterrupt:
    print("interrupted", found.state, flush=True)
"""


def test_ctrl_c_ends_the_waiting_and_not_the_job(supervised: Supervised) -> None:
    supervised.program = LONG
    supervised.start().wait_for("running")
    waits = subprocess.Popen([sys.executable, "-c", WAITS, str(supervised.root)], stdout=subprocess.PIPE, text=True)
    assert waits.stdout is not None
    assert waits.stdout.readline() == "waiting\n"
    waits.send_signal(2)

    assert waits.communicate(timeout=60)[0] == "interrupted running\n"
    assert supervised.record().state == "running"
    supervised.stop()


def test_jobs_are_listed_and_found(supervised: Supervised, tmp_path: Path) -> None:
    supervised.prepare()
    folder = tmp_path / "jobs"

    assert [job.id for job in launcher.list_jobs(jobs_dir=folder)] == ["bcdfg-api"]
    assert launcher.list_jobs(jobs_dir=folder, state="failed") == []
    write_labels(launcher.job("bcdfg", jobs_dir=folder).paths, Labels(tags=("r8",)))
    assert [job.id for job in launcher.list_jobs(jobs_dir=folder, tags="r8")] == ["bcdfg-api"]
    assert launcher.list_jobs(jobs_dir=tmp_path / "none") == []
    assert launcher.job("bcd", jobs_dir=folder) == launcher.job(supervised.root) == launcher.job(jobs_dir=folder)
    with pytest.raises(JobError, match="no job 'y'"):
        launcher.job("y", jobs_dir=folder)
    with pytest.raises(SpecError, match="no state"):
        launcher.list_jobs(jobs_dir=folder, state="done")


def test_what_does_not_fit_is_raised_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"changes\['lora.rr'\]: unknown key lora.rr; did you mean r"):
        launcher.submit({"name": "apples"}, changes={"lora.rr": 8}, jobs_dir=tmp_path, cards=1)
    with pytest.raises(SpecError, match="submit\\(\\) has no option 'nodes' with scheduler 'local'"):
        launcher.submit("tiny_cpu", nodes=2, jobs_dir=tmp_path)
    with pytest.raises(SpecError, match="no scheduler 'slum'"):
        launcher.submit("tiny_cpu", scheduler="slum", jobs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_package_is_imported_without_the_rest() -> None:
    """``launcher --help`` and every short command import the package first."""
    program = (
        "import sys, launcher; print(sorted(m for m in sys.modules if m.startswith('launcher.'))); launcher.submit"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
    assert {"submit", "job", "list_jobs", "load"} <= set(dir(launcher))
    with pytest.raises(AttributeError, match="no attribute 'sumbit'"):
        launcher.sumbit  # noqa: B018


def test_a_job_can_be_waited_for_by_another_process(supervised: Supervised) -> None:
    supervised.start()
    job = launcher.job(supervised.root)
    wait_until(lambda: job.state == "succeeded", "the end")
    assert job.wait().state == supervised.end().state
