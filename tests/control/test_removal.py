"""Removing jobs: whole or not at all, never one that runs, never what another needs, and nothing outside the folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.job_folders import Made, MadeJob

from launcher import jobs
from launcher.cli.app import main
from launcher.common.disk_usage import disk_usage
from launcher.common.folders import only_writer
from launcher.common.processes import ProcessId
from launcher.control import removal
from launcher.control.alone import alone
from launcher.errors import HostError, JobError
from launcher.jobs import JobPaths, JobStore

OLD, OTHER = "bcdfg-made", "tghjk-made"
_REMOVER = (
    "import sys; from launcher.cli.app import main; main(['jobs', 'rm', *sys.argv[2:], '--jobs-dir', sys.argv[1]])"
)


def made(root: Path, job_id: str = OLD, **more: Any) -> JobPaths:
    """A job that ended on 2026-01-01, with a checkpoint of 100 kB."""
    paths = MadeJob(job_id=job_id, **more).write(root)
    shards = paths.checkpoints / "rank_0"
    shards.mkdir(parents=True)
    (shards / "x_rank_0-1_4.safetensors").write_bytes(os.urandom(100_000))
    return paths


def run(root: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["jobs", *words, "--jobs-dir", str(root)])


def removed(paths: JobPaths, *, force: bool = False) -> None:
    for job in removal.named([paths.job_id], paths.root.parent, force=force):
        removal.remove(job)


def left(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


# ------------------------------------------------------------------------------------------------ rm


def test_a_job_goes_with_all_it_left_and_the_bytes_are_said(tmp_path: Path) -> None:
    made(tmp_path)
    made(tmp_path, OTHER)
    before = disk_usage(tmp_path).bytes

    done = run(tmp_path, "rm", "bcd")

    assert done.exit_code == 0
    assert left(tmp_path) == [OTHER]
    freed = before - disk_usage(tmp_path).bytes
    assert f"removed {OLD}  {freed / 1e6:.2f} MB\n1 job(s) removed, {freed / 1e6:.2f} MB freed" in done.stdout
    assert freed > 100_000


def test_a_dry_run_removes_nothing(tmp_path: Path) -> None:
    made(tmp_path)

    done = run(tmp_path, "rm", "last", "--dry-run")

    assert f"would remove {OLD}  0.1" in done.stdout
    assert "1 job(s) would be removed" in done.stdout
    assert left(tmp_path) == [OLD]


@pytest.mark.parametrize("state", [jobs.PLANNED, jobs.STARTING, jobs.RUNNING, jobs.STOPPING])
@pytest.mark.parametrize("force", [False, True])
def test_what_runs_stays_and_everything_named_with_it(tmp_path: Path, state: str, force: bool) -> None:
    made(tmp_path, state=state)
    made(tmp_path, OTHER)

    done = run(tmp_path, "rm", OTHER, OLD, *(["--force"] if force else []))

    assert done.exit_code == JobError.exit_code
    assert f"error: nothing is removed:\n  - {OLD}: it is {state} on elsewhere\n" in done.stderr
    assert f"hint: launcher stop --jobs-dir {tmp_path} {OLD}" in done.stderr
    assert left(tmp_path) == [OLD, OTHER]


def test_a_job_whose_last_process_has_not_ended_stays(tmp_path: Path) -> None:
    paths = made(tmp_path, record={"host": socket.gethostname(), "guard": ProcessId.current()})

    with pytest.raises(JobError, match=f"it has ended, and its process {os.getpid()} has not"):
        removed(paths)


def test_a_record_that_cannot_be_read_says_nothing_about_what_runs(tmp_path: Path) -> None:
    made(tmp_path).record.write_text("{")

    assert run(tmp_path, "rm", OLD).exit_code == JobError.exit_code
    done = run(tmp_path, "prune", "--older-than", "0s", "--force")
    assert "kept" in done.stdout
    assert "job.json cannot be read, so whether it runs is not known" in done.stdout
    assert left(tmp_path) == [OLD]


def test_a_folder_that_is_no_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    made(tmp_path / "jobs")

    done = run(tmp_path / "jobs", "rm", OLD, str(tmp_path / "mine"))

    assert "is not the folder of a job: nothing is removed" in done.stderr
    assert left(tmp_path) == ["jobs", "mine"]
    assert left(tmp_path / "jobs") == [OLD]


def test_links_are_removed_and_not_what_they_lead_to(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "base.safetensors").write_bytes(b"weights")
    paths = made(tmp_path / "jobs")
    (paths.root / "base").mkdir()
    (paths.root / "base" / "rank_0").symlink_to(base)
    (paths.root / "base" / "one.safetensors").symlink_to(base / "base.safetensors")
    (paths.root / "round").symlink_to(paths.root)

    removed(paths)

    assert left(tmp_path / "jobs") == []
    assert (base / "base.safetensors").read_bytes() == b"weights"


def test_a_job_whose_folder_is_a_link_is_refused(tmp_path: Path) -> None:
    paths = made(tmp_path / "disk")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / OLD).symlink_to(paths.root)

    done = run(tmp_path / "jobs", "rm", OLD)

    assert f"its folder is a link to {paths.root}" in done.stderr
    assert paths.record.is_file()


def test_what_another_name_keeps_frees_nothing(tmp_path: Path) -> None:
    """Files with several names are counted with their last one."""
    paths = made(tmp_path / "jobs")
    shard = paths.checkpoints / "rank_0" / "x_rank_0-1_4.safetensors"
    all_of_it = disk_usage(paths.root).bytes
    (paths.root / "again").hardlink_to(shard)
    assert disk_usage(paths.root).bytes == all_of_it

    (tmp_path / "kept").hardlink_to(shard)
    assert disk_usage(paths.root).bytes == all_of_it - shard.stat().st_blocks * 512


def _as_another_user(folder: Path) -> str:
    """Return what a user who may not remove everything is told about the job in ``folder``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            removal.named([OLD], folder, force=False)
        except JobError as error:
            os.write(writing, error.message.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as told:
        said = told.read()
    os.waitpid(child, 0)
    return said


def test_a_folder_that_could_go_only_in_part_stays() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        paths = made(Path(folder))
        for place in (paths.root, *paths.root.rglob("*")):
            place.chmod(0o777)
        assert _as_another_user(Path(folder)) == ""
        paths.checkpoints.chmod(0o555)

        said = _as_another_user(Path(folder))

        paths.checkpoints.chmod(0o755)
        assert f"{paths.checkpoints}: you may not remove what is in it" in said


def test_what_a_killed_removal_left_is_no_job_and_goes_with_the_next(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / OLD).rename(tmp_path / f".removed-{OLD}-0123abcd")
    (tmp_path / ".removed-by-me").mkdir()
    made(tmp_path, OTHER)
    assert [record.job_id for _, record in JobStore(tmp_path).all()] == [OTHER]

    done = run(tmp_path, "rm", OTHER)

    assert "deleted what an interrupted removal had left: 0.1" in done.stdout
    assert left(tmp_path) == [".removed-by-me"]


# ------------------------------------------------------------------------------------------------ meanwhile


def test_a_job_that_is_being_resumed_or_was_just_started_stays(tmp_path: Path) -> None:
    paths = made(tmp_path, state=jobs.FAILED)
    (job,) = removal.named([OLD], tmp_path, force=False)

    with alone(paths), pytest.raises(JobError, match="another launcher resume, jobs rm or jobs tag"):
        removal.remove(job)
    jobs.write_record(paths, replace(job.record, state=jobs.RUNNING))
    with pytest.raises(JobError, match=f"{OLD} is not removed: it is running"):
        removal.remove(job)

    assert left(tmp_path) == [OLD]


def test_a_merge_that_writes_into_the_folder_is_waited_for(tmp_path: Path) -> None:
    paths = made(tmp_path)

    with only_writer(paths.merged), pytest.raises(JobError, match="a command writes into its folder"):
        removed(paths)
    removed(paths)

    assert left(tmp_path) == []


def test_a_job_that_is_gone_is_neither_resumed_nor_brought_back(tmp_path: Path) -> None:
    paths = made(tmp_path)
    removed(paths)

    with pytest.raises(JobError, match="is gone"), alone(paths):
        pass
    assert left(tmp_path) == []


def test_a_removal_that_is_killed_leaves_jobs_whole_or_gone(tmp_path: Path) -> None:
    """SIGKILL at many moments: a job that is listed has its record, its shards and its events."""
    names = [f"{letter}cdfg-made" for letter in "bcdfghjkmn"]
    for name in names:
        made(tmp_path, name)
    child = subprocess.Popen([sys.executable, "-c", _REMOVER, str(tmp_path), *names], stdout=subprocess.DEVNULL)
    while child.poll() is None and len(JobStore(tmp_path).all()) > 5:
        time.sleep(0.001)
    child.kill()
    child.wait()

    for paths, _ in JobStore(tmp_path).all():
        assert (paths.checkpoints / "rank_0" / "x_rank_0-1_4.safetensors").stat().st_size == 100_000
        assert paths.rank_events(0).is_file()
    removal.finish_earlier(tmp_path)
    assert all(not name.startswith(".") for name in left(tmp_path))


def test_two_removals_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    made(tmp_path)
    chosen = [removal.named([OLD], tmp_path, force=False)[0] for _ in range(8)]
    errors: list[Exception] = []

    def remove(job: removal.Candidate) -> None:
        try:
            removal.remove(job)
        except (JobError, HostError) as error:
            errors.append(error)

    threads = [threading.Thread(target=remove, args=(job,)) for job in chosen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(errors) == 7
    assert left(tmp_path) == []


def test_an_earlier_removal_that_still_works_is_left_alone(tmp_path: Path) -> None:
    going = tmp_path / f".removed-{OLD}-0123abcd"
    going.mkdir()
    handle = os.open(going, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert removal.finish_earlier(tmp_path) == 0
    finally:
        os.close(handle)
    assert going.is_dir()


# ------------------------------------------------------------------------------------------------ what others need


def _reading(what: str, base: JobPaths) -> dict[str, Any]:
    """How a job says that it was trained from another."""
    spec = MadeJob().spec
    known: dict[str, dict[str, Any]] = {
        "checkpoint": {"plan": {"checkpoint": str(base.merged)}},
        "link": {"plan": {"links": {"base/rank_0/x": str(base.checkpoints / "rank_0" / "x")}}},
        "folder": {"spec": {**spec, "model": {**spec["model"], "folder": str(base.root / "merged-hf")}}},
        "rows": {"spec": {**spec, "data": {"train": [{"path": f"{base.root}/rows.jsonl"}]}}},
        "relative": {
            "spec": {**spec, "model": {**spec["model"], "checkpoint": f"jobs/{OLD}/merged"}},
            "record": {"origin": {"folder": str(base.root.parent.parent)}},
        },
    }
    return known[what]


@pytest.mark.parametrize("what", ["checkpoint", "link", "folder", "rows", "relative"])
def test_what_another_job_was_trained_from_stays_without_force(tmp_path: Path, what: str) -> None:
    root = tmp_path / "jobs"
    base = made(root)
    made(root, OTHER, **_reading(what, base))

    refused = run(root, "rm", OLD)
    assert f"{OLD}: {OTHER}, which is succeeded, reads from it" in refused.stderr
    assert "hint: --force removes" in refused.stderr

    assert run(root, "rm", OTHER, OLD, "--dry-run").exit_code == 0  # both together
    assert run(root, "rm", OLD, "--force").exit_code == 0
    assert left(root) == [OTHER]


def test_a_base_that_was_moved_to_another_disk_is_needed_where_its_link_is(tmp_path: Path) -> None:
    base = made(tmp_path / "jobs")
    (tmp_path / "disk").mkdir()
    base.merged.symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(base.root)
    made(tmp_path / "jobs", OTHER, plan={"checkpoint": str(base.merged), "dataset": "a\0b"})
    with pytest.raises(JobError, match="reads from it"):
        removed(base)

    made(tmp_path / "jobs", OTHER.replace("t", "z"), plan={"checkpoint": str(tmp_path / "link" / "x")})
    removal.remove(removal.named([OTHER], tmp_path / "jobs", force=False)[0])
    with pytest.raises(JobError, match="reads from it"):
        removed(base)


def test_not_even_force_takes_a_base_from_a_job_that_runs(tmp_path: Path) -> None:
    base = made(tmp_path)
    made(tmp_path, OTHER, state=jobs.RUNNING, **_reading("checkpoint", base))

    with pytest.raises(JobError, match=f"{OTHER}, which is running, reads from it"):
        removed(base, force=True)


# ------------------------------------------------------------------------------------------------ prune


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """old <- middle <- young, by what each was trained from; one that runs; one that was merged."""
    old = made(tmp_path, "bbbbb-old")
    middle = made(tmp_path, "ccccc-middle", plan={"checkpoint": str(old.merged)})
    young = {"ended": jobs.now(), "created": jobs.now()}
    made(tmp_path, "ddddd-young", plan={"checkpoint": str(middle.merged)}, record=young)
    made(tmp_path, "fffff-runs", state=jobs.RUNNING, attempts=(Made(),))
    merged = made(tmp_path, "ggggg-merged")
    merged.merged.mkdir()
    (merged.merged / "merge.json").write_text("{}")
    made(tmp_path, "hhhhh-alone")
    return tmp_path


def test_prune_removes_what_is_old_and_needed_by_none_that_stays(several: Path) -> None:
    done = run(several, "prune", "--older-than", "30d")

    assert left(several) == ["bbbbb-old", "ccccc-middle", "ddddd-young", "fffff-runs"]
    assert "kept bbbbb-old  0.1" in done.stdout
    assert "ccccc-middle, which is succeeded, reads from it" in done.stdout
    assert "ddddd-young, which is succeeded, reads from it" in done.stdout
    assert "2 job(s) removed, 0.3" in done.stdout


def test_prune_keeps_merged_ones_and_a_dry_run_keeps_all(several: Path) -> None:
    before = left(several)
    dry = run(several, "prune", "--older-than", "30d", "--keep-merged", "--dry-run")

    assert left(several) == before
    assert "would remove hhhhh-alone" in dry.stdout
    assert "kept ggggg-merged" in dry.stdout
    assert "it has a merged model" in dry.stdout
    assert "1 job(s) would be removed" in dry.stdout
    run(several, "prune", "--older-than", "30d", "--keep-merged")
    assert left(several) == [name for name in before if name != "hhhhh-alone"]


def test_prune_with_force_spares_only_what_runs_or_is_young(several: Path) -> None:
    run(several, "prune", "--older-than", "2026-02-01", "--force")

    assert left(several) == ["ddddd-young", "fffff-runs"]


def test_prune_needs_to_know_how_old(tmp_path: Path) -> None:
    assert "Missing option '--older-than'" in run(tmp_path, "prune").stderr
    wrong = run(tmp_path, "prune", "--older-than", "long")
    assert "--older-than 'long' is no time" in wrong.stderr
    assert run(tmp_path / "none", "prune", "--older-than", "1d").stdout == "0 job(s) removed, 0.00 MB freed\n"


# ------------------------------------------------------------------------------------------------ the list


def test_the_list_with_sizes_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    made(tmp_path, "bbbbb-zebra")
    big = made(tmp_path, "ccccc-ant", record={"created": "2026-02-01T00:00:00+00:00"})
    (big.root / "more").write_bytes(os.urandom(400_000))
    made(tmp_path, "ddddd-bee", state=jobs.FAILED, record={"ended": "2026-03-01T00:00:00+00:00"})
    for name in ("zebra", "ant", "bee"):
        ((paths, record),) = (job for job in JobStore(tmp_path).all() if job[0].job_id.endswith(name))
        jobs.write_record(paths, replace(record, name=name))

    def order(*words: str) -> list[str]:
        lines = run(tmp_path, *words).stdout.splitlines()[1:]
        return [line.split()[0].split("-")[1] for line in lines]

    assert order() == ["zebra", "bee", "ant"]
    assert order("--sort", "name") == ["ant", "bee", "zebra"]
    assert order("--sort", "size")[-1] == "ant"
    assert order("--sort", "ended")[-1] == "bee"
    assert order("--sort", "state") == ["zebra", "ant", "bee"]
    listed = run(tmp_path, "--size").stdout.splitlines()
    assert listed[0].split()[-1] == "SIZE"
    assert " MB" not in run(tmp_path).stdout
    found = {job["job_id"]: job for job in json.loads(run(tmp_path, "--size", "--format", "json").stdout)}
    assert found["ccccc-ant"]["bytes"] == disk_usage(big.root).bytes > 500_000


def test_options_of_the_list_are_not_lost_on_a_command(tmp_path: Path) -> None:
    made(tmp_path)

    done = CliRunner().invoke(main, ["jobs", "--state", "failed", "rm", OLD, "--jobs-dir", str(tmp_path)])
    assert "--state lists jobs, and does not go with rm" in done.stderr
    assert left(tmp_path) == [OLD]

    done = CliRunner().invoke(main, ["jobs", "--jobs-dir", str(tmp_path), "rm", OLD], env={"LAUNCHER_JOBS": "/none"})
    assert done.exit_code == 0
    assert left(tmp_path) == []
