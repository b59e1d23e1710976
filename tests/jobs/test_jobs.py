"""Job records, references to jobs, and logs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.events import read_events
from support.job_folders import Made, MadeJob

from launcher import jobs
from launcher.checkpoint.of_job import job_source
from launcher.cli.output import live, show
from launcher.cli.output.status import status
from launcher.common.atomic import write_atomic
from launcher.common.processes import ProcessId, stop, tree
from launcher.control.follow import raise_for_end
from launcher.errors import JobError, JobFailed, SpecError
from launcher.jobs import JobPaths, JobRecord, JobStore, loss_rank
from launcher.jobs.events import (
    Event,
    EventReader,
    EventWriter,
    LastEvents,
    Position,
    Step,
    from_json,
    read_last_events,
    read_position,
)
from launcher.jobs.logs import tail


def record(job_id: str, state: str = jobs.SUCCEEDED, created: str = "2026-01-01T00:00:00+00:00") -> JobRecord:
    return JobRecord(
        job_id=job_id,
        name="x",
        state=state,
        created=created,
        host=socket.gethostname(),
        cards=2,
        target="CPU",
        versions={"launcher": "0"},
        supervisor=ProcessId.current(),
        processes={"rank_0": ProcessId(pid=1, started=2.5)},
    )


def write_job(paths: JobPaths, written: JobRecord) -> None:
    paths.root.mkdir(parents=True, exist_ok=True)
    jobs.write_record(paths, written)


def store_with(root: Path, *ids: str) -> JobStore:
    for number, job_id in enumerate(ids):
        write_job(JobPaths(root=root / job_id), record(job_id, created=f"2026-01-0{number + 1}T00:00:00+00:00"))
    return JobStore(root)


def test_a_record_reads_back_as_it_was_written() -> None:
    assert JobRecord.from_json(record("bcdfg-x").to_json()) == record("bcdfg-x")


@pytest.mark.parametrize("reference", ["bcdfg-one", "b", "bcdfg-o", "last"])
def test_a_job_is_found_by_id_prefix_or_last(tmp_path: Path, reference: str) -> None:
    store = store_with(tmp_path, "zzzzz-two", "bcdfg-one")

    assert store.get(reference)[1].job_id == "bcdfg-one"


@pytest.mark.parametrize("reference", ["bcdfg-one", "b"])
def test_a_job_named_by_its_folder_is_found_without_reading_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    store, read = store_with(tmp_path, "zzzzz-two", "bcdfg-one"), []

    def read_noted(paths: JobPaths) -> JobRecord | None:
        read.append(paths.job_id)
        return jobs.read_record(paths)

    monkeypatch.setattr("launcher.jobs.store.read_record", read_noted)

    assert store.get(reference)[1].job_id == "bcdfg-one"
    assert read == ["bcdfg-one"]


def test_a_folder_that_was_renamed_is_found_by_its_job_s_id(tmp_path: Path) -> None:
    store = store_with(tmp_path, "bcdfg-one", "zzzzz-two")
    (tmp_path / "bcdfg-one").rename(tmp_path / "kept")

    found = [store.get(reference)[0].root.name for reference in ("bcdfg-one", "bcd", "zzzzz")]
    assert found == ["kept", "kept", "zzzzz-two"]


def test_events_have_one_name_each(tmp_path: Path) -> None:
    paths = JobPaths(root=tmp_path / "bcdfg-x", attempt=2)

    assert paths.events_of_ranks(3) == [str(paths.rank_events(rank_id)) for rank_id in range(3)]
    assert paths.of_attempt(1).events != paths.events


def test_what_is_no_folder_of_a_job_is_none_of_the_jobs(tmp_path: Path) -> None:
    store = store_with(tmp_path, "bcdfg-x", ".removed-bcdfh-y")
    (tmp_path / "README.md").write_text("jobs\n")
    (tmp_path / "empty").mkdir()

    assert [job.job_id for _, job in store.all()] == ["bcdfg-x"]
    assert JobStore(tmp_path / "README.md").all() == JobStore(tmp_path / "none").all() == []


def test_a_job_is_found_by_the_path_of_its_folder_wherever_it_is(tmp_path: Path) -> None:
    folder = store_with(tmp_path / "elsewhere", "bcdfg-x", "bcdfh-y").root / "bcdfg-x"
    for reference in (str(folder), f"{folder}/", os.path.relpath(folder)):
        assert JobStore(tmp_path / "jobs").get(reference)[0].root == folder
    with pytest.raises(JobError, match="no job"):
        JobStore(tmp_path / "jobs").get(str(folder.parent / "none"))


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


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 5000, '{"state": 1}', "\x00", '{"job_id": "a"}'])
def test_a_job_whose_record_is_damaged_is_listed_and_named(tmp_path: Path, text: str) -> None:
    store = store_with(tmp_path, "bcdfg-x")
    (tmp_path / "zzzzz-y").mkdir()
    (tmp_path / "zzzzz-y" / "job.json").write_text(text)
    (tmp_path / "no job").mkdir()

    assert [(found.job_id, found.state) for _, found in store.all()] == [
        ("bcdfg-x", jobs.SUCCEEDED),
        ("zzzzz-y", jobs.UNREADABLE),
    ]
    assert "zzzzz-y  unreadable" in show.job_table(store)
    with pytest.raises(JobError, match=r"zzzzz-y/job\.json cannot be read: ") as caught:
        store.get("z")
    assert caught.value.hint == (
        f"what the job left is in {tmp_path}/zzzzz-y: launcher merge-ckpt {tmp_path}/zzzzz-y/checkpoint"
    )


def test_a_record_of_another_version_is_read(tmp_path: Path) -> None:
    """One with keys that this version does not know, in the processes too, and one that has no processes."""
    raw = json.loads(record("bcdfg-x").to_json())
    raw["processes"]["rank_0"]["new"] = raw["supervisor"]["new"] = raw["new"] = 1

    assert JobRecord.from_json(json.dumps(raw)) == record("bcdfg-x")
    del raw["processes"]
    assert JobRecord.from_json(json.dumps(raw)) == replace(record("bcdfg-x"), processes={})


def test_a_step_of_the_clock_makes_no_job_lost(tmp_path: Path) -> None:
    """Seconds since the epoch at which a process began follow the clock; ticks since the boot do not."""
    own = ProcessId.current()
    assert own.ticks > 0
    assert own.boot
    for stepped, state in (
        (replace(own, started=own.started + 3600), jobs.RUNNING),
        (replace(own, ticks=own.ticks + 1), jobs.LOST),
        (replace(own, boot="of another boot"), jobs.LOST),
        (ProcessId(pid=own.pid, started=own.started), jobs.RUNNING),  # of a version that wrote no ticks
    ):
        write_job(JobPaths(root=tmp_path / "a"), replace(record("a", jobs.RUNNING), supervisor=stepped, guard=None))
        assert JobStore(tmp_path).get("a")[1].state == state


def test_the_table_keeps_step_and_loss_of_the_attempt_before(tmp_path: Path) -> None:
    paths = JobPaths(root=tmp_path / "a")
    write_steps(paths, 0, 3.0, 2.0)
    write_job(paths, replace(record("a", jobs.RUNNING), attempt=3))

    assert show.job_table(JobStore(tmp_path)).splitlines()[1].split()[-2:] == ["2", "2.0000"]


def test_files_are_written_with_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "x", "a")
        write_atomic(tmp_path / "x", "b")
    finally:
        os.umask(before)

    assert (tmp_path / "x").read_text() == "b"
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_new_ids_differ_in_their_first_letters(tmp_path: Path) -> None:
    ids = {JobStore(tmp_path).new_paths("x").job_id for _ in range(50)}

    assert len(ids) == 50
    assert all(job_id.endswith("-x") and len(job_id) == 7 for job_id in ids)


def test_a_running_job_without_its_supervisor_is_lost(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    supervisor = ProcessId(pid=gone.pid, started=0.0)
    gone.wait()
    write_job(JobPaths(root=tmp_path / "a"), replace(record("a", jobs.RUNNING), supervisor=supervisor))
    write_job(JobPaths(root=tmp_path / "b"), record("b", jobs.RUNNING))

    assert {found.job_id: found.state for _, found in JobStore(tmp_path).all()} == {"a": jobs.LOST, "b": jobs.RUNNING}


def test_a_lost_job_without_a_verdict_says_how_to_go_on(tmp_path: Path) -> None:
    paths = JobPaths(root=tmp_path / "x")
    with pytest.raises(JobFailed) as raised:
        raise_for_end(paths, record("x", jobs.LOST))
    assert raised.value.hint == "launcher logs x; launcher resume x begins anew: no step was saved"

    for rank_id in range(2):
        folder = paths.checkpoints / f"rank_{rank_id}"
        folder.mkdir(parents=True)
        for step in (2, 4)[: 2 - rank_id]:  # step 4 of rank 1 was not written any more
            save_file({"a": np.zeros(2, np.float32)}, folder / f"x_rank_{rank_id}-1_{step}.safetensors")
    with pytest.raises(JobFailed) as raised:
        raise_for_end(paths, record("x", jobs.LOST))
    assert raised.value.hint == "launcher logs x; launcher resume x goes on from epoch 1, step 2 of it"


def test_a_job_of_another_host_is_believed(tmp_path: Path) -> None:
    elsewhere = replace(record("a", jobs.RUNNING), host="another-host", supervisor=None)
    write_job(JobPaths(root=tmp_path / "a"), elsewhere)

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
    paths.events.mkdir(parents=True, exist_ok=True)
    with EventWriter(paths.rank_events(rank_id), rank_id) as events:
        events.write("begin", pid=1, started=1.0)
        for number, loss in enumerate(losses, 1):
            events.write("step", step=number, loss=loss, lr=0.1, overflow=False, grad_norm=None, step_s=0.5)


def test_the_list_has_times_of_the_users_own_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-8")
    time.tzset()
    try:
        shown = show.job_table(store_with(tmp_path, "one"))
    finally:
        monkeypatch.undo()
        time.tzset()

    assert "2026-01-01 08:00:00 +0800" in shown


def last_of(*lines: str) -> tuple[Event, ...]:
    return tuple(event for line in lines if (event := from_json(json.loads(line))))


def test_of_a_long_run_the_end_alone_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rank_0.jsonl"
    lines = [json.dumps({"time": 1.0, "rank_id": 0, "event": "step", "step": n, "step_s": 0.1}) for n in range(9000)]
    path.write_text("".join(f"{line}\n" for line in lines) + '{"event": "do')
    last = read_last_events(path)

    numbers = [event.step for event in last.events if isinstance(event, Step)]
    assert numbers == [record["step"] for record in read_events(path)[-len(numbers) :]]
    assert 1000 < len(numbers) < 9000
    path.write_text(f"{lines[1]}\nno json\n{lines[2]}\n")
    assert read_events(path) == [json.loads(lines[1]), json.loads(lines[2])]
    assert read_last_events(path) == LastEvents(events=last_of(lines[1], lines[2]), damaged=1)
    assert read_last_events(tmp_path / "none") == LastEvents()


@pytest.mark.parametrize(
    ("state", "note", "save", "expected"),
    [
        (jobs.CANCELLED, None, False, "Job x cancelled. Next: launcher resume x"),
        (jobs.CANCELLED, "saved at step 3", True, "Job x cancelled; saved at step 3. Next: launcher resume x"),
        (jobs.CANCELLED, None, True, "nothing was saved"),
        (jobs.SUCCEEDED, None, True, "Job x succeeded. Next: launcher merge-ckpt x"),
    ],
)
def test_stop_says_what_was_saved_and_what_is_next(state: str, note: str | None, save: bool, expected: str) -> None:
    assert expected in show.stopped(replace(record("x", state), note=note), save=save)


def test_status_shows_every_rank_and_the_verdict(tmp_path: Path) -> None:
    paths = JobPaths(root=tmp_path / "bcdfg-x")
    failed = replace(record("bcdfg-x", jobs.FAILED), verdict={"text": "rank 1 failed first: it did"})
    write_steps(paths, 0, 3.0, 2.0)
    text = status(paths, failed)

    assert "state     failed" in text
    assert "rank 0    step   step 2  loss 2.0000" in text
    assert "rank 1    not started" in text
    assert text.endswith("rank 1 failed first: it did")


@pytest.mark.parametrize("text", ["", "null", "[]", "[" * 5000, '{"nodes": 3, "steps": [], "parallel": {}}'])
def test_a_job_is_shown_though_what_it_was_made_of_is_damaged(tmp_path: Path, text: str) -> None:
    store = store_with(tmp_path, "bcdfg-x")
    paths, found = store.get("bcdfg-x")
    for file in (paths.spec, paths.plan, paths.launch):
        file.write_text(text)

    assert "bcdfg-x  succeeded" in show.job_table(store)
    assert "state     succeeded" in status(paths, found)
    with pytest.raises(JobError, match=r"spec\.json"):
        job_source(paths, found)


def test_the_table_of_jobs_has_one_line_each(tmp_path: Path) -> None:
    store = store_with(tmp_path, "bcdfg-x", "zzzzz-y")
    write_steps(JobPaths(root=tmp_path / "zzzzz-y"), 0, 3.0)
    lines = show.job_table(store).splitlines()

    assert lines[0].split() == ["JOB", "STATE", "CARDS", "CREATED", "STEP", "LOSS"]
    assert lines[1].split() == ["bcdfg-x", "succeeded", "2", "CPU", "2026-01-01", "00:00:00", "+0000", "-", "-"]
    assert lines[2].split()[-2:] == ["1", "3.0000"]
    assert show.job_table(JobStore(tmp_path / "none")).startswith("No jobs in")


def test_the_loss_is_the_mean_over_ranks_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """submit, jobs and status of one job showed rank 0's loss in two places and the mean in the third."""
    store = store_with(tmp_path, "bcdfg-x")
    paths, found = store.get("bcdfg-x")
    write_steps(paths, 0, 3.0, 2.0)
    write_steps(paths, 1, 4.0, 1.0)
    progress = show.Progress(2, 0, cards=2)
    for rank_id in range(2):
        for event in read_last_events(paths.rank_events(rank_id)).events:
            progress.note(event)

    assert "Loss 3.5000 -> 1.5000." in show.finished(paths, found, progress)
    assert "step 1/2  loss 3.5000" in capsys.readouterr().err
    assert show.job_table(store).splitlines()[1].endswith("1.5000")
    assert "3.5000 -> 1.5000" in status(paths, found)


def test_the_end_of_a_resumed_job_tells_of_all_its_attempts(tmp_path: Path) -> None:
    """It showed the losses of the last attempt alone, as if they had risen from nothing."""
    job = MadeJob(attempts=(Made(ended=30.0), Made(began=40.0, ended=70.0, from_step=2)))
    paths = job.write(tmp_path)

    assert "Loss 8.2500 -> 1.5833." in show.finished(paths, job.make_record(), show.Progress(6))


def test_steps_that_a_rank_never_tells_of_are_shown_with_the_others_loss(tmp_path: Path) -> None:
    store = store_with(tmp_path, "bcdfg-x")
    paths, found = store.get("bcdfg-x")
    write_steps(paths, 0, 3.0, 2.0)
    write_steps(paths, 1, 4.0)
    progress = show.Progress(2, 0, cards=2)
    for rank_id in (1, 0):
        for event in read_last_events(paths.rank_events(rank_id)).events:
            progress.note(event)
    assert progress.last_loss == 3.5

    progress.stop()
    assert "Loss 3.5000 -> 2.0000." in show.finished(paths, found, progress)


def test_a_loss_that_is_not_a_number_is_shown_as_such(tmp_path: Path) -> None:
    store = store_with(tmp_path, "bcdfg-x")
    write_steps(JobPaths(root=tmp_path / "bcdfg-x"), 0, float("nan"))

    assert show.job_table(store).splitlines()[1].endswith("nan")


def test_the_tail_of_a_long_log_reads_only_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(5 << 30)  # a hole: reading it whole would need 5 GiB
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")

    assert tail(log, 1) == ["last"]
    assert tail(tmp_path / "none", 1) == []


def test_jobs_are_chosen_by_state_and_name(tmp_path: Path) -> None:
    store = store_with(tmp_path, "bcdfg-one", "zzzzz-two")
    write_job(JobPaths(root=tmp_path / "qqqqq-one"), record("qqqqq-one", jobs.FAILED))

    def chosen(states: str | None, name: str | None) -> set[str]:
        return {found.job_id for _, found in jobs.select_jobs(store.all(), states=states, name=name)}

    assert chosen("failed", None) == {"qqqqq-one"}
    assert chosen("failed, succeeded", "one") == {"qqqqq-one", "bcdfg-one"}
    assert chosen(None, None) == {"qqqqq-one", "bcdfg-one", "zzzzz-two"}
    with pytest.raises(SpecError, match="there is no state 'fialed'"):
        chosen("fialed", None)


def test_jobs_as_json_have_their_ranks(tmp_path: Path) -> None:
    store = store_with(tmp_path, "bcdfg-x")
    write_steps(JobPaths(root=tmp_path / "bcdfg-x"), 1, 3.0, float("inf"))
    (value,) = json.loads(show.jobs_json(store.all()))

    assert (value["job_id"], value["state"], value["folder"]) == ("bcdfg-x", "succeeded", str(tmp_path / "bcdfg-x"))
    assert [rank["state"] for rank in value["ranks"]] == ["not started", "step"]
    assert value["ranks"][1]["last_step"]["loss"] == "inf"


def test_the_live_page_shows_rates_and_time_left(tmp_path: Path) -> None:
    paths = JobPaths(root=tmp_path / "bcdfg-x")
    write_steps(paths, 0, 3.0, 2.0)
    paths.plan.write_text('{"steps": 10}')
    paths.spec.write_text('{"data": {"batch_size": 4}, "model": {"seq_length": 100}}')
    lines = live.page(paths, record("bcdfg-x", jobs.RUNNING)).splitlines()

    assert lines[1] == "step 2/10, 0.5 s a step, 800 tokens/s a card, 0:04 left"
    assert lines[4].split() == ["0", "step", "2", "2.0000", "-", "-", "-", "-", "-"]
    assert lines[5].split() == ["1", "not", "started", "-", "-", "-", "-", "-", "-", "-"]


def test_a_position_is_rewritten_in_place(tmp_path: Path) -> None:
    position = Position(tmp_path / "at")
    assert read_position(tmp_path / "at") == 0
    for step in (9, 10, 100):
        position.enter(step)
        assert read_position(tmp_path / "at") == step
    assert read_position(tmp_path / "none") == 0


def test_a_reader_sees_whole_lines_only_and_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path=path)
    assert list(reader.new()) == []
    with path.open("ab", buffering=0) as file:
        file.write(b'{"event": "step", "step": 1, "step_s": 1}\nnot json\n[1]\n{"event": 3}\n{"event": "st')
        assert [event.step for event in reader.new() if isinstance(event, Step)] == [1]
        path.unlink()
        file.write(b'ep", "step": 2, "step_s": 1}\n')
    assert [event.step for event in reader.new() if isinstance(event, Step)] == [2]
    assert reader.damaged == 3
    reader.close()


def test_a_writer_without_a_disk_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with EventWriter(tmp_path / "file" / "x.jsonl", 0) as events:
        events.write("begin")
    with EventWriter(Path("/dev/full"), 0) as events:
        events.write("begin")


@pytest.mark.parametrize(
    ("plan", "expected"), [('{"steps": 10}', 10), ('{"steps": 40}', 12), ('{"steps": null}', 12), ("", 12)]
)
def test_a_job_is_never_asked_to_stop_after_its_last_step(tmp_path: Path, plan: str, expected: int) -> None:
    paths = JobPaths(root=tmp_path)
    paths.plan.write_text(plan, encoding="utf-8")

    assert jobs.step_to_stop_at(paths, 12) == expected


def test_the_loss_of_a_pipeline_is_that_of_its_last_stage(tmp_path: Path) -> None:
    paths = JobPaths(root=tmp_path / "bcdfg-x")
    assert loss_rank(paths, 8) == 0  # no spec: an older launcher's folder, or none yet
    paths.root.mkdir()
    for stages, rank_id in ((1, 0), (2, 4), (4, 6)):
        paths.spec.write_text(json.dumps({"parallel": {"pipeline_stage": stages}}))
        assert loss_rank(paths, 8) == rank_id
