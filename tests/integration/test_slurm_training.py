"""The whole path under a real Slurm of two nodes: train, be preempted, be queued again, go on, merge."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.events import read_events
from support.netlab import lab
from support.shop import Workshop
from support.slurmlab import SlurmLab, slurm_lab

from launcher import jobs
from launcher.jobs import JobPaths, JobRecord, read_record
from launcher.jobs.events import read_position

pytestmark = pytest.mark.mindspore

PACKAGE = Path(jobs.__file__).resolve().parents[1]
PATIENCE_S = 240.0 * float(os.environ.get("LAUNCHER_TEST_PATIENCE", "1"))


def launcher(slurm: SlurmLab, folder: Path, *arguments: str) -> str:
    argv = slurm.lab.hosts[0].inside(sys.executable, "-m", "launcher", *arguments)
    result = subprocess.run(argv, cwd=folder, env=slurm.env, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def wait(paths: JobPaths, slurm: SlurmLab, what: str, states: tuple[str, ...] = ()) -> JobRecord:
    """Until the job is in one of ``states``; without any, until rank 1 is in its third step."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        record = read_record(paths)
        assert record is not None
        own = paths.of_attempt(record.attempt)
        if record.state in states or (not states and read_position(own.rank_position(1)) >= 3):
            return record
        late = record.is_final or time.monotonic() > deadline
        assert not late, f"{what}: {record}\n{paths.supervisor_log.read_text()}\n{slurm.logs()}"
        time.sleep(0.1)


# Steps of the tiny model take some 50 ms: so short that training would be over before Slurm has preempted it.
SLOW_FIRST_ATTEMPT = """
import os, time
if os.environ.get("LAUNCHER_ATTEMPT") == "1":
    from launcher.jobs.events import Position
    original = Position.enter
    def enter(self, step):
        original(self, step)
        time.sleep(0.5)
    Position.enter = enter
"""


def test_preempted_while_it_trains_on_both_nodes_and_merged_in_the_end(workshop: Workshop, tmp_path: Path) -> None:
    spec = workshop.write_spec("slurm", lora=True, epochs=4, data_options={"drop_remainder": True})
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW_FIRST_ATTEMPT, encoding="utf-8")
    with lab(2) as made, slurm_lab(made) as slurm:
        where = ("--scheduler", "slurm", "--nodes", "2", "--cards", "2", "--kind", "CPU", "--partition", "low")
        slow = f"env.PYTHONPATH={tmp_path / 'slow'}:{PACKAGE}"
        options = ("--set", slow, "--detach", "--jobs-dir", str(tmp_path))
        said = launcher(slurm, workshop.folder, "submit", spec, *where, *options)
        paths = JobPaths(root=tmp_path / said.split()[-1])
        wait(paths, slurm, "training")
        slurm.run("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
        note = wait(paths, slurm, "preemption", (jobs.PLANNED,)).note
        assert note is not None
        assert "preempted, queued again; saved at step " in note
        saved = int(note.rsplit(" ", 1)[1])
        record = wait(paths, slurm, "the end", (jobs.SUCCEEDED,))
        launcher(slurm, workshop.folder, "merge-ckpt", record.job_id, "--jobs-dir", str(tmp_path))

    assert record.attempt == 2
    assert 3 <= saved < 64
    for rank in (0, 1):
        steps = [e["step"] for e in read_events(paths.of_attempt(2).rank_events(rank)) if e["event"] == "step"]
        assert (steps[0], steps[-1]) == (saved + 1, 64)
    assert list(paths.merged.glob("*.safetensors"))
