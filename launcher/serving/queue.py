"""Requests on their way to the one model: a queue of bounded length, and batches of what waits."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from launcher.errors import LauncherError
from launcher.inference.decoding import Row
from launcher.inference.session import Prepared, Session
from launcher.quiet import quiet
from launcher.serving.protocol import Completion, RequestError

_POLL_S = 0.2


@dataclass(kw_only=True)
class Task:
    """One request from its arrival to its answer. ``pieces``: texts as they come, then None."""

    completion: Completion
    prepared: Prepared
    deadline: float
    pieces: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue)
    left: threading.Event = field(default_factory=threading.Event)
    timed_out: bool = False
    error: str | None = None
    row: Row | None = None

    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more, or it took too long."""
        if time.monotonic() > self.deadline:
            self.timed_out = True
        return self.timed_out or self.left.is_set()

    def texts(self) -> Iterator[str | None]:
        """The answer piece by piece; None now and then while there is nothing new."""
        while True:
            try:
                piece = self.pieces.get(timeout=_POLL_S)
            except queue.Empty:
                yield None
                continue
            if piece is None:
                return
            yield piece


class TaskQueue:
    """Tasks that wait. ``run`` works them off in the thread that calls it, for MindSpore likes to stay in one."""

    def __init__(self, session: Session, *, most_waiting: int) -> None:
        self._session = session
        self._waiting: queue.Queue[Task] = queue.Queue(maxsize=most_waiting)
        self._running: list[Task] = []
        self.stopping = threading.Event()

    def put(self, task: Task) -> None:
        """Raises RequestError when too many wait already, or the server is about to end."""
        if self.stopping.is_set():
            raise RequestError(503, "the server is shutting down")
        try:
            self._waiting.put_nowait(task)
        except queue.Full:
            raise RequestError(429, "too many requests are waiting; try again later", code="queue_full") from None

    def run(self) -> None:
        """Answer tasks until ``stopping`` is set; those that run or wait then end as they are."""
        while not self.stopping.is_set():
            tasks = self._next()
            if tasks:
                self._answer(tasks)
        while not self._waiting.empty():
            self._fail([self._waiting.get_nowait()], "the server is shutting down")

    def _next(self) -> list[Task]:
        """The next batch: what waits, up to the batch size; at least a moment is waited for one."""
        try:
            tasks = [self._waiting.get(timeout=_POLL_S)]
        except queue.Empty:
            return []
        while len(tasks) < self._session.batch_size:
            try:
                tasks.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        gone = [task for task in tasks if task.cancelled()]
        self._fail(gone, "it waited too long")
        return [task for task in tasks if task not in gone]

    def _answer(self, tasks: list[Task]) -> None:
        for task in tasks:
            task.row = self._session.row(task.prepared, task.completion.spec, self._cancelled(task))
            task.row.on_text = task.pieces.put
        try:
            with quiet():
                self._session.run([task.row for task in tasks if task.row])
        except LauncherError as error:
            self._fail(tasks, error.message)
        else:
            for task in tasks:
                task.pieces.put(None)

    def _cancelled(self, task: Task) -> Callable[[], bool]:
        return lambda: self.stopping.is_set() or task.cancelled()

    def _fail(self, tasks: list[Task], message: str) -> None:
        for task in tasks:
            task.error = message
            task.pieces.put(None)
