"""Log files: their ends, and following them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from launcher.errors import JobError
from launcher.jobs import JobPaths

_TAIL_BYTES = 65536


def tail(path: Path, lines: int) -> list[str]:
    """The last ``lines`` lines of a log, bytes that are not UTF-8 replaced; reads at most its last 64 KiB."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []


def print_logs(
    paths: JobPaths, num_ranks: int, rank: int | None, lines: int | None, echo: Callable[[str], object]
) -> None:
    """Give the job's logs to ``echo`` line by line: one rank's, or the engine's and then every rank's with a heading.

    Raises JobError when the rank is not one of the job, or has written nothing.
    """
    if rank is not None:
        if rank >= num_ranks:
            raise JobError(f"job {paths.job_id} has ranks 0 to {num_ranks - 1}, not {rank}", hint="--rank 0")
        _print(paths.rank_log(rank), lines, echo, required=True)
        return
    for name, log in [
        *((name, paths.log(name)) for name in ("msrun", "mpirun", "scheduler") if paths.log(name).is_file()),
        *((f"rank {r}", paths.rank_log(r)) for r in range(num_ranks)),
    ]:
        echo(f"==> {name}: {log} <==")
        _print(log, lines, echo, required=False)


def _print(log: Path, lines: int | None, echo: Callable[[str], object], *, required: bool) -> None:
    if not log.is_file():
        if required:
            raise JobError(
                f"{log} does not exist: the rank never started", hint=f"launcher status {log.parents[1].name}"
            )
        echo("(nothing)")
        return
    if lines is not None:
        for line in tail(log, lines):
            echo(line)
        return
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            echo(line.rstrip("\n"))
