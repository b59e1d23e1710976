"""Tags and notes of jobs, and jobs by their name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.job_folders import MadeJob

from launcher import jobs
from launcher.cli.app import main
from launcher.errors import JobError, Note, SpecError
from launcher.jobs import JobPaths, JobStore, Labels, read_labels


def run(root: Path, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--jobs-dir", str(root)])


def made(root: Path, job_id: str, **record: Any) -> JobPaths:
    return MadeJob(job_id=job_id, record={"name": job_id.split("-", 1)[1], **record}).write(root)


def test_tags_and_a_note_are_given_shown_listed_and_taken_off(tmp_path: Path) -> None:
    paths = made(tmp_path, "bcdfg-x")
    made(tmp_path, "tghjk-y")

    done = run(tmp_path, "jobs", "tag", "bc", "best", "中文", "--note", "for the\n paper")
    assert done.stdout == "bcdfg-x: best, 中文; for the paper\n"
    run(tmp_path, "jobs", "tag", "bc", "best", "third", "--remove", "中文")
    assert read_labels(paths) == Labels(tags=("best", "third"), note="for the paper")
    assert run(tmp_path, "jobs", "tag", "bc").stdout == "bcdfg-x: best, third; for the paper\n"

    header, first, second = run(tmp_path, "jobs").stdout.splitlines()
    assert header.endswith("TAGS        NOTE")
    assert first.endswith("best,third  for the paper")
    assert second.endswith("-           -")
    assert run(tmp_path, "jobs", "--tag", "third", "--tag", "best").stdout.splitlines()[1:] == [first]
    assert f"launcher jobs --jobs-dir {tmp_path} lists all 2." in run(tmp_path, "jobs", "--tag", "other").stdout
    assert "tags      best, third\nnote      for the paper" in run(tmp_path, "status", "bcdfg-x").stdout
    values = json.loads(run(tmp_path, "jobs", "--format", "json").stdout)
    assert values[0]["labels"] == {"tags": ["best", "third"], "note": "for the paper"}

    run(tmp_path, "jobs", "tag", "bc", "--note", "", "--remove", "best", "--remove", "third")
    assert run(tmp_path, "jobs", "tag", "bc").stdout == "bcdfg-x: no tags and no note\n"
    assert "TAGS" not in run(tmp_path, "jobs").stdout


def test_a_long_note_is_cut_in_the_list_alone(tmp_path: Path) -> None:
    made(tmp_path, "bcdfg-x")
    run(tmp_path, "jobs", "tag", "last", "--note", "word " * 20)

    assert run(tmp_path, "jobs").stdout.rstrip().endswith("word word word word word word word wo...")
    assert "note      " + ("word " * 20).strip() in run(tmp_path, "status").stdout


@pytest.mark.parametrize("tag", ["", "-x", "two words", "a,b", "x" * 65, "_x"])
def test_what_is_no_tag_is_refused(tag: str) -> None:
    with pytest.raises(SpecError, match="is no tag"):
        Labels().changed(add=[tag])


def test_a_tag_that_is_not_there_and_a_note_without_end_are_refused() -> None:
    with pytest.raises(SpecError, match="no tag 'b' to remove") as caught:
        Labels(tags=("a",)).changed(remove=["b"])
    assert caught.value.hint == "its tags: a"
    with pytest.raises(SpecError, match="a note of 2001 characters"):
        Labels().changed(note="x" * 2001)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"tags": "a", "note": 3}', '{"tags": [1, "a"]}', '{"new": 1}'])
def test_damaged_labels_hide_no_job(tmp_path: Path, text: str) -> None:
    paths = made(tmp_path, "bcdfg-x")
    paths.labels.write_text(text)

    assert read_labels(paths).note == ""
    assert "bcdfg-x" in run(tmp_path, "jobs").stdout


def test_a_job_that_is_gone_is_not_labelled_back(tmp_path: Path) -> None:
    from launcher.control.labelling import label

    with pytest.raises(JobError, match="is gone"):
        label(JobPaths(root=tmp_path / "bcdfg-x"), add=["a"], remove=(), note=None)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ by name


def test_a_name_means_the_newest_of_that_name_and_it_is_said(tmp_path: Path) -> None:
    made(tmp_path, "bcdfg-x", created="2026-01-03T00:00:00+00:00")
    made(tmp_path, "tghjk-x", created="2026-01-02T00:00:00+00:00")
    made(tmp_path, "zghjk-y", created="2026-01-04T00:00:00+00:00")

    with pytest.warns(Note, match="x is bcdfg-x, the newest of 2 jobs of that name"):
        assert JobStore(tmp_path).get("x")[1].job_id == "bcdfg-x"
    done = run(tmp_path, "status", "y")
    assert done.stderr == "note: y is zghjk-y\n"
    assert done.stdout.startswith("job       zghjk-y\n")
    assert run(tmp_path, "compare", "x", "x", "--format", "json").stderr.count("note:") == 1


def test_an_id_and_the_beginning_of_one_need_no_note(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    made(tmp_path, "bcdfg-bcdfg")
    made(tmp_path, "tghjk-tghjk-x")

    assert JobStore(tmp_path).get("bcdfg-bcdfg")[1].job_id == "bcdfg-bcdfg"
    assert JobStore(tmp_path).get("tg")[1].job_id == "tghjk-tghjk-x"
    assert not recwarn.list


def test_the_beginning_of_one_and_the_name_of_another_is_neither(tmp_path: Path) -> None:
    made(tmp_path, "bcdfg-x")
    made(tmp_path, "tghjk-bcd")

    with pytest.raises(JobError, match="'bcd' fits 2 jobs: bcdfg-x, tghjk-bcd"):
        JobStore(tmp_path).get("bcd")
    assert jobs.find_job("bcdfg", tmp_path) is not None
