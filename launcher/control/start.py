"""Starting a job from a plan, by its supervisor or its scheduler; and starting an ended job again."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from launcher import jobs, supervise
from launcher.cluster.locks import check_free
from launcher.common.atomic import write_atomic
from launcher.common.processes import ProcessId
from launcher.control.alone import alone
from launcher.control.origin import origin
from launcher.engines import ENGINES
from launcher.errors import HostError, JobError, LauncherError
from launcher.jobs import JobPaths, JobRecord, is_job_folder
from launcher.jobs.verdict import EN
from launcher.plan import inputs
from launcher.plan.launch import Launch, read_launch, write_launch
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.resume import folder_in_configs, newest_saved, prepare_attempt, take_back
from launcher.schedulers import registry
from launcher.schedulers.base import NoAnswer, Scheduler, Written
from launcher.upstream import installed


@dataclass(frozen=True, kw_only=True)
class Started:
    """A started job. ``guard``: its supervisor's, None where a scheduler starts it. ``lines``: text for the user."""

    paths: JobPaths
    guard: subprocess.Popen[bytes] | None = None
    lines: tuple[str, ...] = ()


@contextmanager
def _new_folder(root: Path) -> Iterator[None]:
    """Make ``root`` for the files written in the block; remove it if that fails, unless it existed before."""
    try:
        root.mkdir(parents=True)
    except FileExistsError as error:
        raise JobError(f"{root} exists", hint="launcher submit again: the job gets another id") from error
    except OSError as error:
        raise _cannot_write(root, error) from error
    try:
        yield
    except OSError as error:
        shutil.rmtree(root, ignore_errors=True)
        raise _cannot_write(root, error) from error


def _cannot_write(root: Path, error: OSError) -> HostError:
    return HostError(f"cannot write {root}: {error}", hint="check free space with df -h, or pass --jobs-dir DIR")


def _write_files(plan: LaunchPlan) -> None:
    """Write the plan's files into the job's folder."""
    paths = plan.paths
    for file in plan.files:
        write_atomic(paths.root / file.path, file.text)
    for link in plan.links:
        path = paths.root / link.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(link.target)
    write_atomic(paths.plan, json.dumps(plan.to_dict(), ensure_ascii=False, indent=2) + "\n")


def begin(plan: LaunchPlan) -> Started:
    """Write the job's folder and have its supervisor started, which alone is responsible for the job from then on.

    Raises HostError when another job has one of the cards (unless the job is to wait for them), when the scheduler
    refuses the job, and when the folder cannot be written; then nothing is left of it.
    """
    scheduler = registry.get(plan.launch.scheduler)
    if not scheduler.leads_here:
        return _give_to(scheduler, plan)
    if not plan.launch.wait_for_locks:
        check_free(plan.launch.locks)
    with _new_folder(plan.paths.root):
        _write_job(plan)
        return Started(paths=plan.paths, guard=supervise.start(plan.paths))


def _give_to(scheduler: Scheduler, plan: LaunchPlan) -> Started:
    scheduler.ready(plan.launch)
    record = write_job(plan, host="")
    try:
        return Started(paths=plan.paths, lines=tuple(scheduler.submit(plan.launch, plan.paths, record)))
    except NoAnswer:
        raise  # it may have the job all the same, and run it
    except HostError as error:
        _never_begun(plan.paths, record, error)
        raise


def begin_together(plans: Sequence[LaunchPlan], folder: Path, *, name: str, most: int) -> None:
    """Write the folders of jobs, and give them to their scheduler as one array of which ``most`` run at a time.

    ``folder``: where its script goes. Raises as ``begin``; jobs that it refuses have failed.
    """
    scheduler = registry.get(plans[0].launch.scheduler)
    scheduler.ready(plans[0].launch)
    written = [Written(launch=plan.launch, paths=plan.paths, record=write_job(plan, host="")) for plan in plans]
    try:
        scheduler.submit_array(written, folder, name=name, most=most)
    except NoAnswer:
        raise  # it may have them all the same, and run them
    except LauncherError as error:
        for job in written:
            _never_begun(job.paths, job.record, error)
        raise


def _never_begun(paths: JobPaths, record: JobRecord, error: LauncherError) -> None:
    """Write the end of a job that its scheduler refused; it would be shown as waiting otherwise."""
    verdict = {"rank_id": None, "reason": error.message, "text": {EN: error.message}}
    ended = replace(record, state=jobs.FAILED, ended=jobs.now(), exit_code=error.exit_code, verdict=verdict)
    jobs.write_record(paths, ended)


def write_job(plan: LaunchPlan, *, host: str | None = None) -> JobRecord:
    """Write the job's folder with its record. ``host``: the host of its leader; this one if None.

    Raises JobError when the folder exists, HostError when it cannot be written.
    """
    with _new_folder(plan.paths.root):
        return _write_job(plan, host=host)


def _write_job(plan: LaunchPlan, *, host: str | None = None) -> JobRecord:
    _write_files(plan)
    write_launch(plan.paths, plan.launch)
    found = origin(plan.inputs.checkpoint)
    write_atomic(plan.paths.packages, found.packages)
    record = JobRecord(
        job_id=plan.paths.job_id,
        name=plan.spec.name,
        state=jobs.PLANNED,
        created=jobs.now(),
        host=socket.gethostname() if host is None else host,
        cards=plan.cluster.num_devices,
        target=plan.cluster.target,
        versions=installed.installed(),
        engine=plan.launch.engine,
        scheduler=plan.launch.scheduler,
        origin=found.values,
        # Until there is one: a job whose submitter died at this point is lost.
        supervisor=ProcessId.current() if host is None else None,
    )
    jobs.write_record(plan.paths, record)
    return record


def begin_again(paths: JobPaths, record: JobRecord) -> Started:
    """Start another attempt at a job that has ended without success, from its newest complete checkpoint.

    Raises JobError when the job runs, has succeeded, or cannot be read, or another process is about to do the same;
    CheckpointError when it starts anew from a base that does not match its model; DataError when its rows are gone and
    cannot be made again; HostError when the engine is missing
    or the disk is full.
    """
    with alone(paths):
        return _begin_again(paths, jobs.read_record(paths) or record)


def _begin_again(paths: JobPaths, record: JobRecord) -> Started:
    if not record.is_final:
        raise JobError(f"job {record.job_id} is {record.state}", hint=f"launcher attach {record.job_id}")
    if record.state == jobs.SUCCEEDED:
        raise JobError(f"job {record.job_id} has succeeded", hint=f"launcher merge-ckpt {record.job_id}")
    try:
        launch = read_launch(paths).with_free_port()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise JobError(f"cannot read {paths.launch}: {error}", hint="submit it again: launcher submit") from error
    _check_not_moved(paths)
    ENGINES[launch.engine].find_program()
    if newest_saved(paths, record.cards) is None:
        inputs.check_base_again(paths)
    inputs.make_rows_again(paths)
    scheduler = registry.get(launch.scheduler)
    if scheduler.leads_here:
        return _begin_again_here(paths, record, launch)
    planned = replace(record, state=jobs.PLANNED, host="", supervisor=None, guard=None, exit_code=None)
    return Started(paths=paths, lines=tuple(scheduler.resubmit(launch, paths, planned)))


def _check_not_moved(paths: JobPaths) -> None:
    """Raise JobError when the rank YAMLs name another folder: the ranks would save there, and not in this copy."""
    try:
        named = folder_in_configs(paths)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise JobError(
            f"cannot read {paths.root / 'ranks' / 'rank_0.yaml'}: {error}", hint="submit it again: launcher submit"
        ) from error
    if named is None or named.resolve() == paths.root.resolve():
        return
    if is_job_folder(named):
        hint = shlex.join(["launcher", "resume", named.name, "--jobs-dir", str(named.parent)])
    else:
        hint = shlex.join(["mv", str(paths.root), str(named)])
    raise JobError(f"{paths.root} was copied or moved: its rank files write to {named}", hint=hint)


def _begin_again_here(paths: JobPaths, record: JobRecord, launch: Launch) -> Started:
    following = replace(jobs.next_attempt(record, restarted=False), supervisor=ProcessId.current(), guard=None)
    paths = paths.of_attempt(following.attempt)
    try:
        paths.control.unlink(missing_ok=True)  # how an attempt that was killed was to be stopped
        prepare_attempt(paths, record.cards)
    except FileExistsError as error:
        raise JobError(
            f"{paths.attempt_folder} exists, and holds files of an attempt that job.json does not know",
            hint=f"launcher status {record.job_id}; if nothing runs, move that folder away",
        ) from error
    except OSError as error:
        raise _cannot_resume(paths, error) from error
    try:
        write_launch(paths, launch)
        jobs.write_record(paths, following)
        return Started(paths=paths, guard=supervise.start(paths))
    except OSError as error:
        raise _cannot_resume(paths, error) from error


def _cannot_resume(paths: JobPaths, error: OSError) -> HostError:
    """Undo the attempt, so that the job can be resumed later."""
    take_back(paths)
    return HostError(f"cannot write {paths.root}: {error}", hint=f"df -h; then launcher resume {paths.job_id}")
