"""Commands that a message says to type: they find the job that the message is about."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from launcher import jobs
from launcher.cli.app import main
from launcher.cli.options.common import in_jobs_dir, jobs_dir_option
from launcher.cli.output import show
from launcher.jobs import JobPaths, JobRecord, write_record

JOB = "bcdfg-x"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A jobs folder with one job that has ended."""
    paths = JobPaths(root=tmp_path / "my jobs" / JOB)
    paths.root.mkdir(parents=True)
    record = JobRecord(
        job_id=JOB, name="x", state=jobs.SUCCEEDED, created=jobs.now(), host="n", cards=1, target="CPU", versions={},
    )  # fmt: skip
    write_record(paths, record)
    return paths.root.parent


@pytest.mark.parametrize(
    ("arguments", "follows"),
    [
        (("stop", "last"), "hint: launcher status{} bcdfg-x"),
        (("resume", "last"), "hint: launcher merge-ckpt{} bcdfg-x"),
        (("status", "nothing"), "hint: launcher jobs{} lists them"),
        (("jobs", "--name", "nothing"), "launcher jobs{} lists all 1"),
    ],
)
def test_a_jobs_folder_that_was_named_is_named_again(folder: Path, arguments: tuple[str, ...], follows: str) -> None:
    named = CliRunner().invoke(main, [*arguments, "--jobs-dir", str(folder)])
    assert follows.format(f" --jobs-dir '{folder}'") in named.output
    known = CliRunner().invoke(main, arguments, env={"LAUNCHER_JOBS": str(folder)})
    assert follows.format("") in known.output  # the environment holds for the next command too


def test_the_end_of_a_run_names_the_jobs_folder_and_ends_with_the_job(folder: Path) -> None:
    @click.command()
    @jobs_dir_option
    def end(jobs_dir: Path) -> None:
        paths, record = jobs.JobStore(jobs_dir).get(JOB)
        click.echo(show.finished(paths, record, show.Progress(1)))
        click.echo(in_jobs_dir("launcher merge-ckpt out"))  # a folder is found without it

    lines = CliRunner().invoke(end, ["--jobs-dir", str(folder)]).output.splitlines()
    assert lines[-2:] == [f"Next: launcher merge-ckpt --jobs-dir '{folder}' {JOB}", "launcher merge-ckpt out"]
