"""From a plan to a running job: what the supervisor is told, the job's folder, and the supervisor itself."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher import jobs, supervise
from launcher.cluster.locks import check_free
from launcher.cluster.model import Cluster
from launcher.common.atomic import write_atomic
from launcher.common.processes import ProcessId
from launcher.engines import DEFAULT, ENGINES
from launcher.engines.base import Command
from launcher.errors import HostError, JobError, SpecError
from launcher.jobs import JobPaths, JobRecord
from launcher.jobs.verdict import EN
from launcher.plan import inputs
from launcher.plan.launch import Launch, Limits, NodePlace, RankPlace, read_launch, write_launch
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.resume import newest_saved, prepare_attempt, take_back
from launcher.schedulers import Where
from launcher.upstream import installed

# How long ranks that have said that they are done may take to end. The driver frees a card when its process is gone
# in whatever way; on Ascend an end in order is given time all the same.
LEAVE_S = {"CPU": 0.3, "Ascend": 15.0}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a job is to be run, whatever it trains. ``program``: path of the engine's own program, found if None.

    ``engine`` None: msrun on one host, direct on several.
    """

    engine: str | None = None
    program: str | None = None
    limits: Limits = field(default_factory=Limits)
    wait_for_cards: bool = False

    def engine_for(self, where: Where | None) -> str:
        """Raises SpecError for an engine that cannot do it there."""
        if where is None:
            return self.engine or DEFAULT
        if self.engine == "mpirun":
            raise SpecError(
                f"--engine mpirun does not go with --scheduler {where.kind}: mpirun starts ranks on other hosts itself",
                hint="--engine direct or --engine msrun",
            )
        return self.engine or "direct"


def make_launch(
    cluster: Cluster,
    paths: JobPaths,
    *,
    env: dict[str, str],
    port: int,
    options: Options | None = None,
    where: Where | None = None,
) -> Launch:
    """What the supervisor of a job is told: on ``cluster``, which is one host, or else on several by ``where``.

    Raises HostError when the engine is missing.
    """
    options = options or Options()
    host = cluster.hosts[0]
    on_cards = cluster.target == "Ascend" and where is None
    engine = options.engine_for(where)
    return Launch(
        engine=engine,
        target=cluster.target,
        address=host.address,
        port=port,
        program=ENGINES[engine].find_program() if options.program is None else options.program,
        rank_table=str(paths.root / "rank_table.json"),
        ranks=tuple(
            RankPlace(
                rank_id=rank.rank_id,
                local_rank=rank.local_rank,
                host=rank.host.name,
                device_id=rank.device.device_id,
                node_rank=rank.node_rank,
            )
            for rank in cluster.ranks()
        ),
        visible=host.visible if on_cards else (),
        env=env,
        locks=tuple(f"card_{device.device_id}" for device in host.devices) if on_cards else (),
        wait_for_locks=options.wait_for_cards,
        limits=replace(options.limits, leave_s=LEAVE_S[cluster.target]),
        nodes=_nodes(where) if where else (),
        where=where.settings if where else {},
    )


def _nodes(where: Where) -> tuple[NodePlace, ...]:
    """Addresses that only a scheduler will know are left open; so are cards that no inventory names."""
    return tuple(
        NodePlace(
            node_rank=number,
            name=host.name,
            address=host.address if where.named else "",
            visible=host.visible if where.named and where.cluster.target == "Ascend" else (),
        )
        for number, host in enumerate(where.cluster.hosts)
    )


def main_command(launch: Launch, paths: JobPaths) -> Command:
    """The command that says most about the run: msrun's, mpirun's, or rank 0's."""
    launch = launch.for_node(0) if launch.nodes else launch
    return next(program.command for program in launch.programs(paths) if program.name != "scheduler")


@contextmanager
def _new_folder(root: Path) -> Iterator[None]:
    """``root``, made for what is written inside; nothing of it is left when that fails, and what was there stays."""
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
    return HostError(f"cannot write {root}: {error}", hint="df -h; or pass --jobs-dir DIR")


def _write_files(plan: LaunchPlan) -> None:
    """Everything the plan says, in the job's folder."""
    paths = plan.paths
    for file in plan.files:
        write_atomic(paths.root / file.path, file.text)
    for link in plan.links:
        path = paths.root / link.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(link.target)
    write_atomic(paths.plan, json.dumps(plan.to_dict(), ensure_ascii=False, indent=2) + "\n")


def begin(plan: LaunchPlan, launch: Launch) -> subprocess.Popen[bytes] | None:
    """Write the job's folder and start its supervisor, which from then on is alone responsible for the job.

    None when a scheduler will start it.

    Raises HostError when another job has one of the cards, unless the job is to wait for them, and when the folder
    cannot be written; then nothing is left of it.
    """
    if launch.where.get("kind") == "slurm":
        from launcher.schedulers.slurm import submit

        record = write_job(plan, launch, host="")
        try:
            submit(launch, plan.paths, record)
        except HostError as error:
            _never_begun(plan.paths, record, error)
            raise
        return None
    if not launch.wait_for_locks:
        check_free(launch.locks)
    with _new_folder(plan.paths.root):
        _write_job(plan, launch)
        return supervise.start(plan.paths)


def _never_begun(paths: JobPaths, record: JobRecord, error: HostError) -> None:
    """The end of a job that its scheduler did not take; else it would be shown as one that waits."""
    verdict = {"rank_id": None, "reason": error.message, "text": {EN: error.message}}
    ended = replace(record, state=jobs.FAILED, ended=jobs.now(), exit_code=error.exit_code, verdict=verdict)
    jobs.write_record(paths, ended)


def write_job(plan: LaunchPlan, launch: Launch, *, host: str | None = None) -> JobRecord:
    """Write the job's folder with its record. ``host``: where the leader will be; here if None.

    Raises JobError when the folder exists, HostError when it cannot be written.
    """
    with _new_folder(plan.paths.root):
        return _write_job(plan, launch, host=host)


def _write_job(plan: LaunchPlan, launch: Launch, *, host: str | None = None) -> JobRecord:
    _write_files(plan)
    write_launch(plan.paths, launch)
    record = JobRecord(
        job_id=plan.paths.job_id,
        name=plan.spec.name,
        state=jobs.PLANNED,
        created=jobs.now(),
        host=socket.gethostname() if host is None else host,
        cards=plan.cluster.num_devices,
        target=plan.cluster.target,
        argv=plan.command.argv,
        versions=installed.installed(),
        engine=launch.engine,
        supervisor=ProcessId.current()
        if host is None
        else None,  # until there is one: a job whose submitter died at this point is lost
    )
    jobs.write_record(plan.paths, record)
    return record


def begin_again(paths: JobPaths, record: JobRecord) -> tuple[JobPaths, subprocess.Popen[bytes] | None]:
    """Start another attempt at a job that has ended without success, from its newest complete checkpoint.

    Raises JobError when the job runs, has succeeded, or cannot be read, or another process is about to do the same;
    CheckpointError when it begins anew from a base that is not its model's; HostError when the engine is missing or the
    disk is full.
    """
    with _alone(paths):
        return _begin_again(paths, jobs.read_record(paths) or record)


@contextmanager
def _alone(paths: JobPaths) -> Iterator[None]:
    """The lock on beginning an attempt, which the kernel gives back when its holder is gone."""
    try:
        handle = os.open(paths.resume_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise HostError(f"cannot write {paths.root}: {error.strerror}", hint="check its permissions; df -h") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise JobError(
            f"another launcher resume of {paths.job_id} is at work", hint=f"launcher attach {paths.job_id}"
        ) from None
    finally:
        os.close(handle)


def _begin_again(paths: JobPaths, record: JobRecord) -> tuple[JobPaths, subprocess.Popen[bytes] | None]:
    if not record.is_final:
        raise JobError(f"job {record.job_id} is {record.state}", hint=f"launcher attach {record.job_id}")
    if record.state == jobs.SUCCEEDED:
        raise JobError(f"job {record.job_id} has succeeded", hint=f"launcher merge-ckpt {record.job_id}")
    try:
        launch = read_launch(paths).with_free_port()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise JobError(f"cannot read {paths.launch}: {error}", hint="submit it anew: launcher submit") from error
    ENGINES[launch.engine].find_program()
    if newest_saved(paths, record.cards) is None:
        inputs.check_base_again(paths)
    if launch.where.get("kind") == "slurm":
        from launcher.schedulers.slurm import submit

        planned = replace(record, state=jobs.PLANNED, host="", supervisor=None, guard=None, exit_code=None)
        submit(launch, paths, planned)
        return paths, None
    if launch.where.get("kind") == "kubernetes":
        note = f"kubectl replace --force -f {paths.root / 'kubernetes.yaml'}"
        planned = replace(record, state=jobs.PLANNED, host="", supervisor=None, guard=None, exit_code=None, note=note)
        jobs.write_record(paths, planned)
        return paths, None
    return _begin_again_here(paths, record, launch)


def _begin_again_here(
    paths: JobPaths, record: JobRecord, launch: Launch
) -> tuple[JobPaths, subprocess.Popen[bytes] | None]:
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
        return paths, supervise.start(paths)
    except OSError as error:
        raise _cannot_resume(paths, error) from error


def _cannot_resume(paths: JobPaths, error: OSError) -> HostError:
    """With the attempt taken back, so that the job can be resumed later."""
    take_back(paths)
    return HostError(f"cannot write {paths.root}: {error}", hint=f"df -h; then launcher resume {paths.job_id}")
