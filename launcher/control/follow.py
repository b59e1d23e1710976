"""Following a job from a terminal: its events, its end, and the meaning of Ctrl-C.

Ctrl-C (SIGINT) and SIGTERM are passed on: the job is stopped, at once when repeated. SIGHUP, a terminal that is closed,
ends the following and not the job.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from launcher import jobs
from launcher.common.signals import handled, not_ignored
from launcher.control.stop import ask_in_queue
from launcher.errors import JobCancelled, JobError, JobFailed
from launcher.jobs import JobPaths, JobRecord
from launcher.jobs.events import Event, EventReader
from launcher.jobs.verdict import user_language, verdict_text
from launcher.schedulers import registry
from launcher.schedulers.base import Scheduler

POLL_S = 0.1
_SCHEDULER_POLL_S = 3.0

OnEvent = Callable[[Event], None]
OnState = Callable[[JobRecord], None]


class Detached(Exception):
    """The terminal is gone; the job runs on."""


def follow(
    paths: JobPaths, on_event: OnEvent, on_state: OnState, signals: list[int], *, timeout_s: float | None = None
) -> JobRecord:
    """Call ``on_event`` with every event of every rank of the newest attempt and ``on_state`` with each new state.

    ``signals``: from ``noted_signals``. Returns the final record. Raises Detached on SIGHUP, TimeoutError after
    ``timeout_s``, and JobError when the job's record is gone.
    """
    follower = _Follower(paths, on_event, on_state)
    until = math.inf if timeout_s is None else time.monotonic() + timeout_s
    with contextlib.closing(follower):
        while True:
            record = follower.look()
            follower.pass_on(signals, record)
            if record.is_final:
                return record
            if time.monotonic() >= until:
                raise TimeoutError(f"job {record.job_id} is {record.state} after {timeout_s:g} s; it runs on")
            follower.wait(record)


class _Follower:
    def __init__(self, paths: JobPaths, on_event: OnEvent, on_state: OnState) -> None:
        self._paths, self._on_event, self._on_state = paths, on_event, on_state
        self._seen: tuple[int, str, str | None] | None = None
        self._attempt = 0
        self._readers: list[EventReader] = []
        self._asked_at = -_SCHEDULER_POLL_S
        self._told: JobRecord | None = None
        self._stops = 0
        self._scheduler: Scheduler | None = None

    def look(self) -> JobRecord:
        """Read the record before the events, so that events written before an end are seen before it."""
        record = jobs.read_record(self._paths)
        if record is not None:
            record = self._ask_scheduler(record)
        if record is None:
            raise JobError(f"{self._paths.record} is gone or damaged", hint="launcher jobs")
        if record.attempt != self._attempt:
            self._attempt = record.attempt
            paths = self._paths.of_attempt(record.attempt)
            self.close()
            self._readers = [EventReader(path=paths.rank_events(rank_id)) for rank_id in range(record.cards)]
        for reader in self._readers:
            for event in reader.new():
                self._on_event(event)
        if self._seen != (record.attempt, record.state, record.note):
            self._seen = (record.attempt, record.state, record.note)
            self._on_state(record)
        return record

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    def _ask_scheduler(self, record: JobRecord) -> JobRecord:
        """Return ``record`` with the queue's reason why the job waits, or its loss; ask every few seconds."""
        if record.is_final or self._queue_of(record) is None:
            return record
        if time.monotonic() > self._asked_at + _SCHEDULER_POLL_S:
            self._asked_at = time.monotonic()
            self._told = ask_scheduler(record)
        told = self._told
        if told and told.state == jobs.LOST and record.state != told.state:
            again = jobs.read_record(self._paths)  # its end may have been written meanwhile
            return told if again == record else again or told
        return replace(record, note=told.note) if told and record.state == jobs.PLANNED else record

    def pass_on(self, signals: list[int], record: JobRecord) -> None:
        """Pass the signals on to the supervisor once it exists, or through the scheduler that has the job queued."""
        if signal.SIGHUP in signals:
            raise Detached
        if queue := self._queue_of(record):
            self._ask_queue_to_stop(queue, signals, record)
        elif record.guard is not None and record.supervisor is not None:
            while signals:
                record.supervisor.send(signals.pop(0))

    def _ask_queue_to_stop(self, queue: Scheduler, signals: list[int], record: JobRecord) -> None:
        while signals and not record.is_final:
            signals.pop(0)
            ask_in_queue(queue, self._paths, record, at_once=self._stops > 0)
            self._stops += 1

    def _queue_of(self, record: JobRecord) -> Scheduler | None:
        """Return the scheduler that has the job in its queue, if there is one."""
        if self._scheduler is None or self._scheduler.name != record.scheduler:
            self._scheduler = registry.find(record.scheduler)
        return self._scheduler if self._scheduler and self._scheduler.has_queue else None

    def wait(self, record: JobRecord) -> None:
        """Wait a while, or until the supervisor has ended."""
        handle = record.supervisor.open_pidfd() if record.supervisor else None
        if handle is None:
            time.sleep(POLL_S)
            return
        try:
            select.select([handle], [], [], POLL_S)
        finally:
            os.close(handle)


def ask_scheduler(record: JobRecord) -> JobRecord:
    """Return ``record`` with the knowledge of the job's scheduler added; unchanged where that is not installed."""
    scheduler = registry.find(record.scheduler)
    return scheduler.query(record) if scheduler else record


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Yield a list of the SIGINT, SIGTERM and SIGHUP received in the block, for ``follow`` to pass on.

    Enter it before the job starts, so that no signal is lost. SIGHUP stays ignored under nohup.
    """
    received: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        received.append(signum)

    with handled([signal.SIGINT, signal.SIGTERM, *not_ignored([signal.SIGHUP])], note):
        yield received


def _sender(record: JobRecord, signum: int) -> str:
    """Return the name of the signal, with its meaning for the job's scheduler."""
    scheduler = registry.find(record.scheduler)
    meaning = scheduler.signal_meaning(signum) if scheduler else ""
    return ", ".join(filter(None, (signal.Signals(signum).name, meaning)))


def _where_it_goes_on(paths: JobPaths, record: JobRecord) -> str:
    """Return where a resumed job begins, by the steps that are saved whole."""
    from launcher.plan.resume import checkpoint_words, newest_saved

    newest = newest_saved(paths, record.cards)
    return "begins anew: no step was saved" if newest is None else f"goes on from {checkpoint_words(newest)}"


def raise_for_end(paths: JobPaths, record: JobRecord) -> None:
    """Raise JobFailed with the verdict, or JobCancelled, when the job did not end well."""
    if record.state == jobs.CANCELLED:
        signum = (record.exit_code or 130) - 128
        saved = f"; {record.note}" if record.note else ""
        raise JobCancelled(
            f"job {record.job_id} stopped by {_sender(record, signum)}{saved}; none of its processes is left",
            signum=signum,
            hint=f"launcher resume {record.job_id}",
        )
    if record.state in (jobs.FAILED, jobs.LOST):
        verdict = record.verdict or {"text": "its supervisor is gone and left no verdict", "retry": True}
        rank_id = verdict.get("rank_id")
        option = "" if rank_id is None else f" --rank {rank_id}"
        again = f"; launcher resume {record.job_id} {_where_it_goes_on(paths, record)}" if verdict.get("retry") else ""
        raise JobFailed(
            f"job {record.job_id} {record.state}: {verdict_text(verdict, user_language(), record.job_id)}",
            hint=f"launcher logs {record.job_id}{option}{again}",
        )
