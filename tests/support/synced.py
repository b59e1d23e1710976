"""Jobs of ranks that wait for each other, one of which may be slow: see ``programs/synced.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher import jobs
from launcher.observe.history import History, read_history
from launcher.observe.stragglers import Stragglers, find_stragglers, timeline
from support.supervised import Supervised

STEPS, SAVE_EVERY, RANKS = 21, 5, 4
_BURN = "import os\nos.sched_setaffinity(0, {%d})\nwhile True: pass"

# What makes a rank slow. A batch comes late, its core is taken by others, its disk takes 400 kB a second.
FAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "input": {"input_s": 0.05},
    "core": {"core": max(os.sched_getaffinity(0))},
    "save": {"disk": 400_000},
}


@contextmanager
def busy(core: int | None, programs: int = 12) -> Iterator[None]:
    """Keep ``core`` busy with programs that do nothing else, each of a session of its own: Linux may share cores out
    to sessions (autogroup), whatever the nice values in them are."""
    burners = [] if core is None else [
        subprocess.Popen((sys.executable, "-c", _BURN % core), start_new_session=True) for _ in range(programs)
    ]  # fmt: skip
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def run(folder: Path, fault: str, slow: int = 2, steps: int = STEPS) -> History:
    """Run a job whose rank ``slow`` has ``fault``; return its history."""
    asked = {"steps": steps, "save_every": SAVE_EVERY, "slow": slow, **FAULTS[fault]}
    folder.mkdir(parents=True)
    job = Supervised(root=folder / "job", program="", mark=f"synced-{folder.name}", worker="synced.py", ranks=RANKS,
                     env={"SYNCED": json.dumps(asked)})  # fmt: skip
    job.root.mkdir()
    (job.root / "batch").write_bytes(bytes(100_000))
    with busy(asked.get("core")):
        record = job.run()
    assert record.state == jobs.SUCCEEDED, (record.verdict, job.supervisor_log())
    return read_history(job.paths, record)


def judged(history: History) -> Stragglers:
    return find_stragglers(timeline(history.attempts[-1].ranks, {}))
