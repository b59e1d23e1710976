"""The follower of a job: a process of its own that tells others what the job did, and that nothing waits for in it.

The guard starts it and ends it. It reads the job's folder and nothing else, so whatever it does or fails to do, the
supervisor does not notice.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from launcher.common.json_files import json_or_empty
from launcher.common.processes import ProcessId, kill_descendants
from launcher.common.resources import user_config_file
from launcher.jobs import JobPaths

# By name: it stands on a floor above this one, and reads much more than the guard, which stays small.
PROGRAM = "launcher.observe.follower"

# From the job's end to the follower's: it gives up by itself before that.
END_S = 45.0


@dataclass(frozen=True, kw_only=True)
class Follower:
    """The follower of a job; ``process`` is None where there is nobody to tell.

    ``job``: a pipe that comes to its end for the follower when guard and supervisor are done, or gone.
    """

    process: ProcessId | None = None
    job: IO[bytes] | None = None

    @classmethod
    def start(cls, paths: JobPaths) -> Follower:
        """Start the job's follower, if its spec or the user's own settings name anybody to tell."""
        if not _is_wanted(paths):
            return cls()
        argv = (sys.executable, "-m", PROGRAM, str(paths.root), str(json_or_empty(paths.record).get("attempt", 1)))
        try:
            child = subprocess.Popen(argv, stdin=subprocess.PIPE, cwd=Path("/"), start_new_session=True)
            child.returncode = 0  # collected with all other children
            os.setpriority(os.PRIO_PROCESS, child.pid, 19)
            return cls(process=ProcessId.of_pid(child.pid), job=child.stdin)
        except OSError as error:
            print(f"follower: not started, so nobody is told of this job: {error}", flush=True)
            return cls()

    def end(self) -> None:
        """Have it tell the end, and kill it with all that it started when it takes too long."""
        if self.process is None or self.job is None:
            return
        self.job.close()
        deadline = time.monotonic() + END_S
        while self.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.process.is_alive():
            print(f"follower: killed, it had not ended {END_S:.0f} s after the job", flush=True)
        kill_descendants()


def _is_wanted(paths: JobPaths) -> bool:
    if user_config_file().is_file():
        return True
    spec = json_or_empty(paths.spec)
    return bool(spec.get("notify") or (spec.get("observe") or {}).get("trackers"))
