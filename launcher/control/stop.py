"""Stopping a job from a process other than its supervisor."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from launcher import jobs
from launcher.common.atomic import write_atomic
from launcher.common.processes import ProcessId
from launcher.errors import JobError
from launcher.jobs import JobPaths, JobRecord
from launcher.plan.launch import Limits, read_launch
from launcher.schedulers import registry
from launcher.schedulers.base import Scheduler

# The time that a stop may take beyond the grace: killing, and writing the end.
_SLACK_S = 15.0

# The time that a supervisor may take to begin: on a loaded machine Python alone needs seconds.
_BEGIN_S = 60.0

_POLL_S = 0.05


def stop_job(paths: JobPaths, record: JobRecord, *, save: bool, grace_s: float | None) -> JobRecord:
    """Ask the supervisor to stop, wait until it has, and return the final record.

    ``save`` asks for a checkpoint after a step that all ranks finish; the grace limits the wait for it too. Raises
    JobError when the job has ended, runs on another host, or does not end in time.
    """
    _check_running(record)
    scheduler = registry.find(record.scheduler)
    if scheduler and scheduler.has_queue:
        return _stop_in_queue(scheduler, paths, record, save=save, grace_s=grace_s)
    if record.state == jobs.PLANNED and not record.host:
        return _stop_before_it_runs(scheduler, paths, record)
    if record.host != socket.gethostname() and _has_hosts(paths):
        return _stop_from_afar(paths, record, save=save, grace_s=grace_s)
    if record.supervisor is None or not record.supervisor.is_alive():
        raise JobError(
            f"job {record.job_id} is supervised on {record.host}",
            hint=f"on {record.host}: launcher stop {paths.job_id}",
        )
    supervisor = _begun_supervisor(paths, record)
    grace_s = _limits(paths).grace_s if grace_s is None else grace_s
    write_atomic(paths.control, json.dumps({"save": save, "grace_s": grace_s}) + "\n", parents=False)
    supervisor.send(signal.SIGTERM)
    wait_s = _patience_s(grace_s, save=save)
    ended = _wait(paths, wait_s)
    if ended:
        return ended
    raise JobError(
        f"job {record.job_id} has not ended {wait_s:.0f} s after it was asked to",
        hint=f"kill -9 {supervisor.pid} (its guard then cleans up)",
    )


def _check_running(record: JobRecord) -> None:
    if record.is_final:
        raise JobError(f"job {record.job_id} is not running: {record.state}", hint=f"launcher status {record.job_id}")


def supervised(paths: JobPaths, record: JobRecord, *, may_come: Callable[[], bool] = lambda: True) -> JobRecord:
    """Return the record once the supervisor has written itself and its guard into it, or the job has ended.

    Until then it has the process that submitted the job: a sweep's runner, or a user's own program. It is returned as
    it is when the supervisor takes too long, or ``may_come`` returns False.
    """
    deadline = time.monotonic() + _BEGIN_S
    while record.guard is None and not record.is_final and may_come() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        record = jobs.read_record(paths) or record
    return record


def _begun_supervisor(paths: JobPaths, record: JobRecord) -> ProcessId:
    """Return the job's supervisor, once it is there. Raises JobError when it does not come, or the job has ended."""
    record = supervised(paths, record)
    _check_running(record)
    if record.guard is None or record.supervisor is None:
        raise JobError(
            f"the supervisor of job {record.job_id} has not begun, so nothing was stopped",
            hint=f"{paths.supervisor_log} may say why; then launcher stop {record.job_id}",
        )
    return record.supervisor


def _patience_s(grace_s: float, *, save: bool) -> float:
    """Return how long a stop may take: saving and ending have the grace each."""
    return grace_s * (2 if save else 1) + _SLACK_S


def _wait(paths: JobPaths, seconds: float) -> JobRecord | None:
    """Return the final record, once all processes of the job are gone; None when that takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        current = jobs.read_record(paths)
        if current and current.is_final and not (current.guard and current.guard.is_alive()):
            return current
        time.sleep(_POLL_S)
    return None


def _stop_in_queue(
    scheduler: Scheduler, paths: JobPaths, record: JobRecord, *, save: bool, grace_s: float | None
) -> JobRecord:
    grace_s = _write_flag(paths, save=save, grace_s=grace_s)
    scheduler.cancel(paths, record, _patience_s(grace_s, save=save))
    ended = _wait(paths, _SLACK_S)
    return ended or scheduler.query(record)


def ask_in_queue(scheduler: Scheduler, paths: JobPaths, record: JobRecord, *, at_once: bool) -> None:
    """Ask a queued job to stop, without waiting for its end; ``at_once``: it was asked before."""
    _write_flag(paths, save=False, grace_s=0.0 if at_once else None, at_once=at_once)
    scheduler.cancel(paths, record, None)


def _stop_before_it_runs(scheduler: Scheduler | None, paths: JobPaths, record: JobRecord) -> JobRecord:
    """Write the end of a job without a leader: a process that would start it sees the end and does not."""
    note = scheduler.unstarted_note(paths) if scheduler else "it did not run"
    ended = replace(record, state=jobs.CANCELLED, ended=jobs.now(), exit_code=143, note=note)
    jobs.write_record(paths, ended)
    return ended


def _stop_from_afar(paths: JobPaths, record: JobRecord, *, save: bool, grace_s: float | None) -> JobRecord:
    """Stop a job through the flag file alone, which its leader reads every second."""
    grace_s = _write_flag(paths, save=save, grace_s=grace_s)
    ended = _wait(paths, _patience_s(grace_s, save=save))
    if ended:
        return ended
    raise JobError(
        f"job {record.job_id} is led on {record.host} and has not ended", hint=f"on {record.host}: launcher stop JOB"
    )


def _write_flag(paths: JobPaths, *, save: bool, grace_s: float | None, at_once: bool = False) -> float:
    """Write the flag in place and return the grace: NFS may show a new file of the same name a minute late."""
    grace_s = _limits(paths).grace_s if grace_s is None else grace_s
    with paths.control.open("w", encoding="utf-8") as control:
        control.write(json.dumps({"save": save, "grace_s": grace_s, "at_once": at_once}) + "\n")
    return grace_s


def _has_hosts(paths: JobPaths) -> bool:
    try:
        return bool(read_launch(paths).nodes)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _limits(paths: JobPaths) -> Limits:
    try:
        return read_launch(paths).limits
    except (OSError, ValueError, TypeError, KeyError):
        return Limits()
