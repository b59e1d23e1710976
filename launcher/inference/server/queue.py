"""Requests on their way to the models: a queue of bounded length, answered in batches of rows of one model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from launcher.common.http.access import RequestError
from launcher.errors import LauncherError
from launcher.inference.decoding import CANCELLED, LENGTH, Row
from launcher.inference.server.formats import Piece
from launcher.inference.server.protocol import Completion
from launcher.inference.server.served import Served
from launcher.inference.session import Prepared
from launcher.upstream.quiet import quiet

_POLL_S = 0.2


@dataclass(kw_only=True, eq=False)
class Task:
    """One request from its arrival to its answer, which has ``n`` rows for each prompt.

    deliver: called with each piece as it comes, then None, in the thread of the models. deadline: of time.monotonic.
    left: set when nobody waits for the answer any more. taken: how many rows have been in a batch.
    """

    served: Served
    completion: Completion
    prepared: Sequence[Prepared]
    deadline: float
    deliver: Callable[[Piece | None], None]
    left: threading.Event = field(default_factory=threading.Event)
    timed_out: bool = False
    error: str | None = None
    rows: list[Row] = field(init=False)
    taken: int = 0

    def __post_init__(self) -> None:
        asked, places = self.completion, range(len(self.prepared) * self.completion.n)
        self.rows = [
            self.served.session.row(
                self.prepared[place // asked.n],
                asked.seeded(place % asked.n),
                continued=asked.text,
                top=asked.logprobs,
            )
            for place in places
        ]

    @property
    def untaken(self) -> int:
        """Return how many rows have not been in a batch."""
        return len(self.rows) - self.taken

    @property
    def is_answered(self) -> bool:
        return all(row.finish is not None for row in self.rows)

    def cancelled(self) -> bool:
        """Return whether the client has left or the deadline has passed."""
        if time.monotonic() > self.deadline:
            self.timed_out = True
        return self.timed_out or self.left.is_set()

    def fail(self, message: str) -> None:
        """End the task without an answer."""
        self.error = message
        self.deliver(None)

    def begin(self, place: int) -> None:
        """Deliver the echo of row ``place``, if asked for; the row may have ended by that."""
        row, prompt = self.rows[place], self.prepared[place // self.completion.n]
        delivered = 0

        def on_text(text: str) -> None:
            nonlocal delivered
            scores, delivered = tuple(row.scores[delivered:]), len(row.scores)
            self.deliver(Piece(index=place, text=text, scores=scores, finish=row.finish))

        if self.completion.echo:
            self._echo(place, row, self.served.prompt_text(prompt), on_text)
        row.on_text = on_text
        if row.limit == 0 and row.finish is None:
            row.end(LENGTH)

    def _echo(self, place: int, row: Row, text: str, on_text: Callable[[str], None]) -> None:
        if not self.completion.scores_prompts:
            self.deliver(Piece(index=place, text=text))
            return
        held: list[str] = []  # a row that is answered on the way
        row.on_text = held.append
        scores = self.served.session.score_prompt(row)
        self.deliver(Piece(index=place, text=text, scores=tuple(scores)))
        for news in held:
            on_text(news)


Batch = list[tuple[Task, int]]


class TaskQueue:
    """Waiting tasks. ``run`` answers them in the thread that calls it, because MindSpore should stay in one thread."""

    def __init__(self, *, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._waiting: list[Task] = []
        self._changed = threading.Condition()
        self.stopping = threading.Event()

    @property
    def waiting(self) -> int:
        """Return how many tasks wait."""
        return len(self._waiting)

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
            if batch := self._next():
                self._answer(batch)
        with self._changed:
            for task in self._waiting:
                task.fail("the server is shutting down")

    def _next(self) -> Batch:
        """Return the next batch, after waiting a moment for it: rows of the first task and of others of its model."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting), timeout=_POLL_S)
            self._drop_cancelled()
            batch: Batch = []
            if self._waiting:
                session = self._waiting[0].served.session
                for task in self._waiting:
                    if task.served.session is session:
                        batch += _take(task, session.batch_size - len(batch))
            self._waiting = [task for task in self._waiting if task.untaken]
        return batch

    def _drop_cancelled(self) -> None:
        """Free the places of clients that left."""
        gone = [task for task in self._waiting if task.cancelled()]
        self._waiting = [task for task in self._waiting if task not in gone]
        for task in gone:
            task.fail("it waited too long")

    def _answer(self, batch: Batch) -> None:
        tasks = list(dict.fromkeys(task for task, _ in batch))
        try:
            with quiet():
                self._run(batch)
        except LauncherError as error:
            with self._changed:
                self._waiting = [task for task in self._waiting if task not in tasks]
            for task in tasks:
                task.fail(error.message)
        else:
            for task in tasks:
                if task.is_answered:
                    task.deliver(None)

    def _run(self, batch: Batch) -> None:
        for task, place in batch:
            row = task.rows[place]
            row.cancelled = partial(self._cancelled, task)
            if row.cancelled():
                row.end(CANCELLED)
            else:
                task.begin(place)
        if rows := [task.rows[place] for task, place in batch if task.rows[place].finish is None]:
            batch[0][0].served.session.run(rows)

    def _cancelled(self, task: Task) -> bool:
        return self.stopping.is_set() or task.cancelled()


def _take(task: Task, most: int) -> Batch:
    """Return at most so many of the task's rows that were in no batch."""
    count = min(most, task.untaken)
    places = range(task.taken, task.taken + count)
    task.taken += count
    return [(task, place) for place in places]
