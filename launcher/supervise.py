"""Carry out a plan: write its files, run its command, watch the ranks, stop everything at the first failure.

The outcome rests on what ranks report about themselves (``launcher.events``) and on which of them are alive, never
on an exit code alone: msrun returns 0 after Ctrl-C, and 1 for any failure 30 s after the first rank died.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from launcher import jobs
from launcher.errors import JobCancelled, JobFailed
from launcher.events import EventReader
from launcher.jobs import JobPaths, JobRecord
from launcher.plan import LaunchPlan
from launcher.processes import ProcessId, stop, tree
from launcher.render import write_atomic
from launcher.verdict import Verdict, find_verdict

POLL_S = 0.1

# After the first failure others may report theirs: the verdict waits this long for an earlier one.
SETTLE_S = 0.3

# How long the engine may take to leave by itself after its last rank has: it has nothing left to do.
LEAVE_S = 1.0

GRACE_S = 5.0

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(kw_only=True)
class Watch:
    """What is known about the ranks of a running job."""

    readers: tuple[EventReader, ...]
    processes: dict[int, ProcessId] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    gone: dict[int, float] = field(default_factory=dict)
    last_step: dict[int, int] = field(default_factory=dict)

    @property
    def num_ranks(self) -> int:
        return len(self.readers)

    @property
    def all_done(self) -> bool:
        return len(self.done) == self.num_ranks

    @property
    def all_left(self) -> bool:
        return self.all_done and len(self.gone) == self.num_ranks

    @property
    def failing(self) -> bool:
        """An error was reported, or a rank's process is gone that had not said that it is done."""
        return bool(self.errors) or any(rank_id not in self.done for rank_id in self.gone)

    def poll(self, on_event: OnEvent) -> None:
        """Read new events, then look which processes are gone. In this order: a rank reports before it leaves."""
        missing = [rank for rank, process in self.processes.items() if rank not in self.gone and not process.is_alive()]
        for reader in self.readers:
            for event in reader.new():
                self._note(event)
                on_event(event)
        for rank_id in missing:
            self.gone[rank_id] = time.time()

    def _note(self, event: dict[str, Any]) -> None:
        rank_id, kind = event.get("rank_id"), event.get("event")
        if not isinstance(rank_id, int):
            return
        if kind == "begin":
            self.processes[rank_id] = ProcessId(pid=event["pid"], started=event["started"])
        elif kind == "error":
            self.errors.append(event)
        elif kind == "done":
            self.done.add(rank_id)
        elif kind == "step":
            self.last_step[rank_id] = event["step"]


def write_files(plan: LaunchPlan) -> None:
    """Make the job's folder with everything the plan says. The folder must not exist."""
    paths = plan.paths
    paths.root.mkdir(parents=True, exist_ok=False)
    for folder in (paths.logs, paths.events, paths.work):
        folder.mkdir()
    for file in plan.files:
        write_atomic(paths.root / file.path, file.text)
    for link in plan.links:
        path = paths.root / link.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(link.target)
    write_atomic(paths.plan, json.dumps(plan.to_dict(), ensure_ascii=False, indent=2) + "\n")


def run(plan: LaunchPlan, record: JobRecord, on_event: OnEvent) -> JobRecord:
    """Write the plan, run it to its end, and return the final record, which job.json then holds.

    Raises JobFailed with the verdict when a rank or the engine failed, and JobCancelled when this process was asked
    to stop (SIGINT, SIGTERM, SIGHUP). Whatever happens, no process of the job is left.
    """
    paths = plan.paths
    write_files(plan)
    record = replace(record, state=jobs.RUNNING, started=jobs.now(), supervisor=ProcessId.current())
    jobs.write_record(paths, record)
    with _asked_to_stop() as asked, _engine(plan) as engine:
        engine_id = ProcessId(pid=engine.pid, started=_start_time(engine.pid))
        watch = Watch(readers=tuple(EventReader(path=paths.rank_events(rank.rank_id)) for rank in plan.cluster.ranks()))
        _follow(engine, watch, asked, on_event)
        failed = not asked and (watch.failing or not watch.all_done)
        members = _members(engine_id, watch)
        verdict = _judge(paths, watch, engine, on_event) if failed else None
        stop(members, grace_s=GRACE_S if asked else 0.0)
        engine.wait()
    record = replace(record, processes={f"rank_{rank}": process for rank, process in sorted(watch.processes.items())})
    return _conclude(paths, record, asked, verdict)


def _judge(paths: JobPaths, watch: Watch, engine: subprocess.Popen[bytes], on_event: OnEvent) -> Verdict:
    """The verdict, before anything is stopped: ranks that are stopped by us must not look like failures."""
    time.sleep(SETTLE_S)
    watch.poll(on_event)
    return find_verdict(paths, watch.errors, watch.gone, watch.done, watch.last_step, engine.poll())


def _conclude(paths: JobPaths, record: JobRecord, asked: list[int], verdict: Verdict | None) -> JobRecord:
    record = replace(record, ended=jobs.now())
    if asked:
        jobs.write_record(paths, replace(record, state=jobs.CANCELLED, exit_code=128 + asked[0]))
        name = signal.Signals(asked[0]).name
        raise JobCancelled(f"job {record.job_id} stopped by {name}; nothing of it is running", signum=asked[0])
    if verdict:
        jobs.write_record(
            paths,
            replace(record, state=jobs.FAILED, exit_code=JobFailed.exit_code, verdict=verdict.to_dict()),
        )
        raise failure(record.job_id, verdict)
    record = replace(record, state=jobs.SUCCEEDED, exit_code=0)
    jobs.write_record(paths, record)
    return record


def failure(job_id: str, verdict: Verdict) -> JobFailed:
    """The error that ``submit`` ends with."""
    return JobFailed(
        f"job {job_id} failed: {verdict.text}", hint=f"launcher logs {job_id} {verdict.log_option}".strip()
    )


def _follow(engine: subprocess.Popen[bytes], watch: Watch, asked: list[int], on_event: OnEvent) -> None:
    """Return when the job has ended, one way or the other, or when this process was asked to stop."""
    left_at: float | None = None
    while not asked:
        engine_gone = engine.poll() is not None
        watch.poll(on_event)
        if watch.failing or engine_gone:
            return
        if watch.all_left:
            left_at = left_at or time.monotonic()
            if time.monotonic() - left_at > LEAVE_S:
                return
        time.sleep(POLL_S)


def _members(engine: ProcessId, watch: Watch) -> list[ProcessId]:
    """Every process of the job that can be found: below the engine, and below each rank (in a session of its own)."""
    found = {process.pid: process for root in (engine, *watch.processes.values()) for process in tree(root)}
    return list(found.values())


def _start_time(pid: int) -> float:
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return time.time()


@contextmanager
def _engine(plan: LaunchPlan) -> Iterator[subprocess.Popen[bytes]]:
    """The running engine. If this process leaves by an exception, the engine's tree goes first."""
    log = plan.paths.engine_log
    with log.open("ab") as output:
        process = subprocess.Popen(
            plan.command.argv,
            env={**os.environ, **plan.spec.env, **plan.command.env},
            cwd=plan.paths.work,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    except BaseException:
        stop(tree(ProcessId(pid=process.pid, started=_start_time(process.pid))), grace_s=0.0)
        raise
    finally:
        process.wait()


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """A list that receives the number of the first signal that asks this process to stop."""
    asked: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        asked.append(signum)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
