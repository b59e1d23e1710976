"""The supervisor's parent: does nothing while it works, and clears up when it was killed.

Orphans of a process go to its nearest ancestor that is a child subreaper. So after a SIGKILL of the supervisor
everything left of the job is below the guard, and nothing else is.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace

from launcher import jobs
from launcher.common.processes import ProcessId, adopt_orphans, die_with_parent, kill_descendants
from launcher.common.signals import Forwarding
from launcher.errors import JobFailed
from launcher.jobs import JobPaths, JobRecord
from launcher.supervise.follower import Follower
from launcher.supervise.stop_signals import PASSED_ON
from launcher.supervise.verdict import lost_verdict, signal_name


def guard(paths: JobPaths) -> int:
    """Run the supervisor of the job at ``paths`` and return its exit code."""
    adopt_orphans()
    guard_id = ProcessId.current()
    # Beside the supervisor and not below it: the end of an attempt kills everything below.
    follower = Follower.start(paths)
    child = os.fork()
    if child == 0:
        # TERM, not KILL: a supervisor whose guard was killed still stops its ranks in order.
        die_with_parent(signal.SIGTERM)
        # Imported in the child alone: the guard lives as long as the job, and stays small.
        from launcher.supervise.supervisor import supervise

        return supervise(paths, guard_id)
    code = Forwarding(child, PASSED_ON).wait()
    # After the supervisor's own end this finds nothing; after a SIGKILL of it, the whole job.
    left = kill_descendants(spare=filter(None, [follower.process]))
    record = jobs.read_record_as_written(paths)
    # A job that waits for its scheduler to run it again (PLANNED, no host) has no end to write.
    if record and not record.is_final and not (record.state == jobs.PLANNED and not record.host):
        _write_end(paths, record, code, left)
    follower.end()
    # The record has the signal; a negative number is no exit code.
    return max(code, 0)


def _write_end(paths: JobPaths, record: JobRecord, code: int, left: list[ProcessId]) -> None:
    verdict = lost_verdict(signal_name(code), [process.pid for process in left])
    jobs.write_record(
        paths,
        replace(record, state=jobs.LOST, ended=jobs.now(), exit_code=JobFailed.exit_code, verdict=verdict.to_dict()),
    )
