"""Being the leader where a scheduler starts it: a batch script's node, or the first pod."""

from __future__ import annotations

import socket
from dataclasses import replace

from launcher import jobs
from launcher.errors import JobError, JobFailed
from launcher.jobs import JobPaths, JobRecord
from launcher.launch import read_launch, write_launch
from launcher.nodes.agent import read_raw_record
from launcher.processes import ProcessId
from launcher.resume import prepare_attempt
from launcher.supervise.guard import guard


def lead(paths: JobPaths) -> int:
    """Lead the job's next attempt to its end and return its exit code. A job that has an end keeps it.

    Raises JobError when the job cannot be read.
    """
    record = read_raw_record(paths)
    if record is None:
        raise JobError(f"cannot read {paths.record}", hint="submit it anew: launcher submit")
    code = _settled(record)
    if code is not None:
        return code
    launch = read_launch(paths)
    if launch.where["kind"] == "slurm":
        from launcher.where.slurm import prepare_inside

        write_launch(paths, prepare_inside(launch))
    if record.started is not None:
        record = jobs.next_attempt(record, restarted=False)
        prepare_attempt(paths.of_attempt(record.attempt), record.cards)
    host = socket.gethostname()
    jobs.write_record(paths, replace(record, host=host, note=None, supervisor=ProcessId.current(), guard=None))
    return guard(paths)


def _settled(record: JobRecord) -> int | None:
    """The exit code when there is nothing more to do; a scheduler may start a job again that has failed for good."""
    if record.state == jobs.SUCCEEDED:
        return 0
    verdict = record.verdict or {}
    if record.state == jobs.FAILED and not verdict.get("retry"):
        return JobFailed.exit_code
    return (record.exit_code or 143) if record.state == jobs.CANCELLED else None
