"""One supervisor process a job: starts what the engine names, watches ranks, judges, and leaves nothing running.

start     from the command line: spawns the guard, in a session of its own, so closing a terminal ends no training
guard     parent of the supervisor; outlives it if it is killed, and then clears up and writes the end
supervisor  attempts: attempts, restarts, job.json
attempt   one start of the job's processes, from the first to the last
rank_states  what is known of the ranks, and which failure was the first
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from launcher.jobs import JobPaths


def start(paths: JobPaths) -> subprocess.Popen[bytes]:
    """Start the supervisor of the job at ``paths``, whose launch.json and job.json are written. Returns the guard."""
    with paths.supervisor_log.open("ab") as log:
        return subprocess.Popen(
            (sys.executable, "-m", "launcher.supervise", str(paths.root)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=Path("/"),
            env=_environment(),
            start_new_session=True,
        )


def _environment() -> dict[str, str]:
    """Ours, and the way to this package, which may have been found through the working folder."""
    import os

    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(dict.fromkeys([package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
    return {**os.environ, "PYTHONPATH": path}
