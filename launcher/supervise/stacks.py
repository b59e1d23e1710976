"""Stacks of all threads of ranks that make no progress, written to their logs."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time

from launcher.jobs import JobPaths
from launcher.supervise.rank_states import Rank, RankStates

_PY_SPY_TIMEOUT_S = 20

# The ranks' own faulthandler writes within milliseconds, if the process can still run.
_FAULTHANDLER_S = 0.5


def dump_stacks(paths: JobPaths, states: RankStates) -> None:
    """Write the ranks' stacks by py-spy if installed (it sees C++ frames, and ranks that handle no signal), else by
    faulthandler."""
    ranks = [rank for rank in states.ranks.values() if rank.process and rank.gone is None]
    spy = shutil.which("py-spy")
    for rank in ranks:
        if not (spy and _spy(spy, paths, rank)) and rank.process:
            rank.process.send(signal.SIGUSR2)
    time.sleep(_FAULTHANDLER_S)


def _spy(spy: str, paths: JobPaths, rank: Rank) -> bool:
    if rank.process is None:
        return False
    try:
        with paths.rank_stacks(rank.rank_id).open("wb") as output:
            # py-spy otherwise stops the process first, which one that hangs inside a driver call may never do.
            argv = (spy, "dump", "--nonblocking", "--pid", str(rank.process.pid))
            done = subprocess.run(argv, stdout=output, stderr=output, timeout=_PY_SPY_TIMEOUT_S, check=False)
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
