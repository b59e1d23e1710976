"""``launcher report``, ``compare``, ``plot``, ``top`` and ``status`` as a user types them."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from support.job_folders import SPEC, Made, MadeJob

from launcher import jobs
from launcher.cli.app import main

ONE, TWO = "bcdfg-one", "zzzzz-two"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with two jobs, in a time zone 8 hours east."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "UTC-8")
    time.tzset()
    MadeJob(job_id=ONE, attempts=(Made(ended=30.0, saves=(2, 4), held_out=(2, 4)),)).write(tmp_path / "jobs")
    slower = Made(ended=90.0, more=lambda rank_id, step: {"step_s": 2.0})
    spec = {**SPEC, "training": {"epochs": 3}, "lora": {"r": 8, "alpha": 8, "target_modules": "wq"}}
    MadeJob(job_id=TWO, spec=spec, attempts=(slower,), record={"created": "2026-01-02T00:00:00+00:00"}).write(
        tmp_path / "jobs"
    )
    yield tmp_path
    monkeypatch.undo()
    time.tzset()


def run(*words: str, code: int = 0, env: dict[str, str] | None = None) -> Result:
    result = CliRunner().invoke(main, words, env=env)
    assert result.exit_code == code, result.output + result.stderr
    return result


# --------------------------------------------------------------------------------------------------------- report


def test_a_report_is_named_after_its_job(folder: Path) -> None:
    assert run("report").stdout == f"{TWO}.report.html\n"
    assert run("report", ONE, "-o", "sub/a.html", "--lang", "zh").stdout == "sub/a.html\n"

    assert '<html lang="zh-CN">' in (folder / "sub" / "a.html").read_text(encoding="utf-8")
    assert ONE in (folder / "sub" / "a.html").read_text(encoding="utf-8")
    assert '<html lang="en">' in (folder / f"{TWO}.report.html").read_text(encoding="utf-8")


def test_a_report_takes_the_folder_of_a_job_and_several_jobs(folder: Path) -> None:
    assert run("report", f"jobs/{ONE}").stdout == f"{ONE}.report.html\n"
    assert run("report", "b", "z").stdout == "bcdfg_zzzzz.report.html\n"


def test_what_cannot_be_reported_is_said(folder: Path) -> None:
    assert "error: no job 'x' in jobs" in run("report", "x", code=6).stderr
    (folder / "plain").mkdir()
    assert "plain is not the folder of a job" in run("report", "plain", code=6).stderr
    (folder / "file").write_text("")
    assert "cannot write file/a.html" in run("report", "-o", "file/a.html", code=5).stderr


# --------------------------------------------------------------------------------------------------------- compare


def test_a_comparison_shows_results_and_differences(folder: Path) -> None:
    shown = run("compare", ONE, TWO).stdout

    assert shown.splitlines()[0].split() == ["RESULT", ONE, TWO]
    assert [
        line.split() for line in shown.splitlines() if line.startswith(("Step time", "training.epochs", "lora.r "))
    ] == [
        ["Step", "time", "1", "s", "*", "2", "s"],
        ["training.epochs", "1", "3"],
        ["lora.r", "-", "8"],
    ]
    assert "Versions: no difference in 1 key(s)" in shown


def test_a_comparison_for_programs(folder: Path) -> None:
    value = json.loads(run("compare", ONE, TWO, "--format", "json").stdout)

    assert value["jobs"] == [ONE, TWO]
    assert value["results"]["Step time"] == [1.0, 2.0]
    assert value["results"]["Best held-out loss"] == [2.25, None]
    assert value["differences"]["Spec"]["training.epochs"] == [1, 3]


def test_a_comparison_as_a_page(folder: Path) -> None:
    assert run("compare", ONE, TWO, "--format", "html", "-o", "c.html").stdout == "c.html\n"
    assert "What differs" in (folder / "c.html").read_text()
    assert "compare needs two jobs" in run("compare", ONE, code=2).stderr


# --------------------------------------------------------------------------------------------------------- plot


def test_a_curve_is_drawn_in_the_terminal(folder: Path) -> None:
    lines = run("plot", ONE, TWO, env={"COLUMNS": "60"}).stdout.splitlines()

    assert lines[0] == "Loss (mean over ranks, as the gradients are)"
    assert lines[1:3] == [f"━━ {ONE}  2.25 at step 4", f"━━ {TWO}  2.25 at step 4"]
    assert max(map(len, lines)) <= 62
    assert any(0x2800 < ord(char) < 0x28FF for line in lines for char in line)


def test_every_step_goes_into_a_csv(folder: Path) -> None:
    run("plot", ONE, TWO, "--metric", "loss", "--metric", "eval-loss", "-o", "a.csv")
    with (folder / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert len(rows) == 8
    assert rows[1] == {"job": ONE, "step": "2", "time": "1767225621.000", "loss": "4.25", "eval-loss": "4.5"}
    assert rows[2]["eval-loss"] == ""


@pytest.mark.parametrize("name", ["a.svg", "a.png", "A.SVG"])
def test_a_curve_becomes_a_picture(folder: Path, name: str) -> None:
    run("plot", ONE, "--metric", "tokens-per-second", "--smooth", "0.5", "--log", "-o", name)

    if name.endswith(".png"):
        with Image.open(folder / name) as image:
            assert image.size == (1920, 800)
    else:
        assert (folder / name).read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--metric", "los"), 2, "did you mean loss?"),
        (("-o", "a.pdf"), 2, "a plot is a .svg, .png or .csv"),
        (("-o", "a.svg", "--metric", "loss", "--metric", "memory"), 2, "a picture shows one --metric"),
        (("--metric", "eval-loss"), 6, "no held-out rows were evaluated"),
        (("--smooth", "1"), 2, "--smooth"),
    ],
)
def test_what_cannot_be_drawn_is_said(folder: Path, words: tuple[str, ...], code: int, said: str) -> None:
    assert said in run("plot", TWO, *words, code=code).stderr


def test_a_job_without_the_metric_is_named_and_the_others_are_drawn(folder: Path) -> None:
    shown = run("plot", ONE, TWO, "--metric", "eval-loss")

    assert f"{TWO}: no eval-loss: no held-out rows were evaluated" in shown.stderr
    assert f"━━ {ONE}  2.25 at step 4" in shown.stdout


def test_metrics_are_listed_with_what_the_job_has_of_them(folder: Path) -> None:
    shown = {line.split()[0]: line for line in run("plot", ONE, "--list").stdout.splitlines()}

    assert shown["loss"].split()[-1] == "2.25"
    assert "training.max_grad_norm" in shown["grad-norm"]


# --------------------------------------------------------------------------------------------------------- terminal


def fields(text: str) -> dict[str, str]:
    return {line[:9].strip(): line[10:] for line in text.splitlines()}


def test_status_says_how_far_a_job_is_and_what_to_type_next(folder: Path) -> None:
    found = fields(run("status", ONE).stdout)

    assert found["progress"] == "All 4 steps are done"
    assert found["loss"] == "8.2500 -> 2.2500, lowest 2.2500"
    assert found["held-out"] == "loss 2.2500 at step 4"
    assert found["speed"] == "1 s a step, 3,072 tokens/s on all ranks"
    assert found["time"] == "30.0 s, 11 % in steps, compile 9 s, load 8 s, stop 6.25 s, spawn 2 s, evaluation 1 s"
    assert found["spec"] == "made: full-parameter finetuning"
    assert found["base"] == "none, random weights"
    assert found["data"] == "/gone.mindrecord (128 rows)"
    assert found["created"] == "2026-01-01 08:00:00 +0800"
    assert found["merged"] == "not yet"
    assert found["next"] == f"launcher merge-ckpt {ONE}"


@pytest.mark.parametrize(
    ("state", "saves", "expected"),
    [
        (jobs.FAILED, (2,), "launcher resume"),
        (jobs.FAILED, (), "launcher logs {} --errors"),
        (jobs.CANCELLED, (2,), "launcher resume"),
        (jobs.RUNNING, (2,), "launcher status {} --watch"),
    ],
)
def test_the_next_command_fits_the_state(folder: Path, state: str, saves: tuple[int, ...], expected: str) -> None:
    attempt = Made(ended=30.0, saves=saves)
    MadeJob(job_id="mmmmm-x", state=state, steps=8, attempts=(attempt,)).write(folder / "jobs")
    next_ = fields(run("status", "mmmmm").stdout)["next"]

    assert next_.startswith(expected.format("mmmmm-x"))
    assert fields(run("status", "mmmmm").stdout)["progress"].endswith("(50 %)")


def test_many_ranks_share_a_line_with_their_spread(folder: Path) -> None:
    MadeJob(job_id="mmmmm-x", cards=9, attempts=(Made(ended=30.0, more=lambda rank, _: {"input_s": rank / 10}),)).write(
        folder / "jobs"
    )
    (folder / "jobs" / "mmmmm-x" / "attempts" / "1" / "events" / "rank_8.jsonl").unlink()
    lines = [
        line
        for line in run("status", "mmmmm").stdout.splitlines()
        if line.startswith("ranks ") and "engine" not in line
    ]

    assert lines == [
        ("ranks 0-7 step   step 4  loss 2.0000 to 5.5000  input wait 0.000 to 0.700 s  1000 to 1007 MiB"),
        "ranks 8   not started",
    ]


def test_jobs_for_programs_have_the_newest_held_out_loss(folder: Path) -> None:
    values: list[dict[str, Any]] = json.loads(run("jobs", "--format", "json").stdout)

    assert {value["job_id"]: value["held_out"] for value in values} == {ONE: {"step": 4, "loss": 2.25}, TWO: None}


def test_top_shows_what_runs(folder: Path) -> None:
    assert "Nothing runs." in run("top", "--once").stdout
    job = MadeJob(job_id="mmmmm-x", state=jobs.RUNNING, steps=10, attempts=(Made(),))
    paths = job.write(folder / "jobs")
    jobs.write_record(paths, replace(job.make_record(), host=f"not-{os.uname().nodename}"))
    head, _, header, line = run("top").stdout.splitlines()

    assert "1 running of 3 jobs in jobs" in head
    assert header.split()[:4] == ["JOB", "STATE", "CARDS", "STEP"]
    assert line.split() == [
        "mmmmm-x",
        "running",
        "2",
        "CPU",
        "4/10",
        "40",
        "%",
        "0:06",
        "2.2500",
        "█▃▂▁",
        "1.000",
        "3,072",
    ]


def test_status_for_programs_has_the_goodput(folder: Path) -> None:
    (value,) = json.loads(run("status", ONE, "--format", "json").stdout)

    assert value["job_id"] == ONE
    assert sum(value["goodput"]["parts_s"].values()) == value["goodput"]["wall_s"] == 30.0
