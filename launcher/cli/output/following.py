"""Following a job to its end, for every command that does."""

from __future__ import annotations

import errno
import os

import click

from launcher.api import Job
from launcher.cli.output.show import Progress
from launcher.control.follow import Detached, follow, raise_for_end
from launcher.jobs import JobRecord


def follow_to_end(job: Job, progress: Progress, signals: list[int]) -> JobRecord:
    """The final record of a job that succeeded; raises JobFailed or JobCancelled for others.

    A terminal that is closed ends this process alone.
    """
    try:
        record = follow(job.paths, progress.note, progress.note_state, signals)
    except (Detached, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EIO:  # EIO: writing to a terminal that is gone
            raise
        os._exit(129)  # whatever would still be printed, nobody reads it, and it would fail
    stuck = not job.leave(wait=True)
    progress.stop()
    if stuck and record.supervisor:
        click.echo(
            f"warning: the job's supervisor is stopped or hangs: kill -9 {record.supervisor.pid} (its guard then "
            "clears up)",
            err=True,
        )
    raise_for_end(job.paths, record)
    return record
