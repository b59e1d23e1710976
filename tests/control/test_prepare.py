"""One plan a run: a dry run prints what submit carries out, also when the data is still to be made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.data_tools import launcher

from launcher.cli.output import show
from launcher.control import prepare, start
from launcher.control.prepare import PreparedRun
from launcher.jobs import JobStore
from launcher.plan.launch import read_launch
from launcher.plan.launch_plan import LaunchPlan


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with raw records and a tokenizer; rows are yet to be made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    launcher("data", "sample", "--size", "200", "--seed", "1", "-o", "raw.jsonl", cwd=tmp_path)
    launcher("data", "convert", "raw.jsonl", "-o", "conversations.json", cwd=tmp_path)
    launcher("data", "tokenizer", "conversations.json", "--vocab-size", "600", "-o", "t.model", cwd=tmp_path)
    return tmp_path


def prepared(folder: Path, *sets: str) -> PreparedRun:
    own = ("data.sample=null", "data.train=raw.jsonl", "model.tokenizer=t.model", "model.vocab_size=600")
    return prepare.prepare(
        "tiny_cpu", cards=2, checkpoint=None, port=None, jobs_dir=folder / "jobs", sets=[*own, *sets]
    )


def carried_out(plan: LaunchPlan) -> dict[str, str]:
    """Write the job's folder as submit does, and return every file of the plan as it lies there."""
    start.write_job(plan)
    return {file.path: (plan.paths.root / file.path).read_text(encoding="utf-8") for file in plan.files}


def sections(shown: str) -> dict[str, str]:
    """The files that a dry run prints, by path."""
    _, *parts = shown.split("\n--- ")
    named = (part.partition("\n") for part in parts)
    return {name: text.rstrip() for name, _, text in named}


def commands(shown: str) -> list[str]:
    lines = shown.partition("\nwould run\n")[2].partition("\n\n---")[0].splitlines()
    return [line.strip() for line in lines]


def test_what_a_dry_run_shows_is_what_submit_writes(raw: Path) -> None:
    run = prepare.complete(prepared(raw))
    shown = show.plan(run.plan)
    written = carried_out(run.plan)
    launch = read_launch(run.plan.paths)
    on_disk = json.loads(run.plan.paths.plan.read_text(encoding="utf-8"))

    assert sections(shown) == {path: text.rstrip() for path, text in written.items()}
    assert commands(shown) == [str(program.command) for program in launch.programs(run.plan.paths)]
    assert launch == run.plan.launch
    assert (on_disk["argv"], on_disk["env"]) == (list(run.plan.command.argv), dict(run.plan.command.env))


def test_a_run_whose_data_is_made_meanwhile_stays_the_one_that_was_shown(raw: Path) -> None:
    run = prepared(raw)
    assert run.pending is not None
    before = show.plan(run.plan, run.pending)
    done = prepare.complete(run)
    after = carried_out(done.plan)

    assert (run.plan.steps, done.pending) == (None, None)
    assert done.plan.steps is not None
    assert commands(before) == commands(show.plan(done.plan))
    assert sections(before) == {path: text.rstrip() for path, text in after.items()}
    # Nothing is decided anew: what follows from the rows is all that is added.
    shown = run.plan
    assert replace(done.plan, inputs=shown.inputs, steps=None, notes=shown.notes, files=shown.files) == shown
    assert [record.job_id for _, record in JobStore(raw / "jobs").all()] == [run.plan.paths.job_id]


def test_rows_that_were_not_known_complete_the_schedule(raw: Path) -> None:
    run = prepared(raw, "training.steps=3")
    done = prepare.complete(run)

    assert done.plan.steps == 3
    assert done.plan.inputs.rows == 200
    assert prepare.complete(done) is done
