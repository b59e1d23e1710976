"""What a package adds by entry points: the scheduler, the tracker and the template of ``examples/plugin``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.supervised import PROGRAMS, marked, wait_until

from launcher import jobs
from launcher.errors import HostError, SpecError
from launcher.jobs import JobPaths, JobRecord, JobStore
from launcher.schedulers import registry

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "plugin"

# As ``launcher submit`` does it, but for the ranks, which are small programs.
SUBMIT = """
import sys
from dataclasses import replace
from pathlib import Path
from launcher.control import prepare, start
run = prepare.complete(prepare.prepare(
    "tiny_cpu", cards=2, checkpoint=None, port=None, jobs_dir=Path("jobs"), scheduler="background",
    values={"nice": "5"}, sets=["data.sample={size: 64, seed: 1}"], track=["lines"],
))
launch = replace(run.plan.launch, worker=(sys.argv[1],), env={"RANK_PROGRAM": sys.argv[2]})
print(start.begin(replace(run.plan, launch=launch)).paths.job_id)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package, and one that cannot be loaded."""
    pytest.importorskip("hatchling", reason="hatchling builds the package: pip install '.[test]'")
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(EXAMPLE, folder / "source")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([*pip, "--target", folder / "site", source], check=True, capture_output=True)
    info = folder / "site" / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[launcher.schedulers]\nbroken = no_such_module:SCHEDULER\n")
    return folder / "site"


@pytest.fixture
def installed(site: Path, tmp_path: Path) -> Path:
    """The package beside a working folder."""
    folder = tmp_path / "site"
    folder.symlink_to(site)
    return folder


def run(installed: Path, mark: str, *argv: str, code: int = 0) -> str:
    folder = installed.parent
    paths = os.pathsep.join([str(installed), os.environ["PYTHONPATH"]])
    env = {**os.environ, "PYTHONPATH": paths, "LAUNCHER_TEST": mark, "LAUNCHER_CACHE": str(folder / "cache")}
    result = subprocess.run(
        [sys.executable, *argv], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == code, result.stderr
    return result.stdout + result.stderr


def job_of(installed: Path) -> tuple[JobPaths, JobRecord]:
    return JobStore(installed.parent / "jobs").get("last")


def test_its_options_and_its_files_are_those_of_submit(installed: Path) -> None:
    submit = ("-m", "launcher", "submit", "tiny_cpu", "--cards", "2")
    assert "background: priority, 0 to 19" in run(installed, "", "-m", "launcher", "submit", "--help")
    shown = run(installed, "", *submit, "--scheduler", "background", "--nice", "7", "--dry-run")
    assert "\n--- background.sh\n" in shown
    assert f"exec nice -n 7 {sys.executable} -m launcher node --lead --job " in shown
    assert "--nice 'x' is no number" in run(installed, "", *submit, "--scheduler", "background", "--nice", "x", code=2)
    said = run(installed, "", *submit, "--nice", "7", code=2)
    assert "--nice has no effect with --scheduler local" in said
    assert "did you mean --scheduler background?" in said
    assert "scheduler broken cannot be loaded" in run(installed, "", *submit, "--scheduler", "broken", code=5)
    assert not (installed.parent / "jobs").exists()


def test_a_job_runs_through_it(installed: Path, no_survivors: str) -> None:
    program = "ready(); step(1); print('nice', os.getpriority(os.PRIO_PROCESS, 0))"
    run(installed, no_survivors, "-c", SUBMIT, str(PROGRAMS / "rank.py"), program)
    wait_until(lambda: job_of(installed)[1].is_final, "the end")
    paths, record = job_of(installed)
    priority = str(min(os.getpriority(os.PRIO_PROCESS, 0) + 5, 19))

    assert (record.state, record.scheduler) == (jobs.SUCCEEDED, "background"), paths.supervisor_log.read_text()
    assert [paths.rank_log(rank).read_text().split()[-2:] for rank in (0, 1)] == [["nice", priority]] * 2
    assert f"background job {paths.job_id}" in run(installed, "", "-m", "launcher", "status", "last")
    wait_until(lambda: not marked(no_survivors), "the end of everything: the tracker is told last")
    (lines,) = [path for path in paths.root.rglob("lines.jsonl")]
    told = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line.get("step") for line in told] == [1, None]
    assert told[-1] == {"state": jobs.SUCCEEDED}
    launch = json.loads(paths.launch.read_text())
    assert (launch["scheduler"], launch["settings"]) == ("background", {"nice": "5"})


def test_its_template_is_found_by_name(installed: Path) -> None:
    shown = run(installed, "", "-m", "launcher", "data", "templates", "terse")
    assert shown.splitlines()[1].strip().startswith("<s>Q ")
    assert "terse" in run(installed, "", "-m", "launcher", "data", "templates")


def test_a_job_is_stopped_through_it(installed: Path, no_survivors: str) -> None:
    program = "ready()\nfor n in range(1, 100000):\n    step(n, seconds=0.05)"
    run(installed, no_survivors, "-c", SUBMIT, str(PROGRAMS / "rank.py"), program)
    wait_until(lambda: job_of(installed)[1].state == jobs.RUNNING, "ranks that are ready")

    assert "cancelled" in run(installed, no_survivors, "-m", "launcher", "stop", "last")
    assert job_of(installed)[1].state == jobs.CANCELLED
    wait_until(lambda: not marked(no_survivors), "the end of everything")


def test_a_scheduler_that_is_not_installed_is_said_and_its_jobs_are_listed(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no scheduler 'slum' is installed on this host") as caught:
        registry.get("slum")
    assert caught.value.hint == "did you mean slurm?"
    assert registry.find("slum") is None
    assert registry.names() == ["local", "ssh", "slurm", "kubernetes"]
    with pytest.raises(HostError, match="scheduler local starts no leader"):
        registry.get("local").submit(None, None, None)  # type: ignore[arg-type]
