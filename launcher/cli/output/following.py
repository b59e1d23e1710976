"""Following a job to its end, for every command that does."""

from __future__ import annotations

import errno
import os
import subprocess

import click

from launcher.cli.output.show import Progress
from launcher.control.follow import Detached, follow, raise_for_end
from launcher.jobs import JobPaths, JobRecord

# A supervisor that writes the job's end is gone a moment later. Where agents wrote it, it may hang for ever.
_LEAVE_S = 30.0


def _has_ended(guard: subprocess.Popen[bytes]) -> bool:
    try:
        guard.wait(_LEAVE_S)
    except subprocess.TimeoutExpired:
        guard.returncode = 0  # nobody waits for it any more
        return False
    return True


def follow_to_end(
    paths: JobPaths, progress: Progress, signals: list[int], guard: subprocess.Popen[bytes] | None = None
) -> JobRecord:
    """The final record of a job that succeeded; raises JobFailed or JobCancelled for others.

    ``guard``: the process to wait for, when we started it. A terminal that is closed ends this process alone.
    """
    try:
        record = follow(paths, progress.note, progress.note_state, signals)
    except (Detached, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EIO:  # EIO: writing to a terminal that is gone
            raise
        os._exit(129)  # whatever would still be printed, nobody reads it, and it would fail
    stuck = guard is not None and not _has_ended(guard)
    progress.stop()
    if stuck and record.supervisor:
        click.echo(
            f"warning: the job's supervisor is stopped or hangs: kill -9 {record.supervisor.pid} (its guard then "
            "clears up)",
            err=True,
        )
    raise_for_end(paths, record)
    return record
