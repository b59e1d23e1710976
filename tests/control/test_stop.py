"""Stopping a job by a command: whom it asks, and that a job can be stopped once its submitter has left it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.supervised import Supervised

from launcher import jobs
from launcher.api import Job
from launcher.common.processes import ProcessId
from launcher.control.stop import stop_job
from launcher.errors import JobError
from launcher.jobs import JobPaths, JobRecord


def test_the_program_that_submitted_a_job_is_not_taken_for_its_supervisor(tmp_path: Path) -> None:
    """The record has the submitter until the supervisor has written itself in: it may be a user's own program."""
    submitter = subprocess.Popen((sys.executable, "-c", "import time; time.sleep(600)"))
    paths = JobPaths(root=tmp_path)
    record = JobRecord(
        job_id="bcdfg-x", name="x", state=jobs.PLANNED, created=jobs.now(), host=socket.gethostname(), cards=1,
        target="CPU", versions={}, supervisor=ProcessId.of_pid(submitter.pid),
    )  # fmt: skip
    jobs.write_record(paths, record)

    def end() -> None:
        time.sleep(0.3)  # as long as a wrong signal takes to arrive
        jobs.write_record(paths, replace(record, state=jobs.FAILED))

    ending = threading.Thread(target=end)
    ending.start()
    try:
        with pytest.raises(JobError, match="is not running: failed"):
            stop_job(paths, record, save=False, grace_s=0.0)
        assert submitter.poll() is None
    finally:
        ending.join()
        submitter.kill()
        submitter.wait()


def test_a_job_that_is_left_has_its_supervisor_in_the_record(tmp_path: Path, no_survivors: str) -> None:
    """Until then the record has its submitter: once that has ended, the job would pass for lost for a while."""
    supervised = Supervised(
        root=tmp_path / "job", program="ready(); step(1); time.sleep(600)", mark=no_survivors
    ).start()
    job = Job(supervised.paths, supervised.guard)
    job.leave()
    record = supervised.record()
    assert record.guard is not None
    assert stop_job(supervised.paths, record, save=False, grace_s=5.0).state == jobs.CANCELLED


def test_a_supervisor_that_cannot_begin_holds_nobody_up(tmp_path: Path) -> None:
    supervised = Supervised(root=tmp_path / "job", program="", mark="unused")
    paths = supervised.prepare()
    guard = subprocess.Popen((sys.executable, "-c", "raise SystemExit(3)"))
    Job(paths, guard).leave()
    assert guard.returncode == 3
