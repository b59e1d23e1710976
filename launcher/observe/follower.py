"""``python -m launcher.observe.follower JOB_FOLDER ATTEMPT``: tells people of a job while it runs.

Started by the job's guard, whose end of the pipe on standard input closes when guard and supervisor are done. Each one
that is told has a thread, so that one that hangs holds up no other; one that fails is dropped, with one line in the
job's supervisor.log.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launcher.common.json_files import json_or_empty
from launcher.errors import JobError, LauncherError
from launcher.jobs import JobPaths, JobRecord, read_record
from launcher.jobs.verdict import user_language
from launcher.observe import notices
from launcher.observe.history import value_at
from launcher.observe.notify import NotSent, send
from launcher.observe.trackers import Telling, find
from launcher.runspec.checking import load_user_config
from launcher.runspec.sections import NotifySpec, UserConfig

EVERY_S = 1.0
TELL_EVERY_S = 5.0
# After the job's end, for all that is left to tell; below what the guard waits.
LAST_WORDS_S = 40.0
# Once it has no guard any more it ends anyway, even if nobody writes the job's end.
ORPHANED_S = 600.0


_log = os.dup(1)


def say(line: str) -> None:
    """Write one line to the job's supervisor.log."""
    os.write(_log, f"follower: {line}\n".encode("utf-8", "replace"))


@dataclass(kw_only=True)
class Notifier:
    """One target of notices: told of every restart since ``attempt``, and of the end."""

    name: str
    target: NotifySpec
    paths: JobPaths
    attempt: int
    send: Callable[[NotifySpec, notices.Notice], None] = send
    _ended: bool = field(default=False)

    def look(self, record: JobRecord, *, last: bool) -> None:
        """Send what is new. A notice that cannot be sent is said and left out; the next one is tried again."""
        lang = self.target.lang or user_language()
        found = list(notices.restarts(self.paths, record, self.attempt - 1, lang))
        self.attempt = record.attempt
        end = None if self._ended else notices.end(self.paths, record, lang)
        if end:
            self._ended = True
            found.append(end)
        for notice in found:
            if notice.is_for(self.target.when):
                self._try(notice)

    def _try(self, notice: notices.Notice) -> None:
        try:
            self.send(self.target, notice)
        except NotSent as error:
            say(f"{self.name} was not told of the {notice.occasion}: {error.message}")


@dataclass(kw_only=True)
class Tracked:
    """One tracker, told now and then. It may take a twentieth of the time, as long histories take seconds to read."""

    name: str
    paths: JobPaths
    every_s: float = TELL_EVERY_S
    _telling: Telling | None = field(default=None)
    _next: float = field(default=0.0)

    def look(self, record: JobRecord, *, last: bool) -> None:
        """Tell what is new, if it is time or the job is over."""
        began = time.monotonic()
        if not last and began < self._next:
            return
        if self._telling is None:
            self._telling = self._begin(last=last)
        if self._telling is None:
            self._next = began + self.every_s
            return
        self._telling.tell(record)
        if last:
            self._telling.end(record.state)
        now = time.monotonic()
        self._next = now + max(self.every_s, 20 * (now - began))

    def _begin(self, *, last: bool) -> Telling | None:
        """Return the telling; None while another process has it, as that of the attempt before, which still ends."""
        try:
            return Telling(find(self.name), self.name, self.paths)
        except JobError:
            if last:
                raise
            return None


class Look(Protocol):
    """What is done with a job's newest record; ``last``: the job is over."""

    def __call__(self, record: JobRecord, *, last: bool) -> None: ...


class Told:
    """A thread that shows ``look`` the newest record, every time there is one, until it fails or the job is over."""

    def __init__(self, name: str, look: Look) -> None:
        self.name, self._look = name, look
        self._record: JobRecord | None = None
        self._new, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def show(self, record: JobRecord | None, *, last: bool = False) -> None:
        self._record = record
        if last:
            self._over.set()
        self._new.set()

    def wait(self, until: float) -> bool:
        """Wait for it to finish; return False when it has not by ``until`` (by time.monotonic)."""
        self._thread.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        last = False
        while not last:
            self._new.wait()
            self._new.clear()
            last, record = self._over.is_set(), self._record
            try:
                if record:
                    self._look(record, last=last)
            except LauncherError as error:
                say(f"{self.name} is dropped: {error.message.splitlines()[0]}")
                return
            # Its text may hold an address, and with it a key.
            except Exception as error:
                say(f"{self.name} is dropped: {type(error).__name__}")
                return


def follow(
    paths: JobPaths, told: Sequence[Told], job: int, *, last_words_s: float = LAST_WORDS_S,
    tell: Callable[[str], None] = say,
) -> None:  # fmt: skip
    """Show the job's record to all ``told`` until the pipe ``job`` and the job have come to their end."""
    for record in _records(paths, job):
        for one in told:
            one.show(record)
    until = time.monotonic() + last_words_s
    at_the_end = read_record(paths)
    for one in told:
        one.show(at_the_end, last=True)
    late = [one.name for one in told if not one.wait(until)]
    if late:
        tell(f"{', '.join(late)} dropped: not done {last_words_s:g} s after the job's end")


def _records(paths: JobPaths, job: int) -> Iterator[JobRecord]:
    """Yield the job's record every EVERY_S seconds while the job goes on."""
    orphaned: float | None = None
    while True:
        readable, _, _ = select.select([job] if orphaned is None else [], [], [], EVERY_S)
        if readable and not os.read(job, 64):
            orphaned = time.monotonic()
        record = read_record(paths)
        if orphaned is not None and (_is_over(paths, record) or time.monotonic() - orphaned > ORPHANED_S):
            return
        if record:
            yield record


def _is_over(paths: JobPaths, record: JobRecord | None) -> bool:
    """Return True if the job's end is written, nobody is left to write it, or its scheduler will go on with it."""
    return record is None or record.is_final or not record.host or paths.is_gone


def targets(paths: JobPaths) -> list[tuple[str, NotifySpec]]:
    """Return the targets of the job's spec and those of the user's own settings, by names for the log."""
    own = _user_config().notify
    of_spec = UserConfig.model_validate({"notify": tuple(json_or_empty(paths.spec).get("notify") or ())}).notify
    named = [*((one, "the spec") for one in of_spec), *((one, "the user's settings") for one in own)]
    return [(f"{one.to} (notify of {place})", one) for one, place in named]


def _user_config() -> UserConfig:
    try:
        return load_user_config()
    except LauncherError as error:
        say(f"the user's settings are left out: {' '.join(error.message.split())}")
        return UserConfig()


def main(root: Path, attempt: int) -> None:
    """Follow the job at ``root`` from its attempt number ``attempt`` to its end."""
    # Schedulers signal every process of a job, whose end the pipe tells. Programs do not inherit handlers, as SIG_IGN.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda _number, _frame: None)
    paths = JobPaths(root=root)
    # Trackers greet, and say where to look: nothing that belongs into a log that is empty while all is well.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    told = [
        Told(name, Notifier(name=name, target=target, paths=paths, attempt=attempt).look)
        for name, target in targets(paths)
    ]
    told += [Told(f"tracker {name}", Tracked(name=name, paths=paths).look) for name in _trackers(paths)]
    if told:
        follow(paths, told, sys.stdin.fileno())


def _trackers(paths: JobPaths) -> list[str]:
    named = value_at(json_or_empty(paths.spec), "observe", "trackers")
    return [str(name) for name in dict.fromkeys(named)] if isinstance(named, list) else []


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except Exception as error:
        say(f"ended, so nobody is told of this job: {type(error).__name__}: {error}")
    # Threads that hang are not waited for.
    os._exit(0)
