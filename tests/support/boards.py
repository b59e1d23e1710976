"""Boards that answer, over jobs as they leave their folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from launcher import jobs
from launcher.common.http.connections import Patience
from launcher.common.http.listening import listen, serving
from launcher.jobs import JobPaths
from launcher.observe.board.web import Board, application
from launcher.sweeps.board import SweepPages
from launcher.sweeps.record import DONE, PRUNED, WAITING, Sweep, SweepPaths, Trial, write
from support.job_folders import Made, MadeJob

# A job that runs on another host, and one that has ended.
RUNS, ENDED = "zzzzz-runs", "bcdfg-ended"
TOKEN = "a-token-of-some-length"


def make_jobs(root: Path) -> JobPaths:
    """Write a job that runs on another host, and one that has ended; return the paths of the former."""
    MadeJob(job_id=ENDED, steps=4, record={"origin": {"user": "ann"}}).write(root)
    job = MadeJob(job_id=RUNS, state=jobs.RUNNING, steps=10, attempts=(Made(held_out=(2,)),))
    paths = job.write(root)
    jobs.write_record(paths, replace(job.make_record(), created="2026-01-02T00:00:00.000+00:00"))
    paths.logs.mkdir()
    paths.rank_log(0).write_text("one\nTwo\nERROR bad\n")
    return paths


def make_sweep(root: Path, sweep_id: str = "cdfgh-tries", state: str = DONE) -> SweepPaths:
    """Write a sweep whose best trial is the ended job."""
    trials = (
        Trial(number=1, settings={"rate": 1e-4, "r": 8}, state="succeeded", value=1.25, step=4, job_id=ENDED),
        Trial(number=2, settings={"rate": 3e-4, "r": 8}, state=PRUNED, value=3.5, step=2, note="worse <than> others"),
        Trial(number=3, settings={"rate": 3e-3, "r": 16}, state=WAITING),
    )
    sweep = Sweep(
        sweep_id=sweep_id, created="2026-01-01", spec="made", metric="loss", goal="min", parallel=1, prune=True,
        trials=trials, state=state,
    )  # fmt: skip
    paths = SweepPaths(root=root / "sweeps" / sweep_id)
    paths.root.mkdir(parents=True)
    write(paths, sweep)
    return paths


@contextmanager
def served_board(
    root: Path, token: str | None = None, lang: str = "en", port: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """Serve the board of a folder, which looks often; yield its port and the lines of its log."""
    sweeps = SweepPages(jobs_dir=root, lang=lang)
    board, log = Board.over(root, lang, token, look_s=0.05, sweeps=sweeps), list[str]()
    listener = listen("127.0.0.1", port)
    with serving(application(board, log.append), listener, Patience(most=64, request_s=20, answer_s=60)):
        yield listener.getsockname()[1], log
        board.stopping.set()
