"""A batch that rows join and leave between two tokens.

A row that joins has its prompt read, together with those of others that join at the same time, and gets its first
token; then it has a part in every step. What a row is answered does not depend on the others: it has keys, values, a
sampler and a text of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from launcher.inference.decoding import Row

# Prompts up to so many tokens are read together, whatever their lengths: a pass has costs of its own.
_SHORT = 64


class Memory(Protocol):
    """Keys and values of the rows of a batch, and the network that computes them."""

    def join(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Add rows behind those there are; return logits (prompts, vocab) float32 after each of ``prompts``.

        After an exception the rows are those from before.
        """

    def step(self, tokens: Sequence[int]) -> Any:
        """Add one token to each row; return logits (rows, vocab) float32 after it."""

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, given by their numbers in rising order."""

    def clear(self) -> None:
        """Drop all rows, also after an exception in a step."""


class Batch:
    """Rows that are answered together, at most ``slots`` of them."""

    def __init__(self, memory: Memory, slots: int) -> None:
        self._memory = memory
        self._slots = slots
        self.rows: list[Row] = []

    @property
    def free(self) -> int:
        """Return how many rows may join now."""
        return self._slots - len(self.rows)

    def join(self, rows: Sequence[Row]) -> None:
        """Read the prompts of ``rows`` and choose their first tokens. What goes wrong ends those that it belongs to."""
        for alike in _alike(rows):
            self._join(alike)

    def _join(self, rows: Sequence[Row]) -> None:
        try:
            logits = self._memory.join([row.prompt for row in rows])
        except Exception as error:
            if len(rows) == 1:
                rows[0].fail(error)
                return
            for row in rows:  # one of them may be to blame
                self._join([row])
            return
        self.rows += rows
        for row in rows:
            with _ends(row):
                row.stop_if_cancelled()
        self._advance(rows, logits)

    def step(self) -> None:
        """Drop the rows that are cancelled, and choose the next token of all others."""
        self.drop_cancelled()
        if not self.rows:
            return
        try:
            logits = self._memory.step([row.new_tokens[-1] for row in self.rows])
        except Exception as error:
            self._memory.clear()
            gone, self.rows = self.rows, []
            for row in gone:
                row.fail(error)
            return
        self._advance(self.rows, logits)

    def drop_cancelled(self) -> None:
        """Free the slots of rows that nobody wants any more."""
        for row in self.rows:
            with _ends(row):
                row.stop_if_cancelled()
        self._drop_ended()

    def _advance(self, rows: Sequence[Row], logits: Any) -> None:
        for row, its in zip(rows, logits, strict=True):
            with _ends(row):
                if row.finish is None:
                    row.advance(its)
        self._drop_ended()

    def _drop_ended(self) -> None:
        kept = [number for number, row in enumerate(self.rows) if row.finish is None]
        if len(kept) < len(self.rows):
            self._memory.keep(kept)
            self.rows = [self.rows[number] for number in kept]


def _alike(rows: Sequence[Row]) -> list[list[Row]]:
    """Return groups of rows whose prompts are read together, shortest first: all are padded to the longest of a group,
    and short ones are not to wait for it."""
    found: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.prompt)):
        if found and len(row.prompt) <= max(_SHORT, 2 * len(found[-1][0].prompt)):
            found[-1].append(row)
        else:
            found.append([row])
    return found


@contextmanager
def _ends(row: Row) -> Iterator[None]:
    """Have what goes wrong with ``row`` alone, such as its sampler or its reader, end it and no other."""
    try:
        yield
    except Exception as error:
        row.fail(error)


def run(memory: Memory, rows: Sequence[Row]) -> None:
    """Answer ``rows`` as one batch that nobody else joins. Raises what one of them failed by."""
    batch = Batch(memory, len(rows))
    batch.join(rows)
    while batch.rows and not any(row.error for row in rows):
        batch.step()
    for row in rows:
        if row.error is not None:
            raise row.error
