"""Following a job to its end, for every command that does."""

from __future__ import annotations

import errno
import os
import subprocess

from launcher.cli.show import Progress
from launcher.follow import Detached, follow, raise_for_end
from launcher.jobs import JobPaths, JobRecord


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
    if guard is not None:
        guard.wait()
    progress.stop()
    raise_for_end(record)
    return record
