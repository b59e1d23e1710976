"""The fault table: what breaks, what the verdict must say, and how one cell of it is measured."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support.events import read_events
from support.supervised import LIMITS, Supervised, marked, wait_until

from launcher import jobs
from launcher.engines import ENGINES
from launcher.jobs import JobRecord
from launcher.plan.launch import Launch
from launcher.plan.resume import saved_moments

MOUNT, UMOUNT = (shutil.which(name) or name for name in ("mount", "umount"))

TRAIN = Path(__file__).with_name("train.py")

# Long enough for an import of mindspore on a machine with other work; nothing healthy takes it.
CELL_LIMITS = replace(LIMITS, start_timeout_s=240.0)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """``rank``: the rank that the verdict must name, None for another cause. ``text``: what it must say.

    ``act`` does it from outside once all ranks train; ``engines`` are those that can have it.
    """

    name: str
    rank: int | None = 1
    text: str = ""
    state: str = jobs.FAILED
    engines: tuple[str, ...] = tuple(ENGINES)
    limits: dict[str, Any] | None = None
    act: Callable[[Supervised], None] | None = None
    plain: bool = False
    seconds: float = 2.0


def _engine_pid(job: Supervised) -> int:
    (own,) = [p.pid for p in marked(job.mark) if job.engine in " ".join(p.cmdline()[:2])]
    return own


def _signal_engine(signum: int) -> Callable[[Supervised], None]:
    return lambda job: os.kill(_engine_pid(job), signum)


def _kill_scheduler(job: Supervised) -> None:
    os.kill(read_events(job.paths.scheduler_events)[0]["pid"], signal.SIGKILL)


def _kill_supervisor(job: Supervised) -> None:
    supervisor = job.record().supervisor
    assert supervisor is not None
    supervisor.send(signal.SIGKILL)


def _kill_follower(job: Supervised) -> None:
    """The command line that follows is killed; the job goes on, and is stopped here."""
    argv = (sys.executable, "-m", "launcher", "attach", job.root.name, "--jobs-dir", str(job.root.parent))
    follower = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1.0)
    follower.kill()
    follower.wait()
    before = int(job.paths.rank_position(0).read_text())
    wait_until(lambda: int(job.paths.rank_position(0).read_text()) > before + 5, "steps after the follower's death")
    supervisor = job.record().supervisor
    assert supervisor is not None
    supervisor.send(signal.SIGTERM)


NESTING = ("msrun", "mpirun")

FAULTS = {
    fault.name: fault
    for fault in (
        Fault(name="exception", text="rank 1 failed first, after step 3: ValueError: no luck", plain=True),
        Fault(name="exit3", text="rank 1 failed first, after step 3: SystemExit: 3", plain=True),
        Fault(name="SIGKILL", text="rank 1 failed first, after step 3: killed by SIGKILL", plain=True),
        Fault(name="SIGSEGV", text="rank 1 failed first, after step 3: crashed (SIGSEGV)", plain=True),
        Fault(name="SIGSTOP", text="has been suspended (SIGSTOP)", limits={"stopped_s": 3.0}, seconds=7.0, plain=True),
        Fault(name="hang", text="no progress", limits={"hang_timeout_s": 3.0}, seconds=7.0),
        Fault(name="death_in_import", text="before its first step: killed by SIGKILL", plain=True),
        Fault(name="death_in_cluster_build", text="before its first step: killed by SIGKILL", plain=True),
        Fault(name="death_in_save", text="after step 8: killed by SIGKILL"),
        Fault(name="crash_after_done", rank=None, state=jobs.SUCCEEDED),
        Fault(name="never_starts", text="it did not start within 12 s", limits={"start_timeout_s": 12.0}, seconds=30.0),
        Fault(name="disk_full", text="No space left on device"),
        Fault(name="logs_deleted", text="ValueError: logs are gone"),
        Fault(name="much_output", text="ValueError: said enough", seconds=20.0),
        Fault(name="stubborn_child", text="ValueError: a child is left", plain=True),
        Fault(name="port_taken", rank=None, text="scheduler failed first", seconds=60.0),
        Fault(name="scheduler_SIGKILL", rank=None, text="scheduler failed first: killed", act=_kill_scheduler),
        Fault(name="supervisor_SIGKILL", rank=None, state=jobs.LOST, text="ended from outside", act=_kill_supervisor),
        Fault(name="follower_SIGKILL", rank=None, state=jobs.CANCELLED, act=_kill_follower, seconds=60.0),
        *[
            Fault(
                name=f"engine_{signal.Signals(signum).name}",
                rank=None,
                text="run failed first",
                engines=NESTING,
                act=_signal_engine(signum),
                seconds=4.0,
            )
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
        ],
    )
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What was seen. ``seconds`` from the fault until the last process was gone and the verdict written."""

    fault: Fault
    engine: str
    ranks: int
    record: JobRecord
    seconds: float
    survivors: int
    newest_saved: tuple[int, int] | None

    @property
    def said(self) -> str:
        verdict = self.record.verdict
        if verdict is None:
            return f"{self.record.state} {' '.join(self.record.warnings)}".strip()
        return str(verdict["text"]["en"]).splitlines()[0]


@dataclass(kw_only=True)
class RealJob(Supervised):
    """A job with real MindSpore and the real msrun."""

    port: int | None = None

    def launch(self) -> Launch:
        launch = replace(super().launch(), worker=(str(TRAIN),), program=ENGINES[self.engine].find_program())
        return launch if self.port is None else replace(launch, port=self.port)

    def _all_entered(self) -> bool:
        return all(self.paths.rank_position(r).is_file() and _position(self, r) > 3 for r in range(self.ranks))


def _position(job: Supervised, rank_id: int) -> int:
    return int(job.paths.rank_position(rank_id).read_text() or "0")


def run_cell(fault: Fault, engine: str, ranks: int, folder: Path, mark: str) -> Cell:
    """Make a job, let the fault happen, and see what is left."""
    limits = replace(CELL_LIMITS, **(fault.limits or {}))
    job = RealJob(
        root=folder / f"{fault.name}-{engine}", program="", mark=mark, engine=engine, ranks=ranks, limits=limits,
        env={"FAULT": fault.name, "FAULT_RANK": "1", "GLOG_v": "3"},
    )  # fmt: skip
    with _small_disk(job.root) if fault.name == "disk_full" else _taken_port(job, fault):
        job.start()
        if fault.act:
            job.wait_for_pids()
            began = time.time()
            fault.act(job)
        record = job.end()
        ended = time.time()
        wait_until(lambda: not marked(mark), "end of everything")
        if not fault.act:
            began = _fault_time(job, ended)
        saved = [set(saved_moments(job.paths.checkpoints / f"rank_{rank}")) for rank in range(ranks)]
        common = set.intersection(*saved)
        return Cell(
            fault=fault, engine=engine, ranks=ranks, record=record, seconds=time.time() - began,
            survivors=len(marked(mark)), newest_saved=max(common) if common else None,
        )  # fmt: skip


def _fault_time(job: Supervised, default: float) -> float:
    try:
        return float((job.root / "fault_at").read_text())
    except (OSError, ValueError):
        return default


@contextmanager
def _taken_port(job: RealJob, fault: Fault) -> Any:
    if fault.name != "port_taken":
        yield
        return
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        job.port = taken.getsockname()[1]
        yield


@contextmanager
def _small_disk(root: Path) -> Any:
    """A tmpfs of 8 MiB for the whole job."""
    root.mkdir(parents=True)
    subprocess.run([MOUNT, "-t", "tmpfs", "-o", "size=8m", "launcher-test", str(root)], check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run([UMOUNT, str(root)], check=True, timeout=20)
