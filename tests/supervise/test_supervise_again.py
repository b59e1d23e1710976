"""Stopping with a checkpoint, restarts, resuming, and locks on cards; with real processes."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.supervised import LIMITS, Supervised, wait_until

from launcher import jobs
from launcher.checkpoint.tensorfile import is_whole
from launcher.cluster import locks
from launcher.control import start
from launcher.control.stop import stop_job
from launcher.errors import HostError, JobError
from launcher.jobs import JobPaths, next_attempt
from launcher.plan.resume import left_behind, prepare_attempt, take_back
from launcher.supervise.free_cards import wait_until_free

# Steps until it is told to stop, as the worker's callback does.
STEPPING = """
from launcher.worker.main import asked_to_stop_at
ready()
number = 1
while True:
    step(number)
    if number >= asked_to_stop_at(paths):
        break
    number += 1
"""

DIES_ONCE = """
ready(); step(1)
if paths.attempt == 1 and rank == 1:
    {how}
if paths.attempt == 1:
    time.sleep(600)
"""


def test_stop_with_save_ends_all_ranks_after_the_same_step(tmp_path: Path, no_survivors: str) -> None:
    supervised = Supervised(root=tmp_path / "job", program=STEPPING, mark=no_survivors).start()
    supervised.wait_for_pids()
    record = supervised.stop(save=True, grace_s=20.0)

    assert record.state == jobs.CANCELLED
    assert record.note is not None
    assert record.note.startswith("saved at step ")
    assert not supervised.paths.control.exists()
    steps = {int(supervised.paths.rank_position(rank).read_text()) for rank in (0, 1)}
    assert steps == {int(record.note.split()[-1])}


def test_stop_without_save_and_of_a_job_that_has_ended(tmp_path: Path, no_survivors: str) -> None:
    supervised = Supervised(root=tmp_path / "job", program=STEPPING, mark=no_survivors).start()
    supervised.wait_for_pids()
    record = supervised.stop()

    assert (record.state, record.note, record.exit_code) == (jobs.CANCELLED, None, 128 + signal.SIGTERM)
    with pytest.raises(JobError, match="is not running: cancelled"):
        stop_job(supervised.paths, record, save=False, grace_s=None)


def test_a_grace_of_nothing_is_no_grace(tmp_path: Path, no_survivors: str) -> None:
    program = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); step(1); time.sleep(3600)"
    supervised = Supervised(root=tmp_path / "job", program=program, mark=no_survivors)
    supervised.limits = replace(LIMITS, grace_s=1000.0)
    supervised.start().wait_for_pids()

    assert supervised.stop(grace_s=0.0).state == jobs.CANCELLED


@pytest.mark.parametrize(
    ("how", "state", "attempts"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", jobs.SUCCEEDED, 2),
        ("raise RuntimeError('EI0006: Getting socket times out')", jobs.SUCCEEDED, 2),
        ("raise ValueError('mine')", jobs.FAILED, 1),
    ],
)
def test_restarts_are_for_faults_of_the_machine(
    tmp_path: Path, no_survivors: str, how: str, state: str, attempts: int
) -> None:
    supervised = Supervised(root=tmp_path / "job", program=DIES_ONCE.format(how=how), mark=no_survivors)
    supervised.limits = replace(LIMITS, max_restarts=3)
    record = supervised.run()

    assert (record.state, record.attempt) == (state, attempts)
    assert len(record.earlier) == attempts - 1
    assert (supervised.root / "attempts" / "1" / "logs" / "worker_1.log").is_file()
    if attempts == 2:
        assert record.earlier[0]["rank_id"] == 1
        assert (supervised.root / "attempts" / "2" / "logs" / "worker_1.log").is_file()


def test_never_twice_on_the_same_exception_and_never_more_than_asked(tmp_path: Path, no_survivors: str) -> None:
    same = "raise RuntimeError('EI0006: Getting socket times out')"
    fresh = "os.kill(os.getpid(), signal.SIGKILL)"
    for name, program, attempts in (("same", same, 2), ("fresh", fresh, 3)):
        supervised = Supervised(root=tmp_path / name, program=program, mark=no_survivors, ranks=1)
        supervised.limits = replace(LIMITS, max_restarts=2 if name == "fresh" else 5)
        record = supervised.run()
        assert (record.state, record.attempt) == (jobs.FAILED, attempts)


def test_resume_keeps_the_old_attempt_and_begins_a_new_one(tmp_path: Path, no_survivors: str) -> None:
    program = DIES_ONCE.format(how="raise ValueError('mine')")
    supervised = Supervised(root=tmp_path / "job", program=program, mark=no_survivors)
    failed = supervised.run()
    old = {path: path.read_bytes() for path in (supervised.root / "attempts" / "1").rglob("*") if path.is_file()}
    started = start.begin_again(supervised.paths, failed)
    supervised.guard = started.guard
    record = supervised.end()

    assert (record.state, record.attempt, started.paths.attempt) == (jobs.SUCCEEDED, 2, 2)
    assert record.earlier[0]["reason"] == "ValueError: mine"
    assert {path: path.read_bytes() for path in old} == old
    with pytest.raises(JobError, match="has succeeded"):
        start.begin_again(supervised.paths, record)


@contextmanager
def full_disk() -> Iterator[None]:
    """Inside, every write of this process to a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_resume_that_a_full_disk_stopped_can_be_done_later(tmp_path: Path, no_survivors: str) -> None:
    program = DIES_ONCE.format(how="raise ValueError('mine')")
    supervised = Supervised(root=tmp_path / "job", program=program, mark=no_survivors)
    failed = supervised.run()
    write_safetensors(supervised.paths.checkpoints / "rank_0" / "x_rank_0-1_2.safetensors")
    for rank in (0, 1):
        write_safetensors(supervised.paths.checkpoints / f"rank_{rank}" / f"x_rank_{rank}-1_1.safetensors")
    before = sorted(supervised.paths.checkpoints.rglob("*"))
    with full_disk(), pytest.raises(HostError, match="cannot write"):
        start.begin_again(supervised.paths, failed)
    assert sorted(supervised.paths.checkpoints.rglob("*")) == before
    assert supervised.record() == failed
    supervised.guard = start.begin_again(supervised.paths, failed).guard

    assert supervised.end().state == jobs.SUCCEEDED


def test_files_of_an_attempt_that_nobody_knows_are_left_alone(tmp_path: Path, no_survivors: str) -> None:
    supervised = Supervised(root=tmp_path / "job", program="raise ValueError('x')", mark=no_survivors, ranks=1)
    failed = supervised.run()
    other = supervised.root / "attempts" / "2" / "logs"
    other.mkdir(parents=True)
    with pytest.raises(JobError, match=r"holds files of an attempt that job\.json does not know"):
        start.begin_again(supervised.paths, failed)

    assert other.is_dir()


def test_a_resume_that_was_killed_does_not_block_later_ones(tmp_path: Path, no_survivors: str) -> None:
    """It has moved a checkpoint away already, which only rank 0 has."""
    program = DIES_ONCE.format(how="raise ValueError('mine')")
    supervised = Supervised(root=tmp_path / "job", program=program, mark=no_survivors)
    failed = supervised.run()
    write_safetensors(supervised.paths.checkpoints / "rank_0" / "x_rank_0-1_2.safetensors")
    for rank in (0, 1):
        write_safetensors(supervised.paths.checkpoints / f"rank_{rank}" / f"x_rank_{rank}-1_1.safetensors")
    prepare_attempt(supervised.paths.of_attempt(2), 2)
    supervised.guard = start.begin_again(supervised.paths, failed).guard

    assert supervised.end().state == jobs.SUCCEEDED
    stale = supervised.root / "attempts" / "2" / "stale" / "rank_0"
    assert [path.name for path in stale.iterdir()] == ["x_rank_0-1_2.safetensors"]


def test_of_two_resumes_at_once_one_is_refused(tmp_path: Path, no_survivors: str) -> None:
    supervised = Supervised(root=tmp_path / "job", program="raise ValueError('x')", mark=no_survivors, ranks=1)
    failed = supervised.run()
    with supervised.paths.resume_lock.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(JobError, match=r"another launcher resume, .* of job is running"):
            start.begin_again(supervised.paths, failed)

    assert supervised.record() == failed


def test_how_a_killed_attempt_was_to_be_stopped_is_forgotten(tmp_path: Path, no_survivors: str) -> None:
    supervised = Supervised(root=tmp_path / "job", program="raise ValueError('x')", mark=no_survivors, ranks=1)
    failed = supervised.run()
    supervised.paths.control.write_text('{"save": true, "grace_s": 0.0}')
    supervised.guard = start.begin_again(supervised.paths, failed).guard

    assert not supervised.paths.control.exists()
    supervised.end()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_ctrl_c_while_the_supervisor_starts_stops_the_job(tmp_path: Path, no_survivors: str, moment: str) -> None:
    supervised = Supervised(root=tmp_path / "job", program="raise ValueError('x')", mark=no_survivors, ranks=1)
    supervised.run()
    launch = json.loads(supervised.paths.launch.read_text())
    launch["env"]["RANK_PROGRAM"] = "time.sleep(3600)"
    supervised.paths.launch.write_text(json.dumps(launch))
    script = f"""
import os, signal
from launcher import supervise
from launcher.cli import main
really = supervise.start
def start(paths):
    if {moment!r} == "before":
        os.kill(os.getpid(), signal.SIGINT)
    guard = really(paths)
    if {moment!r} == "after":
        os.kill(os.getpid(), signal.SIGINT)
    return guard
supervise.start = start
main(["resume", "job", "--jobs-dir", {str(tmp_path)!r}])
"""
    env = {**os.environ, "LAUNCHER_TEST": no_survivors}
    result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=240)

    assert "stopped by SIGINT; none of its processes is left" in result.stderr
    assert (result.returncode, supervised.record().state) == (130, jobs.CANCELLED)


def write_safetensors(path: Path, *, cut: int = 0) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    data = len(header).to_bytes(8, "little") + header + b"x" * 16
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[: len(data) - cut])


def test_an_attempt_starts_from_the_newest_step_that_all_ranks_have_whole(tmp_path: Path) -> None:
    """By number and not by name: 1_9 is older than 1_10. 1_12 is damaged on rank 1, 2_1 is missing there."""
    paths = JobPaths(root=tmp_path, attempt=2)
    for rank in (0, 1):
        for moment in ("1_9", "1_10", "1_12"):
            file = paths.checkpoints / f"rank_{rank}" / f"launcher_rank_{rank}-{moment}.safetensors"
            write_safetensors(file, cut=3 if (rank, moment) == (1, "1_12") else 0)
    write_safetensors(paths.checkpoints / "rank_0" / "launcher_rank_0-2_1.safetensors")
    before = {path: path.read_bytes() for path in paths.checkpoints.rglob("*.safetensors")}

    assert prepare_attempt(paths, 2) == (1, 10)
    for rank in (0, 1):
        (link,) = (paths.resume / f"rank_{rank}").iterdir()
        assert link.name == f"launcher_rank_{rank}-1_10.safetensors"
        assert is_whole(link)
    assert list(left_behind(paths, 2).items()) == [((2, 1), [1]), ((1, 12), [1])]
    moved = {path.name for path in (paths.attempt_folder / "stale").rglob("*.safetensors")}
    # The damaged one too: what the attempt saves at that step is then the only file of it.
    assert moved == {f"launcher_rank_{name}.safetensors" for name in ("0-1_12", "1-1_12", "0-2_1")}
    left = list(paths.checkpoints.rglob("*.safetensors")) + list(
        (paths.attempt_folder / "stale").rglob("*.safetensors")
    )
    assert len(left) == len(before)


def test_without_a_common_step_an_attempt_begins_at_the_beginning(tmp_path: Path) -> None:
    paths = JobPaths(root=tmp_path, attempt=2)
    write_safetensors(paths.checkpoints / "rank_0" / "launcher_rank_0-1_4.safetensors")

    assert prepare_attempt(paths, 2) is None
    assert not paths.resume.exists()
    # A second file of a step could be taken for the one that the new attempt saves.
    assert not list(paths.checkpoints.rglob("*.safetensors"))
    assert (paths.attempt_folder / "stale" / "rank_0" / "launcher_rank_0-1_4.safetensors").is_file()
    assert left_behind(paths, 2) == {(1, 4): [1]}
    take_back(paths)
    assert (paths.checkpoints / "rank_0" / "launcher_rank_0-1_4.safetensors").is_file()


@pytest.mark.parametrize("damage", [b"data_offsetx", b"{}{}{}{}{}{}", b"\xff" * 12, b"data_offsets"])
def test_a_checkpoint_whose_header_is_damaged_is_not_whole(tmp_path: Path, damage: bytes) -> None:
    """The last is no damage. The file has its length all the same, and another tensor that is whole."""
    file = tmp_path / "x.safetensors"
    tensors = {name: {"dtype": "F32", "shape": [2], "data_offsets": [at, at + 8]} for name, at in (("a", 0), ("b", 8))}
    header = json.dumps({"__metadata__": {"format": "ms"}, **tensors}).encode().replace(b"data_offsets", damage, 1)
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"x" * 16)

    assert is_whole(file) == (damage == b"data_offsets")


def test_resume_and_merge_ckpt_call_the_same_files_whole(tmp_path: Path) -> None:
    """A .ckpt that was cut, or that is no checkpoint at all, as much as a safetensors file."""
    value = b"\x0a\x01w\x12\x11\x08\x01\x12\x07Float32\x1a\x04xxxx"
    whole = b"\x0a" + bytes([len(value)]) + value
    for name, data, expected in (("a", whole, True), ("b", whole[:-2], False), ("c", b"x", False), ("d", b"", False)):
        (tmp_path / f"{name}.ckpt").write_bytes(data)
        assert is_whole(tmp_path / f"{name}.ckpt") == expected


@pytest.fixture
def lock_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAUNCHER_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "locks"


def test_two_jobs_cannot_have_the_same_card(tmp_path: Path, no_survivors: str, lock_folder: Path) -> None:
    first = Supervised(root=tmp_path / "first", program=STEPPING, mark=no_survivors, locks=("card_0", "card_1")).start()
    first.wait_for_pids()
    other = Supervised(root=tmp_path / "other", program="", mark=no_survivors, locks=("card_1", "card_2"))
    with pytest.raises(HostError, match=r"card 1 is taken by job first \(pid \d+\)"):
        locks.check_free(other.locks)
    refused = other.run()
    third = Supervised(root=tmp_path / "third", program="", mark=no_survivors, locks=("card_2",)).run()

    assert refused.state == jobs.FAILED
    assert refused.verdict is not None
    assert "card 1 is taken by job first" in refused.verdict["text"]["en"]
    assert third.state == jobs.SUCCEEDED
    first.stop()
    locks.check_free(first.locks)


def test_a_job_that_waits_starts_when_the_other_has_ended(tmp_path: Path, no_survivors: str, lock_folder: Path) -> None:
    first = Supervised(root=tmp_path / "first", program=STEPPING, mark=no_survivors, locks=("card_0",)).start()
    first.wait_for_pids()
    second = Supervised(root=tmp_path / "second", program="", mark=no_survivors, locks=("card_0",), wait_for_locks=True)
    second.start()
    wait_until(lambda: second.record().note, "note")
    third = replace(second, root=tmp_path / "third").start()
    wait_until(lambda: third.record().note, "note")

    assert second.record().note == f"waiting: card 0 is taken by job first (pid {first.record().supervisor.pid})"  # type: ignore[union-attr]
    assert third.stop().state == jobs.CANCELLED
    assert first.record().supervisor is not None
    first.record().supervisor.send(signal.SIGKILL)  # type: ignore[union-attr]
    first.end()
    assert second.end().state == jobs.SUCCEEDED
    assert second.record().note is None


def test_the_next_attempt_remembers_the_last(tmp_path: Path, no_survivors: str) -> None:
    record = Supervised(root=tmp_path / "job", program="raise ValueError('x')", mark=no_survivors, ranks=1).run()
    following = next_attempt(record)

    assert (following.state, following.attempt, following.verdict) == (jobs.PLANNED, 2, None)
    assert following.earlier[0]["signature"] == "ValueError: x"


def test_a_restart_waits_for_cards_that_are_still_open(tmp_path: Path) -> None:
    handle = tmp_path / "proc" / "77" / "fd" / "3"
    handle.parent.mkdir(parents=True)
    handle.symlink_to("/dev/davinci4")
    asked = iter([False, True])

    assert not wait_until_free([4], give_up=lambda: next(asked), root=tmp_path)
    assert not wait_until_free([4], give_up=lambda: False, root=tmp_path, timeout_s=0.0)
    assert wait_until_free([5], give_up=lambda: False, root=tmp_path)
    handle.unlink()
    assert wait_until_free([4], give_up=lambda: False, root=tmp_path)


def test_a_folder_that_a_new_job_would_have_stays_when_there_is_one(tmp_path: Path) -> None:
    supervised = Supervised(root=tmp_path / "job", program="", mark="none", ranks=1)
    supervised.root.mkdir()
    (supervised.root / "of another job").touch()
    plan: Any = SimpleNamespace(paths=JobPaths(root=supervised.root), launch=supervised.launch())
    with pytest.raises(JobError, match="job exists"):
        start.begin(plan)

    assert [path.name for path in supervised.root.iterdir()] == ["of another job"]
