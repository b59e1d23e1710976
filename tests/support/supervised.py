"""Jobs for tests of supervision: real engines and the real supervisor, ranks that are small Python programs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest

from launcher import jobs, supervise
from launcher.common.ports import free_port
from launcher.common.processes import ProcessId
from launcher.control.stop import stop_job
from launcher.jobs import JobPaths, JobRecord
from launcher.jobs.events import read_position
from launcher.plan.launch import Launch, Limits, RankPlace, write_launch

PROGRAMS = Path(__file__).parent / "programs"

# Far more than anything here takes; a test that waits this long has failed.
TIMEOUT_S = 240.0 * float(os.environ.get("LAUNCHER_TEST_PATIENCE", "1"))

# Tests that take long, and whose core another test has too; `make faults` runs them.
long = pytest.mark.skipif(os.environ.get("LAUNCHER_FAULTS") != "all", reason="long: part of `make faults`")

LIMITS = Limits(grace_s=5.0, leave_s=0.3, start_timeout_s=40.0)


def engine_program(engine: str) -> str:
    """Path of the engine's program: our stand-in for msrun, the real mpirun."""
    if engine == "mpirun":
        program = shutil.which("mpirun")
        if program is None:
            pytest.skip("mpirun is not installed: apt-get install --no-install-recommends openmpi-bin")
        return program
    return str(PROGRAMS / "msrun") if engine == "msrun" else ""


def marked(mark: str) -> list[psutil.Process]:
    """Living processes with ``mark``."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ", "status"]):
        shown = f"{process.info['cmdline']} {process.info['environ']}"
        if mark in shown and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(process)
    return found


def report(record: JobRecord) -> str:
    """The verdict in English."""
    assert record.verdict is not None, record
    text: str = record.verdict["text"]["en"]
    return text


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {TIMEOUT_S:.0f} s for: {what}"
        time.sleep(0.02)


def measured(*, yes: bool = True) -> dict[str, str]:
    """Return what has a Python process measure its coverage, or not; nothing where none is measured."""
    settings = os.environ.get("LAUNCHER_COVERAGE")
    return {"COVERAGE_PROCESS_START": settings if yes else ""} if settings else {}


@dataclass(kw_only=True)
class Supervised:
    """One job. ``mark`` is on the command line or in the environment of every process of it."""

    root: Path
    program: str
    mark: str
    engine: str = "direct"
    worker: str = "rank.py"
    ranks: int = 2
    limits: Limits = LIMITS
    env: dict[str, str] = field(default_factory=dict)
    locks: tuple[str, ...] = ()
    wait_for_locks: bool = False
    guard: subprocess.Popen[bytes] | None = None

    @property
    def paths(self) -> JobPaths:
        return JobPaths(root=self.root, attempt=self.record().attempt)

    def launch(self) -> Launch:
        host = socket.gethostname()
        return Launch(
            engine=self.engine,
            target="CPU",
            address="127.0.0.1",
            port=free_port(),
            program=engine_program(self.engine),
            rank_table="",
            ranks=tuple(RankPlace(rank_id=n, local_rank=n, host=host, device_id=n) for n in range(self.ranks)),
            worker=(str(PROGRAMS / self.worker),),
            env={
                "RANK_PROGRAM": textwrap.dedent(self.program),
                "LAUNCHER_TEST": self.mark,
                **measured(yes=False),
                **self.env,
            },
            limits=self.limits,
            locks=self.locks,
            wait_for_locks=self.wait_for_locks,
        )

    def prepare(self, host: str | None = None) -> JobPaths:
        """The job's folder, with nothing running; on "" its leader is yet to come."""
        paths = JobPaths(root=self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        write_launch(paths, self.launch())
        record = JobRecord(
            job_id=paths.job_id, name="x", state=jobs.PLANNED, created=jobs.now(),
            host=socket.gethostname() if host is None else host, cards=self.ranks, target="CPU", versions={},
            engine=self.engine, supervisor=ProcessId.current() if host is None else None,
        )  # fmt: skip
        jobs.write_record(paths, record)
        return paths

    def start(self) -> Supervised:
        paths = self.prepare()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"LAUNCHER_TEST": self.mark, **measured()}.items():
                patch.setenv(name, value)
            self.guard = supervise.start(paths)
        return self

    def record(self) -> JobRecord:
        record = jobs.read_record(JobPaths(root=self.root))
        assert record is not None
        return record

    def end(self) -> JobRecord:
        """Wait for the end and return the final record."""
        assert self.guard is not None
        self.guard.wait(timeout=TIMEOUT_S)
        record = self.record()
        assert record.is_final, (record, self.supervisor_log())
        return record

    def stop(self, *, save: bool = False, grace_s: float | None = None) -> JobRecord:
        """As ``launcher stop`` does it, which runs in another process than the one that started the job."""
        stop_job(self.paths, self.record(), save=save, grace_s=grace_s)
        return self.end()

    def supervisor_log(self) -> str:
        return JobPaths(root=self.root).supervisor_log.read_text(encoding="utf-8")

    def wait_for(self, state: str) -> JobRecord:
        wait_until(lambda: self.record().state == state or self.record().is_final, f"state {state}")
        record = self.record()
        assert record.state == state, (record, self.supervisor_log())
        return record

    def wait_for_pids(self) -> JobRecord:
        """Until every rank has entered its first step."""
        wait_until(
            lambda: self.record().is_final or self._all_entered(),
            "ranks",
        )
        return self.record()

    def _all_entered(self) -> bool:
        return all(read_position(self.paths.rank_position(rank_id)) for rank_id in range(self.ranks))

    def again(self) -> Supervised:
        return replace(self, guard=None)

    def run(self) -> JobRecord:
        return self.start().end()
