"""Requests on their way to the model: a queue of bounded length, answered in batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from launcher.common.http.access import RequestError
from launcher.errors import LauncherError
from launcher.inference.decoding import Row
from launcher.inference.server.protocol import Completion
from launcher.inference.session import Prepared, Session
from launcher.upstream.quiet import quiet

_POLL_S = 0.2


@dataclass(kw_only=True, eq=False)
class Task:
    """One request from its arrival to its answer.

    deliver: called with each text as it comes, then None, in the thread of the model. deadline: of time.monotonic.
    left: set when nobody waits for the answer any more.
    """

    completion: Completion
    prepared: Prepared
    deadline: float
    deliver: Callable[[str | None], None]
    left: threading.Event = field(default_factory=threading.Event)
    timed_out: bool = False
    error: str | None = None
    row: Row | None = None

    def cancelled(self) -> bool:
        """Return whether the client has left or the deadline has passed."""
        if time.monotonic() > self.deadline:
            self.timed_out = True
        return self.timed_out or self.left.is_set()

    def fail(self, message: str) -> None:
        """End the task without an answer."""
        self.error = message
        self.deliver(None)


class TaskQueue:
    """Waiting tasks. ``run`` answers them in the thread that calls it, because MindSpore should stay in one thread."""

    def __init__(self, session: Session, *, most_waiting: int) -> None:
        self._session = session
        self._most_waiting = most_waiting
        self._waiting: list[Task] = []
        self._changed = threading.Condition()
        self.stopping = threading.Event()

    def put(self, task: Task) -> None:
        """Add a task. Raises RequestError when too many wait already, or the server is about to end."""
        with self._changed:
            if self.stopping.is_set():
                raise RequestError(503, "the server is shutting down")
            self._drop_cancelled()
            if len(self._waiting) >= self._most_waiting:
                raise RequestError(429, "too many requests are waiting; try again later", code="queue_full")
            self._waiting.append(task)
            self._changed.notify()

    def run(self) -> None:
        """Answer tasks until ``stopping`` is set; running and waiting tasks then end as they are."""
        while not self.stopping.is_set():
            if tasks := self._next():
                self._answer(tasks)
        with self._changed:
            for task in self._waiting:
                task.fail("the server is shutting down")

    def _next(self) -> list[Task]:
        """Return the next batch: waiting tasks up to the batch size, after waiting a moment for the first."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting), timeout=_POLL_S)
            self._drop_cancelled()
            size = self._session.batch_size
            tasks, self._waiting = self._waiting[:size], self._waiting[size:]
        return tasks

    def _drop_cancelled(self) -> None:
        """Free the places of clients that left."""
        gone = [task for task in self._waiting if task.cancelled()]
        self._waiting = [task for task in self._waiting if task not in gone]
        for task in gone:
            task.fail("it waited too long")

    def _answer(self, tasks: list[Task]) -> None:
        for task in tasks:
            task.row = self._session.row(task.prepared, task.completion.spec, self._cancelled(task))
            task.row.on_text = task.deliver
        try:
            with quiet():
                self._session.run([task.row for task in tasks if task.row])
        except LauncherError as error:
            for task in tasks:
                task.fail(error.message)
        else:
            for task in tasks:
                task.deliver(None)

    def _cancelled(self, task: Task) -> Callable[[], bool]:
        return lambda: self.stopping.is_set() or task.cancelled()
