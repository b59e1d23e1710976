"""``launcher completion`` in a real bash: commands, options, job ids, specs, presets, steps; and "did you mean"."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.checkpoint_sets import ROOT, llama, write_ranks
from support.fake_host import run_launcher

from launcher import jobs
from launcher.jobs import JobPaths, JobRecord, write_record
from launcher.models.names import GLOBAL_STEP

_COMPLETE = """
eval "$(launcher completion bash)"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_launcher_completion launcher
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for job_id, state in (("bcdfg-demo", jobs.SUCCEEDED), ("tghjk-mine", jobs.FAILED)):
        paths = JobPaths(root=tmp_path / "jobs" / job_id)
        paths.root.mkdir(parents=True)
        record = JobRecord(job_id=job_id, name=job_id[6:], state=state, created=jobs.now(), host="h", cards=2,
                           target="CPU", versions={})  # fmt: skip
        write_record(paths, record)
    return tmp_path


def completed(folder: Path, *words: str) -> list[str]:
    """What bash offers for the last of ``words``."""
    program = shutil.which("bash")
    if program is None:
        pytest.skip("no bash")
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    script = bin_folder / "launcher"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launcher "$@"\n')
    script.chmod(0o755)
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [program, "--norc", "-c", _COMPLETE, "bash", "launcher", *words],
        cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_commands_and_options(here: Path) -> None:
    assert completed(here, "spl") == ["split-ckpt"]
    assert "--watch" in completed(here, "status", "--w")
    assert completed(here, "config", "pres") == ["presets"]


def test_jobs_newest_first_and_last(here: Path) -> None:
    assert completed(here, "status", "") == ["tghjk-mine", "bcdfg-demo", "last"]
    assert completed(here, "merge-ckpt", "bc") == ["bcdfg-demo"]
    assert completed(here, "infer", "tg") == ["tghjk-mine"]
    assert completed(here, "status", "--jobs-dir", "elsewhere", "") == ["last"]


def test_jobs_to_remove_to_run_again_and_by_name_and_their_tags(here: Path) -> None:
    (here / "jobs" / "bcdfg-demo" / "labels.json").write_text('{"tags": ["best"], "note": ""}')

    assert completed(here, "jobs", "rm", "tg") == ["tghjk-mine"]
    assert completed(here, "submit", "--from", "bc") == ["bcdfg-demo"]
    assert completed(here, "status", "de") == ["demo"]
    assert completed(here, "jobs", "--tag", "") == ["best"]


def test_specs_and_presets(here: Path) -> None:
    (here / "configs").mkdir()
    (here / "configs" / "own.yaml").write_text("name: own\n")

    assert completed(here, "plan", "o") == ["own"]
    assert completed(here, "submit", "tiny") == ["tiny_cpu", "tiny_math"]
    assert completed(here, "config", "new", "x", "--preset", "llama2_1") == ["llama2_13b"]


def test_steps_of_a_job_without_checkpoints_are_none(here: Path) -> None:
    assert completed(here, "merge-ckpt", "bcdfg-demo", "--step", "") == []


def test_steps_that_every_rank_saved_whole(here: Path) -> None:
    files = {
        f"checkpoint/rank_{rank}/x_rank_{rank}-1_{step}.safetensors": {
            **llama(),
            GLOBAL_STEP: np.array([step], np.int32),
        }
        for rank in (0, 1)
        for step in (2, 4, 6)
    }
    folder = write_ranks(here / "jobs" / "bcdfg-demo", files)
    (folder / "checkpoint" / "rank_1" / "x_rank_1-1_4.safetensors").unlink()
    torn = folder / "checkpoint" / "rank_0" / "x_rank_0-1_6.safetensors"
    torn.write_bytes(torn.read_bytes()[:-50])

    assert completed(here, "merge-ckpt", "bcdfg-demo", "--step", "") == ["2"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script(tmp_path: Path, shell: str) -> None:
    assert "_LAUNCHER_COMPLETE" in run_launcher("completion", shell, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("submt",), "Did you mean 'submit'?"),
        (("config", "lst"), "Did you mean 'list'?"),
        (("sweep", "stauts"), "Did you mean 'status'?"),
        (("status", "tghj-mine"), "did you mean tghjk-mine?"),
        (("status", "mime"), "did you mean tghjk-mine?"),
        (("plan", "tiny_cpuu"), "did you mean tiny_cpu?"),
        (("config", "new", "x", "--preset", "lama2_7b"), "did you mean llama2_7b?"),
        (("status", "lats"), "did you mean last?"),
        (("jobs", "--state", "runing"), "did you mean running?"),
        (("data", "templates", "plian"), "did you mean plain?"),
        (("infer", "my-modl", "--prompt", "x"), "did you mean my-model? or a job: launcher jobs lists them"),
        (("infer", "./my-modl", "--prompt", "x"), "did you mean my-model? give a job"),
        (("merge-ckpt", "my-modl"), "did you mean my-model?"),
        (("merge-ckpt", "./my-modl"), "did you mean my-model?"),
        (("chat", "my-model/rows.safetensor"), "did you mean my-model/rows.safetensors?"),
        (("submit", "--model", "my-modl"), "did you mean my-model?"),
        (("submit", "--data", "row.jsonl"), "did you mean rows.jsonl?"),
        (("data", "convert", "row.jsonl"), "did you mean rows.jsonl?"),
        (("data", "show", "row.jsonl"), "did you mean rows.jsonl?"),
        (("data", "show", "rows.jsonl"), "launcher data preprocess makes one of raw records"),
        (("infer", "last", "--file", "row.jsonl"), "did you mean rows.jsonl?"),
        (("data", "preprocess", "rows.jsonl", "--seq-length", "8", "--tokenizer", "row.jsonl"), "did you mean rows"),
        (("rank-table", "make", "-i", "host.yaml"), "did you mean hosts.yaml?"),
        (("rank-table", "show", "host.yaml"), "cannot read host.yaml: No such file or directory"),
        (("rank-table", "convert", "host.yaml"), "did you mean hosts.yaml?"),
    ],
)
def test_what_was_meant_is_named(here: Path, argv: tuple[str, ...], said: str) -> None:
    (here / "my-model").mkdir()
    for name in ("my-model/rows.safetensors", "rows.jsonl", "hosts.yaml"):
        (here / name).write_text("{}")
    done = run_launcher(*argv, cwd=here)

    assert done.returncode != 0
    assert said in done.stderr
