"""The run of a job again, and what a job's folder says of where it came from."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file
from support.job_folders import MadeJob

from launcher import jobs
from launcher.checkpoint.compare import weights_fingerprint
from launcher.cli.app import main
from launcher.cli.options.group import takes
from launcher.cli.options.run import RunChoice
from launcher.control import prepare, start
from launcher.control.origin import installed_packages, origin
from launcher.errors import JobError, SpecError
from launcher.jobs import JobPaths, JobRecord
from launcher.plan.launch import read_launch
from launcher.plan.launch_plan import LaunchPlan

SETS = ("training.epochs=3", "lora.r=4", "data.batch_size=8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LAUNCHER_CPU_DEVICES", "4")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def planned(folder: Path, spec: str | None = "tiny_cpu", **asked: Any) -> LaunchPlan:
    given = {"cards": None, "checkpoint": None, "port": None, "jobs_dir": folder / "jobs", **asked}
    return prepare.prepare(spec, **given).plan


def written(folder: Path, **asked: Any) -> tuple[JobPaths, JobRecord]:
    plan = planned(folder, **{"cards": 2, "sets": SETS, **asked})
    return plan.paths, start.write_job(plan)


def test_the_same_run_again(here: Path) -> None:
    job = written(here)
    run = prepare.prepare(None, cards=None, checkpoint=None, port=None, jobs_dir=here / "jobs", earlier=job)
    first = json.loads(job[0].spec.read_text())

    assert run.plan.spec.model_dump(mode="json") == first
    assert (run.plan.spec_name, run.plan.cluster.num_devices) == ("tiny_cpu", 2)
    assert run.plan.paths.job_id != job[0].job_id
    assert run.notes[0] == f"The run of {job[0].job_id} again."
    start.write_job(run.plan)
    kept = json.loads(run.plan.paths.asked.read_text())
    assert (kept["from"], kept["spec"]) == (job[0].job_id, "tiny_cpu")
    assert kept["values"]["lora"]["r"] == 4


def test_on_other_cards_and_with_other_settings(here: Path) -> None:
    job = written(here)

    again = planned(here, None, earlier=job, cards=4, sets=["lora.r=16"])

    assert (again.spec.lora.r if again.spec.lora else None, again.spec.training.epochs) == (16, 3)
    assert again.degrees.data_parallel == 4
    assert planned(here, None, earlier=job, cards=1).degrees.data_parallel == 1


def test_a_preset_that_is_replaced_gives_its_own_values(here: Path) -> None:
    """The job keeps what was asked for, and not what its preset made of it."""
    job = written(here)
    (here / "configs" / "presets").mkdir(parents=True)
    sizes = {**json.loads(job[0].spec.read_text())["model"], "num_layers": 5}
    wanted = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size", "seq_length")
    lines = "".join(f"  {key}: {sizes[key]}\n" for key in wanted)
    (here / "configs" / "presets" / "other.yaml").write_text(f"source: here\nmodel:\n{lines}")

    assert json.loads(job[0].asked.read_text())["values"]["model"] == {"preset": "tiny_cpu"}
    assert planned(here, None, earlier=job, sets=["model.preset=other"]).spec.model.num_layers == 5


def test_the_environment_counts_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_TRAINING__EPOCHS", "5")
    job = written(here, sets=())
    monkeypatch.setenv("LAUNCHER_TRAINING__EPOCHS", "7")

    assert planned(here, None, earlier=job).spec.training.epochs == 5
    assert planned(here, None, earlier=job, sets=["training.epochs=9"]).spec.training.epochs == 9


def test_paths_are_those_of_the_folder_of_the_first_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = JobPaths(root=here / "jobs" / "bcdfg-x")
    made = MadeJob(job_id="bcdfg-x").write(here / "jobs")
    values = {
        "name": "x", "model": {"preset": "tiny_cpu", "checkpoint": "base", "tokenizer": "/t.model"},
        "data": {"train": [{"path": "a.jsonl", "weight": 2}, "b/*.jsonl"]}, "evaluation": {"data": "held.jsonl"},
    }  # fmt: skip
    made.asked.write_text(json.dumps({"spec": "x", "folder": str(here), "values": values}))
    record = replace(MadeJob(job_id="bcdfg-x").make_record())
    from launcher.cluster.discover import local_cluster
    from launcher.control.asked import asked_again

    same = asked_again(paths, record, local_cluster(2), []).source.values
    assert same == values
    (here / "sub").mkdir()
    monkeypatch.chdir(here / "sub")
    moved = asked_again(paths, record, local_cluster(2), []).source.values

    assert moved["model"] == {"preset": "tiny_cpu", "checkpoint": f"{here}/base", "tokenizer": "/t.model"}
    assert moved["data"]["train"] == [{"path": f"{here}/a.jsonl", "weight": 2}, f"{here}/b/*.jsonl"]
    assert moved["evaluation"] == {"data": f"{here}/held.jsonl"}


def test_a_job_of_an_earlier_version_runs_again_too(here: Path) -> None:
    job = written(here)
    job[0].asked.unlink()
    first = json.loads(job[0].spec.read_text())

    same = prepare.prepare(None, cards=None, checkpoint=None, port=None, jobs_dir=here / "jobs", earlier=job)
    assert same.plan.spec.model_dump(mode="json") == first
    assert not any("decided anew" in note for note in same.notes)
    other = prepare.prepare(None, cards=4, checkpoint=None, port=None, jobs_dir=here / "jobs", earlier=job)
    assert other.plan.degrees.data_parallel == 4
    assert any(note.endswith("so these are decided anew: parallel.") for note in other.notes)
    job[0].spec.write_text("{")
    with pytest.raises(JobError, match=r"spec\.json is missing or damaged"):
        planned(here, None, earlier=job)


def test_a_spec_beside_it_and_what_is_no_job_are_refused(here: Path) -> None:
    job = written(here)
    with pytest.raises(SpecError, match="--from and SPEC tiny_cpu both say what is run"):
        planned(here, "tiny_cpu", earlier=job)

    done = CliRunner().invoke(main, ["submit", "--from", str(here), "--dry-run"])
    assert (done.exit_code, "is not the folder of a job" in done.stderr) == (6, True)


def test_a_dry_run_by_name_says_which_and_changes_nothing(here: Path) -> None:
    job = written(here)
    before = sorted(here.rglob("*"))

    done = CliRunner().invoke(main, ["submit", "--from", "tiny_cpu", "--set", "lora.r=2", "--dry-run"])

    assert done.exit_code == 0, done.output
    assert f"note: tiny_cpu is {job[0].job_id}" in done.stderr
    assert f"The run of {job[0].job_id} again." in done.stdout
    assert sorted(here.rglob("*")) == before


# ------------------------------------------------------------------------------------------------ engine and limits


@pytest.mark.parametrize(
    ("words", "scheduler", "expected"),
    [
        ([], "local", ("direct", 5.0, 3)),
        (["--grace", "30"], "local", ("direct", 30.0, 3)),  # the default, and yet said
        (["--engine", "mpirun", "--max-restarts", "0"], "local", ("mpirun", 5.0, 0)),
        ([], "slurm", (None, 5.0, 3)),
    ],
)
def test_engine_and_limits_are_the_jobs(
    here: Path, words: list[str], scheduler: str, expected: tuple[Any, ...]
) -> None:  # fmt: skip
    from launcher.plan.launch import Limits
    from launcher.plan.placement import RunOptions

    limits = Limits(grace_s=5.0, max_restarts=3)
    earlier = written(here, options=RunOptions(engine="direct", limits=limits))[0]
    assert read_launch(earlier).limits.max_restarts == 3

    @click.command()
    @takes(RunChoice, "run")
    def ask(run: RunChoice) -> None:
        found = run.options(earlier, scheduler)
        click.echo(json.dumps([found.engine, found.limits.grace_s, found.limits.max_restarts]))

    assert tuple(json.loads(CliRunner().invoke(ask, words).output)) == expected


# ------------------------------------------------------------------------------------------------ where it came from


def test_a_job_keeps_the_packages_it_was_submitted_with(here: Path) -> None:
    paths, record = written(here)
    text = paths.packages.read_text()

    assert record.origin["packages"] == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert f"numpy=={np.__version__}" in text.splitlines()
    assert text == installed_packages()
    assert record.origin["folder"] == str(here)
    assert record.origin["host"]


def test_a_base_is_known_by_its_weights_wherever_it_lies(tmp_path: Path) -> None:
    weights = {"w": np.arange(6, dtype=np.float32), "large": np.zeros((300, 300), np.float32)}
    save_file(weights, tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    one = origin(str(tmp_path / "a.safetensors")).values["base"]
    assert one == origin(str(tmp_path / "b.safetensors")).values["base"]

    weights["w"] = weights["w"] + 1
    save_file(weights, tmp_path / "b.safetensors")
    assert origin(str(tmp_path / "b.safetensors")).values["base"] != one
    assert len(weights_fingerprint(tmp_path)) == 64  # a folder of shards
    (tmp_path / "b.safetensors").write_bytes(b"none")
    assert weights_fingerprint(tmp_path) == ""
    assert "base" not in origin(None).values


def test_two_working_folders_of_one_commit_differ_by_their_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    program = shutil.which("git")
    if program is None:
        pytest.skip("no git")

    def git(*words: str) -> None:
        subprocess.run([program, "-c", "user.name=x", "-c", "user.email=x@y", *words], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "code.py").write_text("one\n")
    git("add", "code.py")
    git("commit", "-qm", "first")
    clean = origin().values
    (tmp_path / "code.py").write_text("two\n")
    two = origin().values
    (tmp_path / "code.py").write_text("three\n")

    assert "changes" not in clean
    assert two["commit"] == clean["commit"] + "+changes"
    assert two["changes"] != origin().values["changes"]


def test_compare_says_which_packages_and_origins_differ(tmp_path: Path) -> None:
    one = MadeJob(job_id="bcdfg-a", record={"origin": {"user": "me", "base": "11", "host": "a"}}).write(tmp_path)
    two = MadeJob(job_id="tghjk-b", record={"origin": {"user": "me", "base": "22", "host": "a"}}).write(tmp_path)
    words = ["compare", "bcdfg", "tghjk", "--jobs-dir", str(tmp_path)]
    one.packages.write_text("numpy==1.26.4\nyaml==6\n")
    assert "PACKAGES" not in CliRunner().invoke(main, words).stdout  # one of an earlier version has none

    two.packages.write_text("numpy==1.26.3\nyaml==6\nmore==1\n")
    shown = CliRunner().invoke(main, words).stdout

    lines = [line.split() for line in shown.splitlines()]
    assert ["base", "11", "22"] in lines
    assert ["numpy", "1.26.4", "1.26.3"] in lines
    assert ["more", "-", "1"] in lines
    assert "2 other key(s) are the same" in shown
    assert jobs.read_record(one) is not None
    page = CliRunner().invoke(main, [*words, "--format", "html", "--lang", "zh"]).stdout
    assert "软件包" in page


@pytest.mark.parametrize(
    ("program", "shown"), [("/usr/bin/launcher", "launcher"), ("/site/launcher/__main__.py", "python -m launcher")]
)
def test_the_command_is_told_as_it_can_be_typed(program: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [program, "submit", "--note", "two words"])

    assert origin().values["command"] == f"{shown} submit --note 'two words'"
