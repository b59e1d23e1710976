"""Following a job to its end, for every command that does."""

from __future__ import annotations

import os
import subprocess
import sys

from launcher.cli.show import Progress
from launcher.follow import Detached, follow, raise_for_end
from launcher.jobs import JobPaths, JobRecord


def follow_to_end(paths: JobPaths, progress: Progress, guard: subprocess.Popen[bytes] | None = None) -> JobRecord:
    """The final record of a job that succeeded; raises JobFailed or JobCancelled for others.

    ``guard``: the process to wait for, when we started it. A terminal that is closed ends this process alone.
    """
    try:
        record = follow(paths, progress.note, progress.note_state)
    except Detached:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - for good
        sys.exit(129)
    if guard is not None:
        guard.wait()
    progress.stop()
    raise_for_end(record)
    return record
