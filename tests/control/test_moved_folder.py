"""A job's folder that lies elsewhere than where it was made: its rank YAMLs name the old place."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.control import prepare, start
from launcher.errors import JobError
from launcher.jobs import FAILED, JobPaths, JobRecord, write_record


@pytest.fixture
def failed(tmp_path: Path) -> tuple[JobPaths, JobRecord]:
    plan = prepare.prepare("tiny_cpu", cards=1, checkpoint=None, port=None, jobs_dir=tmp_path / "jobs").plan
    record = replace(start.write_job(plan), state=FAILED)
    write_record(plan.paths, record)
    return plan.paths, record


def test_a_copy_is_not_resumed_and_the_original_is_named(failed: tuple[JobPaths, JobRecord], tmp_path: Path) -> None:
    paths, record = failed
    copy = JobPaths(root=tmp_path / "copies" / paths.job_id)
    shutil.copytree(paths.root, copy.root)
    before = {*copy.root.rglob("*"), copy.resume_lock}
    with pytest.raises(JobError, match="was copied or moved") as caught:
        start.begin_again(copy, record)

    assert f"{copy.root} was copied or moved: its rank files write to {paths.root}" in str(caught.value)
    assert caught.value.hint == f"launcher resume {paths.job_id} --jobs-dir {tmp_path / 'jobs'}"
    assert set(copy.root.rglob("*")) == before


def test_a_moved_folder_is_to_be_moved_back(failed: tuple[JobPaths, JobRecord], tmp_path: Path) -> None:
    paths, record = failed
    moved = JobPaths(root=tmp_path / "moved")
    paths.root.rename(moved.root)
    with pytest.raises(JobError, match="was copied or moved") as caught:
        start.begin_again(moved, record)

    assert caught.value.hint == f"mv {moved.root} {paths.root}"


def test_another_way_to_the_same_folder_is_no_move(
    failed: tuple[JobPaths, JobRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, record = failed
    (tmp_path / "link").symlink_to(tmp_path / "jobs")
    monkeypatch.setattr(start, "newest_saved", lambda *_: (0, 1))
    monkeypatch.setattr(start, "_begin_again_here", lambda paths, *_: start.Started(paths=paths))
    linked = JobPaths(root=tmp_path / "link" / paths.job_id)

    assert start.begin_again(linked, record).paths == linked


def test_a_rank_file_that_cannot_be_read_stops_it(failed: tuple[JobPaths, JobRecord]) -> None:
    paths, record = failed
    (paths.root / "ranks" / "rank_0.yaml").write_text("output_dir: [", encoding="utf-8")
    with pytest.raises(JobError, match=r"cannot read .*rank_0\.yaml"):
        start.begin_again(paths, record)
