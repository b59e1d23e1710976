"""Choose which stretches of samples share a row, within a window.

The window is the chunk of records that a process encodes. The emptiest rows of a chunk stay open: the parent puts
their samples together with those of the chunks before (``OpenRows``). What shares a row depends on the records alone,
not on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Bins = list[list[int]]
Ints = npt.NDArray[np.int64]

# Of each window, rows that stay open for the samples of the next one, and how full a row is that never does.
_MOST_OPEN = 8
_FULL = 63 / 64
# How many pieces at the end of a row are chosen by their length.
_CHOSEN = 4
# Rows' worth of samples that the parent gathers before it packs them.
GATHERED_ROWS = 4 * _MOST_OPEN


def fill(lengths: Sequence[int], capacity: int, most: int) -> Bins:
    """Return rows as lists of indices into ``lengths``, each at most ``capacity`` tokens and ``most`` pieces.

    Each row begins with the longest piece that is left, goes on with pieces as they come, and ends with a few that fill
    its room as exactly as what is left allows. Best fit in order of length fills rows worse where lengths differ little
    (12 samples of 160 tokens leave 129 of 2,049 empty), and puts like to like. Raises ValueError for a length above
    ``capacity``.
    """
    if lengths and max(lengths) > capacity:
        raise ValueError(f"{max(lengths)} tokens do not fit into a row of {capacity}")
    stock = _Stock(lengths, capacity)
    rows = []
    while stock.left:
        rows.append(_row(stock, capacity, most))
    return rows


def _row(stock: _Stock, capacity: int, most: int) -> list[int]:
    longest = int(stock.lengths[-1])
    row, room = [stock.take(longest)], capacity - longest
    while stock.left and len(row) < most and (wanted := _next(stock, room, most - len(row))):
        row += [stock.take(length) for length in wanted]
        room -= sum(wanted)
    return row


def _next(stock: _Stock, room: int, places: int) -> tuple[int, ...]:
    """Return the lengths of the next piece or two of a row with ``room`` for tokens and ``places`` for pieces."""
    lengths = stock.lengths
    shortest, longest = int(lengths[0]), int(lengths[-1])
    if room < shortest:
        return ()
    if room > _CHOSEN * longest and places > _CHOSEN:
        return (stock.oldest_length(),)
    # As few as can fill the room, of about equal length, so that the last two are left much to choose from.
    pieces = min(-(-room // longest), room // shortest, places)
    if pieces > 2:
        return (_longest_within(lengths, max(room // pieces, shortest)),)
    return _one_or_two(stock, room) if pieces == 2 else (_longest_within(lengths, room),)


def _longest_within(lengths: Ints, room: int) -> int:
    return int(lengths[np.searchsorted(lengths, room, side="right") - 1])


def _one_or_two(stock: _Stock, room: int) -> tuple[int, ...]:
    """Return the one or two lengths that fill ``room`` best; of equally good ones those with the longest piece."""
    lengths = stock.lengths
    other = np.searchsorted(lengths, room - lengths, side="right") - 1
    # A length with a single piece is no pair of its own.
    other -= (other >= 0) & (lengths[other] == lengths) & (stock.counts[lengths] == 1)
    sums = np.where(other >= 0, lengths + lengths[other], 0)
    best = len(sums) - 1 - int(np.argmax(sums[::-1]))
    alone = _longest_within(lengths, room)
    return (int(lengths[best]), int(lengths[other[best]])) if sums[best] > alone else (alone,)


class _Stock:
    """The pieces that no row holds yet. ``counts[n]``: how many of n tokens; ``lengths``: the n that there are."""

    def __init__(self, lengths: Sequence[int], capacity: int) -> None:
        self.counts = np.bincount(np.array(lengths, dtype=np.int64), minlength=capacity + 1)
        self.lengths: Ints = np.flatnonzero(self.counts)
        self.left = len(lengths)
        self._lengths = lengths
        self._is_taken = [False] * len(lengths)
        self._oldest = 0
        self._by_length: dict[int, list[int]] = {}
        for piece in range(len(lengths) - 1, -1, -1):
            self._by_length.setdefault(lengths[piece], []).append(piece)

    def take(self, length: int) -> int:
        """Return the oldest piece of ``length`` tokens, which is then no longer there."""
        piece = self._by_length[length].pop()
        self.counts[length] -= 1
        if not self.counts[length]:
            self.lengths = self.lengths[self.lengths != length]
        self._is_taken[piece] = True
        self.left -= 1
        return piece

    def oldest_length(self) -> int:
        """Return the length of the oldest piece of all."""
        while self._is_taken[self._oldest]:
            self._oldest += 1
        return self._lengths[self._oldest]


def part(bins: Bins, lengths: Sequence[int], capacity: int) -> tuple[Bins, Bins]:
    """Return the rows to write and those that stay open, each in the order of their first pieces.

    At most eight stay open, the emptiest.
    """
    used = {number: sum(lengths[piece] for piece in row) for number, row in enumerate(bins)}
    emptiest = sorted((number for number in used if used[number] < _FULL * capacity), key=lambda number: used[number])
    is_open = frozenset(emptiest[:_MOST_OPEN])
    return (
        in_order(row for number, row in enumerate(bins) if number not in is_open),
        in_order(row for number, row in enumerate(bins) if number in is_open),
    )


def in_order(bins: Iterable[list[int]]) -> Bins:
    """Return rows in the order of their first pieces, and the pieces of each in order."""
    return sorted(sorted(row) for row in bins)
