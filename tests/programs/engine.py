"""Behaves as msrun does: one process a rank, each in a session of its own, TERM not handled, exit code 1 late.

usage: engine.py JOB_FOLDER NUM_RANKS RANK_PROGRAM_TEXT

Every rank runs RANK_PROGRAM_TEXT (Python) with RANK_ID set and ``events`` at hand; so each test says in its own
words what its ranks do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

PRELUDE = """
import os, sys, time, signal
from pathlib import Path
from launcher.events import EventWriter
from launcher.jobs import JobPaths
from launcher.processes import ProcessId
rank = int(os.environ["RANK_ID"])
events = EventWriter(JobPaths(root=Path(sys.argv[1])).rank_events(rank), rank)
me = ProcessId.current()
events.write("begin", pid=me.pid, started=me.started)
def step(n, loss=1.0):
    events.write("step", step=n, loss=loss, lr=0.1, overflow=False, grad_norm=None, step_s=0.01)
def fail(kind, message):
    events.write("error", type=kind, message=message, traceback="Traceback (most recent call last):\\n  boom")
"""


def main() -> int:
    folder, num_ranks, program = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    workers = []
    for rank in range(num_ranks):
        log = (folder / "logs" / f"worker_{rank}.log").open("wb")
        workers.append(
            subprocess.Popen(
                [sys.executable, "-c", PRELUDE + program, str(folder)],
                env={**os.environ, "RANK_ID": str(rank)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
    while any(worker.poll() is None for worker in workers):
        for worker in workers:
            if worker.poll():
                print(
                    f"Worker process {worker.pid} exit with exception. Error code: {worker.returncode}.",
                    flush=True,
                )
                time.sleep(60)  # msrun waits 30 s for its scheduler
                return 1
        time.sleep(0.05)
    return max(worker.returncode for worker in workers)


if __name__ == "__main__":
    sys.exit(main())
