"""One supervisor process per job: starts the engine's programs, watches ranks, judges, and leaves nothing running.

start     from the command line: spawns the guard, in a session of its own, so closing a terminal ends no training
guard     parent of the supervisor; outlives it if it is killed, and then clears up and writes the end
supervisor  one attempt after the other; the only writer of job.json
attempt   one start of the job's processes, from the first to the last; multinode/ has those on several hosts
rank_states  everything known about the ranks, and the first of their failures
judge     what is late, hangs, has failed, is lost or stops
verdict   the report on a failure; known_errors finds its cause by the rules in known_error_rules
restarts  whether another attempt follows; spare_hosts, which host takes the place of one that failed twice
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from launcher.common.processes import environment_of_ours
from launcher.jobs import JobPaths


def start(paths: JobPaths) -> subprocess.Popen[bytes]:
    """Start the supervisor of the job at ``paths``, whose launch.json and job.json are written. Returns the guard."""
    # In a session of its own no terminal's signals reach it; in "/" it keeps no file system from being unmounted.
    with paths.supervisor_log.open("ab") as log:
        return subprocess.Popen(
            (sys.executable, "-m", "launcher.supervise", str(paths.root)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=Path("/"),
            env=environment_of_ours(),
            start_new_session=True,
        )
