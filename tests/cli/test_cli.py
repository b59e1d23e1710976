"""The command line as a user meets it: help, exit codes, and errors without tracebacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.fake_host import CHECKOUT
from support.job_folders import MadeJob

from launcher.cli.app import COMMANDS, main


def launcher(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=lambda c: c[0] if c else "launcher")
def test_help_imports_neither_mindspore_nor_its_friends(tmp_path: Path, command: list[str]) -> None:
    script = f"""
import sys
from launcher.cli import main
try:
    main({[*command, "--help"]!r})
finally:
    heavy = {{"mindspore", "mindformers", "transformers", "torch", "numpy"}} & set(sys.modules)
    assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert result.returncode == 0, result.stderr
    assert "launcher" in result.stdout


# What a command that people type all day must not import, as each costs more than all else that it does.
_NEVER = {
    "jobs": {"numpy", "pydantic", "jinja2", "yaml", "psutil", "launcher.schedulers", "launcher.observe"},
    "status": {"pydantic", "jinja2", "yaml", "psutil", "pyarrow", "launcher.schedulers", "launcher.checkpoint.api"},
    "rank-table check rank_table.json": {"numpy", "pydantic", "jinja2", "yaml", "psutil", "launcher.cluster.discover"},
    "plan tiny_cpu --cards 2": {"numpy", "pyarrow", "rich", "multiprocessing", "launcher.doctor.checks",
                                "launcher.observe", "launcher.inference", "launcher.checkpoint.tensorfile",
                                "launcher.data.preprocess"},
}  # fmt: skip


@pytest.mark.parametrize("command", _NEVER)
def test_commands_typed_all_day_import_little(tmp_path: Path, command: str) -> None:
    MadeJob().write(tmp_path / "jobs")
    (tmp_path / "rank_table.json").write_bytes((CHECKOUT / "rank_tables/1x8.json").read_bytes())
    script = f"""
import sys
from launcher.cli import main
try:
    main({command.split()!r})
finally:
    imported = {_NEVER[command]!r} & set(sys.modules)
    assert not imported, imported
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert result.returncode == 0, result.stderr


def test_every_command_says_what_it_does_and_shows_an_example() -> None:
    context = main.make_context("launcher", ["--help"], resilient_parsing=True)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        assert command.help, name
        assert f"launcher {name}" in command.help, f"{name}: its help has no example"
        assert "\\b" not in command.help, f"{name}: its help shows a mark that is for click"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["nonsense"], 2, "No such command"),
        (["submit", "none.yaml"], 2, "no run spec 'none.yaml'"),
        (["submit", ""], 2, "no run spec ''"),
        (["submit", "tiny_cpuu"], 2, "did you mean tiny_cpu?"),
        (["submit", "bad.yaml"], 2, "bad.yaml:1: unknown key nmae; did you mean name?"),
        (["submit", "llama2_7b", "--cards", "100000"], 2, "llama2_7b is a preset, which is a model"),
        (["plan", "llama2_7b", "--cards", "100000"], 2, "llama2_7b is a preset, which is a model"),
        (["submit", "--cards", "0"], 5, "--cards 0: this host has"),
        (["submit", "--cards", "100000"], 5, "--cards 100000: this host has"),
        (["submit", "--cards", "-1"], 5, "--cards -1"),
        (["submit", "--cards", "two"], 2, "is not a valid integer"),
        (["submit", "--grace", "nan"], 2, "nan is no number of seconds"),
        (["submit", "--hang-timeout", "0"], 2, "0.0 is not in the range x>0"),
        (["stop", "--grace", "nan"], 2, "nan is no number of seconds"),
        (["serve", "last", "--timeout", "nan"], 2, "nan is no number of seconds"),
        (["submit", "--checkpoint", "none.ckpt"], 4, "checkpoint none.ckpt does not exist"),
        (["submit", "--checkpoint", ""], 2, "--checkpoint is empty"),
        (["status"], 6, "there are no jobs"),
        (["status", "nope"], 6, "no job 'nope'"),
        (["logs", "nope"], 6, "no job 'nope'"),
        (["infer", "nope", "--prompt", "x"], 6, "no job 'nope'"),
        (["infer", "./nope", "--prompt", "x"], 6, "no file or folder ./nope"),
        (["infer", "./", "--prompt", "x"], 4, "has no launcher_model.json nor config.json"),
        (["infer", "last"], 2, "nothing to ask"),
        (["infer", "last", "--prompt", " "], 2, "a --prompt is empty"),
        (["infer", "last", "--file", "none.txt"], 3, "cannot read none.txt"),
        (["infer", "last", "--prompt", "x", "--raw", "--system", "y"], 2, "--system needs the prompt template"),
        (["eval", "last", "--data", "none.mindrecord"], 3, "none.mindrecord does not exist"),
        (["eval", "nope"], 6, "no job 'nope'"),
        (["chat", "nope"], 6, "no job 'nope'"),
        (["serve", "nope"], 6, "no job 'nope'"),
        (
            ["serve", "--host", "192.0.2.1"],
            2,
            "--host 192.0.2.1 can be reached from other machines, and there is no token",
        ),
        (["serve", "--token-file", "none"], 3, "cannot read the token in none"),
    ],
)
def test_a_mistake_is_named_with_its_exit_code_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], code: int, expected: str
) -> None:
    (tmp_path / "bad.yaml").write_text("nmae: x\n")
    result = launcher(*arguments, cwd=tmp_path, env={"LAUNCHER_CACHE": str(tmp_path / "cache")})

    assert (result.returncode, result.stdout) == (code, "")
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_dry_run_prints_the_plan_and_touches_nothing(tmp_path: Path) -> None:
    result = launcher("submit", "--cards", "2", "--dry-run", cwd=tmp_path, env={"LAUNCHER_CACHE": str(tmp_path / "c")})

    assert result.returncode == 0, result.stderr
    for part in (
        "No Ascend card found: running tiny_math",
        "rank_table.json",
        "ranks/rank_1.yaml",
        "msrun",
        "--join=True",
        f"train.jsonl to {tmp_path / 'c'}",
        f"folder {tmp_path / 'jobs'}\n",
    ):
        assert part in result.stdout
    assert "Data: making" not in result.stdout + result.stderr  # nothing is being made
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["msrun", "mpirun"])
def test_an_engine_that_is_not_installed_is_said(tmp_path: Path, engine: str) -> None:
    script = f"""
import sys
from launcher.engines import ENGINES
sys.executable = "/nowhere/python"
ENGINES[{engine!r}].find_program()
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": str(tmp_path)}
    )

    assert f"{engine} not found beside /nowhere/python nor on PATH" in result.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "submit", "--cards", "2", "--dry-run"],
        cwd=tmp_path,
        env={**os.environ, "LAUNCHER_CACHE": str(tmp_path / "c")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()


def test_ctrl_c_before_there_is_a_job_ends_as_for_any_program(tmp_path: Path) -> None:
    script = """
import os, signal
from launcher.control import prepare
from launcher.cli import main
prepare.prepare = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)
main(["submit", "--cards", "2"])
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_a_jobs_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = launcher("submit", "--cards", "2", "--no-preflight", "--jobs-dir", "file/jobs", cwd=tmp_path,
                      env={"LAUNCHER_CACHE": str(tmp_path / "cache")})  # fmt: skip

    assert result.returncode == 5
    assert f"error: cannot write {tmp_path}/file/jobs/" in result.stderr
    assert "or pass --jobs-dir DIR" in result.stderr
    assert "Traceback" not in result.stderr


def test_submit_refuses_what_the_cheap_checks_refuse(tmp_path: Path) -> None:
    env = {"HCCL_CONNECT_TIMEOUT": "1", "LAUNCHER_CACHE": str(tmp_path / "cache")}
    result = launcher("submit", "--cards", "2", cwd=tmp_path, env=env)

    assert result.returncode == 5
    assert "this host cannot run the job: 1 check(s) failed" in result.stderr
    assert "-> unset HCCL_CONNECT_TIMEOUT" in result.stderr
    assert "--no-preflight starts all the same" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_no_traceback(tmp_path: Path) -> None:
    result = launcher("plan", "a" * 300, cwd=tmp_path)

    assert result.returncode == 5
    assert result.stderr.startswith(f"error: {tmp_path}") or "File name too long" in result.stderr
    assert "Traceback" not in result.stderr
