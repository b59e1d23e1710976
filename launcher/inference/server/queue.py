"""Requests on their way to the models: a queue of bounded length, and the batch of each model, which they join.

Between two tokens the rows of waiting requests take the free slots of their model, in the order in which they came, and
rows that have ended or that nobody waits for any more leave theirs. Models take turns, a token each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from launcher.common.http.access import RequestError
from launcher.inference.batching import Batch
from launcher.inference.decoding import CANCELLED, LENGTH, Row
from launcher.inference.network import could_not_run
from launcher.inference.server.formats import Piece
from launcher.inference.server.protocol import Completion
from launcher.inference.server.served import Served
from launcher.inference.session import Prepared, Session
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
    def is_over(self) -> bool:
        return self.error is not None or all(row.finish is not None for row in self.rows)

    def take(self, most: int) -> list[tuple[Task, int]]:
        """Return the places of the next rows, at most so many, which are no longer untaken."""
        first = self.taken
        self.taken += min(most, self.untaken)
        return [(self, place) for place in range(first, self.taken)]

    def cancelled(self) -> bool:
        """Return whether the client has left or the deadline has passed."""
        if time.monotonic() > self.deadline:
            self.timed_out = True
        return self.timed_out or self.left.is_set()

    def fail(self, message: str) -> None:
        """End the task without an answer, unless it failed before."""
        if self.error is None:
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


class TaskQueue:
    """Waiting tasks. ``run`` answers them in the thread that calls it, because MindSpore should stay in one thread."""

    def __init__(self, *, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._waiting: list[Task] = []  # with rows that have not been in a batch
        self._running: list[Task] = []  # with rows that have
        self._batches: dict[Session, Batch] = {}
        self._changed = threading.Condition()
        self.stopping = threading.Event()

    @property
    def waiting(self) -> int:
        """Return how many tasks wait because no slot is free; those that the next turn takes do not."""
        free: dict[Session, int] = {}
        for task in self._running:
            session = task.served.session
            taken = sum(row.finish is None for row in task.rows[: task.taken])
            free[session] = free.get(session, session.batch_size) - taken
        count = 0
        for task in self._waiting:
            session = task.served.session
            left = free.get(session, session.batch_size)
            count += not task.taken and left <= 0
            free[session] = left - task.untaken
        return count

    @property
    def running(self) -> int:
        """Return how many tasks are answered now."""
        return len(self._running)

    def put(self, task: Task) -> None:
        """Add a task. Raises RequestError when too many wait already, or the server is about to end."""
        with self._changed:
            if self.stopping.is_set():
                raise RequestError(503, "the server is shutting down")
            self._drop_cancelled()
            if self.waiting >= self._most_waiting:
                raise RequestError(429, "too many requests are waiting; try again later", code="queue_full")
            self._waiting.append(task)
            self._changed.notify()

    def run(self) -> None:
        """Answer tasks until ``stopping`` is set; running and waiting tasks then end as they are."""
        while not self.stopping.is_set():
            with self._changed:
                is_asked = self._changed.wait_for(lambda: bool(self._waiting), timeout=_POLL_S)
            if is_asked:
                with quiet():
                    while not self.stopping.is_set() and (self._waiting or self._running):
                        self.turn()
        self._end()

    def turn(self) -> None:
        """Let waiting rows join where slots are free, and compute one token of every row."""
        for batch in self._batches.values():
            batch.drop_cancelled()
        for batch, rows in self._begun(self._taken()).items():
            batch.join(rows)
        self._deliver_ends()
        for batch in self._batches.values():
            batch.step()
        self._deliver_ends()

    def _taken(self) -> list[tuple[Task, int]]:
        """Take rows of waiting tasks for the free slots of their models, in their order."""
        with self._changed:
            self._drop_cancelled()
            free: dict[Batch, int] = {}
            found = []
            for task in self._waiting:
                batch = self._batch_of(task)
                taken = task.take(free.get(batch, batch.free))
                free[batch] = free.get(batch, batch.free) - len(taken)
                found += taken
            self._running += [task for task in self._waiting if task.taken and task not in self._running]
            self._waiting = [task for task in self._waiting if task.untaken]
        return found

    def _begun(self, taken: Sequence[tuple[Task, int]]) -> dict[Batch, list[Row]]:
        """Begin rows, and return those that need tokens by the batches that they join."""
        found: dict[Batch, list[Row]] = {}
        for task, place in taken:
            row = task.rows[place]
            row.cancelled = partial(self._is_unwanted, task)
            if row.stop_if_cancelled():
                continue
            try:
                task.begin(place)
            except Exception as error:
                task.fail(could_not_run(error).message)
            else:
                if row.finish is None:
                    found.setdefault(self._batch_of(task), []).append(row)
        return found

    def _batch_of(self, task: Task) -> Batch:
        session = task.served.session
        if session not in self._batches:
            self._batches[session] = session.batching()
        return self._batches[session]

    def _drop_cancelled(self) -> None:
        """Free the places of clients that left."""
        gone = [task for task in self._waiting if task.is_over or task.cancelled()]
        self._waiting = [task for task in self._waiting if task not in gone]
        for task in gone:
            task.fail("it waited too long")

    def _deliver_ends(self) -> None:
        """Tell tasks that they are over; the rows that a failed one still has leave before the next token."""
        for task in self._running:
            for row in task.rows:
                if row.error is not None:
                    task.fail(could_not_run(row.error).message)
            if task.is_over and task.error is None:
                task.deliver(None)
        self._running = [task for task in self._running if not task.is_over]

    def _is_unwanted(self, task: Task) -> bool:
        return self.stopping.is_set() or task.error is not None or task.cancelled()

    def _end(self) -> None:
        with self._changed:
            for task in dict.fromkeys([*self._running, *self._waiting]):
                for row in task.rows:
                    if row.finish is None:
                        row.end(CANCELLED)
                task.fail("the server is shutting down")
            self._running, self._waiting, self._batches = [], [], {}
