"""Folders of jobs that earlier versions wrote: their words for schedulers are read, shown, stopped and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.supervised import Supervised, wait_until

from launcher import jobs
from launcher.jobs import JobPaths
from launcher.plan.launch import read_launch
from launcher.schedulers import registry

TWICE = "ready(); step(1)\nif paths.attempt == 1:\n    raise ValueError('once')"


def in_earlier_words(paths: JobPaths, launch: dict[str, Any], record: dict[str, str]) -> None:
    """Write both documents as they were: the scheduler in ``where``, by its name of then."""
    for file, where in ((paths.launch, launch), (paths.record, record)):
        raw = json.loads(file.read_text(encoding="utf-8"))
        kept = {key: value for key, value in raw.items() if key not in ("scheduler", "settings", "scheduler_job")}
        kept["world"] = kept.pop("world_size", None)
        file.write_text(json.dumps({**kept, "where": where}), encoding="utf-8")


def launcher(job: Supervised, *argv: str) -> str:
    command = [sys.executable, "-m", "launcher", argv[0], "job", *argv[1:], "--jobs-dir", str(job.root.parent)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return result.stdout + result.stderr


def job_of(folder: Path, mark: str, launch: dict[str, Any], record: dict[str, str]) -> Supervised:
    job = Supervised(root=folder / "job", program="", mark=mark, ranks=1)
    in_earlier_words(job.prepare(host=""), launch, record)
    return job


def test_a_job_of_this_host_is_shown_and_resumed(tmp_path: Path, no_survivors: str) -> None:
    job = Supervised(root=tmp_path / "job", program=TWICE, mark=no_survivors, ranks=1)
    job.run()
    in_earlier_words(job.paths, {}, {})

    assert "failed" in launcher(job, "status")
    launcher(job, "resume", "--detach")
    wait_until(lambda: job.record().state == jobs.SUCCEEDED, "the end")
    assert job.record().attempt == 2


def test_a_job_of_this_host_is_stopped(tmp_path: Path, no_survivors: str) -> None:
    job = Supervised(root=tmp_path / "job", program="ready(); step(1)\ntime.sleep(600)", mark=no_survivors, ranks=1)
    job.start()
    job.wait_for(jobs.RUNNING)
    in_earlier_words(job.paths, {}, {})

    assert "cancelled" in launcher(job, "stop")
    job.end()


def test_a_job_over_ssh_finds_its_hosts_and_its_settings(tmp_path: Path) -> None:
    job = job_of(tmp_path, "none", {"kind": "hosts", "ssh_config": "/c", "env": {"A": "b"}}, {})
    launch = read_launch(job.paths)

    assert registry.get(launch.scheduler).name == "ssh"
    assert launch.settings == {"ssh_config": "/c", "env": {"A": "b"}}
    assert registry.get("here").name == "local"


def test_a_job_of_kubernetes_is_shown_stopped_and_resumed(tmp_path: Path) -> None:
    options = {"image": "i", "volumes": ["data:/d"], "node_selector": []}
    where = {"kind": "kubernetes", "options": options, "cards": ""}
    job = job_of(tmp_path, "none", where, {"kind": "kubernetes", "id": "job"})
    (job.root / "kubernetes.yaml").touch()

    assert "kubernetes job job" in launcher(job, "status")
    assert "kubectl delete -f" in launcher(job, "stop")
    assert f"Next: kubectl replace --force -f {job.root / 'kubernetes.yaml'}" in launcher(job, "resume")
    assert (job.record().state, job.record().scheduler, job.record().scheduler_job) == (
        jobs.PLANNED, "kubernetes", "job"
    )  # fmt: skip


def test_a_job_of_slurm_keeps_its_number(tmp_path: Path) -> None:
    where = {"kind": "slurm", "options": {"gres": None, "sbatch": []}}
    job = job_of(tmp_path, "none", where, {"kind": "slurm", "id": "17"})

    assert (job.record().scheduler, job.record().scheduler_job) == ("slurm", "17")
    assert read_launch(job.paths).settings == {"options": {"gres": None, "sbatch": []}}


@pytest.mark.parametrize("name", ["launch", "record"])
def test_a_scheduler_that_is_not_installed_here_hides_no_job(tmp_path: Path, name: str) -> None:
    other = {"kind": "lsf", "id": "5"}
    job = job_of(tmp_path, "none", other if name == "launch" else {}, other if name == "record" else {})

    assert "planned" in launcher(job, "status")
    assert "cancelled" in launcher(job, "stop")
