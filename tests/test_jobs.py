"""Job records, references to jobs, and logs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import jobs
from launcher.cli import show
from launcher.errors import JobError
from launcher.events import EventWriter
from launcher.jobs import JobPaths, JobRecord, JobStore
from launcher.logs import print_logs, tail
from launcher.processes import ProcessId, stop, tree


def record(job_id: str, state: str = jobs.SUCCEEDED, created: str = "2026-01-01T00:00:00+00:00") -> JobRecord:
    return JobRecord(
        job_id=job_id,
        name="x",
        state=state,
        created=created,
        host=socket.gethostname(),
        cards=2,
        target="CPU",
        argv=("msrun", "--join=True"),
        versions={"launcher": "0"},
        supervisor=ProcessId.current(),
        processes={"rank_0": ProcessId(pid=1, started=2.5)},
    )


def store_with(root: Path, *ids: str) -> JobStore:
    for number, job_id in enumerate(ids):
        jobs.write_record(JobPaths(root=root / job_id), record(job_id, created=f"2026-01-0{number + 1}T00:00:00+00:00"))
    return JobStore(root)


def test_a_record_reads_back_as_it_was_written() -> None:
    assert JobRecord.from_json(record("bcdfg-x").to_json()) == record("bcdfg-x")


@pytest.mark.parametrize("reference", ["bcdfg-one", "b", "bcdfg-o", "last"])
def test_a_job_is_found_by_id_prefix_or_last(tmp_path: Path, reference: str) -> None:
    store = store_with(tmp_path, "zzzzz-two", "bcdfg-one")

    assert store.get(reference)[1].job_id == "bcdfg-one"


def test_an_id_that_begins_another_id_means_itself(tmp_path: Path) -> None:
    assert store_with(tmp_path, "bcdfg-x", "bcdfg-x2").get("bcdfg-x")[1].job_id == "bcdfg-x"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("bc", "'bc' fits 2 jobs: bcdfg-x, bcxyz-y"),
        ("q", "no job 'q' in"),
        ("", "no job ''"),
        ("../x", "no job '../x'"),
    ],
)
def test_what_is_not_one_job_is_refused(tmp_path: Path, reference: str, expected: str) -> None:
    with pytest.raises(JobError) as caught:
        store_with(tmp_path, "bcdfg-x", "bcxyz-y").get(reference)

    assert expected in str(caught.value)


@pytest.mark.parametrize("exists", [True, False])
def test_no_jobs_at_all_says_how_to_make_one(tmp_path: Path, exists: bool) -> None:
    with pytest.raises(JobError, match="there are no jobs") as caught:
        JobStore(tmp_path if exists else tmp_path / "none").get("last")

    assert caught.value.hint == "launcher submit --cards 2"


def test_folders_that_are_no_jobs_are_passed_over(tmp_path: Path) -> None:
    store = store_with(tmp_path, "bcdfg-x")
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"state": 1}'), ("d", "\x00")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text(text)

    assert [found.job_id for _, found in store.all()] == ["bcdfg-x"]


def test_new_ids_differ_in_their_first_letters(tmp_path: Path) -> None:
    ids = {JobStore(tmp_path).new_paths("x").job_id for _ in range(50)}

    assert len(ids) == 50
    assert all(job_id.endswith("-x") and len(job_id) == 7 for job_id in ids)


def test_a_running_job_without_its_supervisor_is_lost(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    supervisor = ProcessId(pid=gone.pid, started=0.0)
    gone.wait()
    jobs.write_record(JobPaths(root=tmp_path / "a"), replace(record("a", jobs.RUNNING), supervisor=supervisor))
    jobs.write_record(JobPaths(root=tmp_path / "b"), record("b", jobs.RUNNING))

    assert {found.job_id: found.state for _, found in JobStore(tmp_path).all()} == {"a": jobs.LOST, "b": jobs.RUNNING}


def test_a_job_of_another_host_is_believed(tmp_path: Path) -> None:
    elsewhere = replace(record("a", jobs.RUNNING), host="another-host", supervisor=None)
    jobs.write_record(JobPaths(root=tmp_path / "a"), elsewhere)

    assert JobStore(tmp_path).get("a")[1].state == jobs.RUNNING


def test_a_pid_that_belongs_to_another_process_now_is_not_signalled(no_survivors: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(60) # {no_survivors}"])
    try:
        impostor = ProcessId(pid=child.pid, started=1.0)
        stop([impostor], grace_s=0.0)

        assert not impostor.is_alive()
        assert tree(impostor) == []
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def write_steps(paths: JobPaths, rank_id: int, *losses: float) -> None:
    with EventWriter(paths.rank_events(rank_id), rank_id) as events:
        events.write("begin", pid=1, started=1.0)
        for number, loss in enumerate(losses, 1):
            events.write("step", step=number, loss=loss, lr=0.1, overflow=False, grad_norm=None, step_s=0.5)


def test_status_shows_every_rank_and_the_verdict(tmp_path: Path) -> None:
    paths = JobPaths(root=tmp_path / "bcdfg-x")
    failed = replace(record("bcdfg-x", jobs.FAILED), verdict={"text": "rank 1 failed first: it did"})
    write_steps(paths, 0, 3.0, 2.0)
    text = show.status(paths, failed)

    assert "state     failed" in text
    assert "rank 0    step   step 2  loss 2.0000  0.50 s a step" in text
    assert "rank 1    not started" in text
    assert text.endswith("rank 1 failed first: it did")


def test_the_table_of_jobs_has_one_line_each(tmp_path: Path) -> None:
    store = store_with(tmp_path, "bcdfg-x", "zzzzz-y")
    write_steps(JobPaths(root=tmp_path / "zzzzz-y"), 0, 3.0)
    lines = show.job_table(store).splitlines()

    assert lines[0].split() == ["JOB", "STATE", "CARDS", "CREATED", "STEP", "LOSS"]
    assert lines[1].split() == ["bcdfg-x", "succeeded", "2", "CPU", "2026-01-01", "00:00:00", "-", "-"]
    assert lines[2].split()[-2:] == ["1", "3.0000"]
    assert show.job_table(JobStore(tmp_path / "none")).startswith("No jobs in")


def test_a_loss_that_is_not_a_number_is_shown_as_such(tmp_path: Path) -> None:
    store = store_with(tmp_path, "bcdfg-x")
    write_steps(JobPaths(root=tmp_path / "bcdfg-x"), 0, float("nan"))

    assert show.job_table(store).splitlines()[1].endswith("nan")


def make_logs(root: Path) -> JobPaths:
    paths = JobPaths(root=root / "job")
    paths.logs.mkdir(parents=True)
    paths.log("msrun").write_bytes(b"engine\n")
    paths.rank_log(0).write_bytes(b"one\ntwo \xff\nthree\n")
    return paths


def test_logs_of_one_rank_and_of_all(tmp_path: Path) -> None:
    paths, lines = make_logs(tmp_path), list[str]()
    print_logs(paths, 2, 0, 2, lines.append)
    assert lines == ["two \ufffd", "three"]

    lines.clear()
    print_logs(paths, 2, None, None, lines.append)
    assert [line for line in lines if not line.startswith("==>")] == [
        "engine",
        "one",
        "two \ufffd",
        "three",
        "(nothing)",
    ]


@pytest.mark.parametrize(("rank", "expected"), [(2, "has ranks 0 to 1, not 2"), (1, "the rank never started")])
def test_logs_that_cannot_be_shown_say_why(tmp_path: Path, rank: int, expected: str) -> None:
    with pytest.raises(JobError, match=expected):
        print_logs(make_logs(tmp_path), 2, rank, None, lambda line: None)


def test_the_tail_of_a_long_log_reads_only_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(5 << 30)  # a hole: reading it whole would need 5 GiB
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")

    assert tail(log, 1) == ["last"]
    assert tail(tmp_path / "none", 1) == []
