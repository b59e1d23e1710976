"""Choose which stretches of samples share a row: best fit, longest first, within a window.

The window is the chunk of records that a process encodes. The emptiest rows of a chunk stay open: the parent puts
their samples together with those of the chunks before (``OpenRows``). What shares a row depends on the records alone,
not on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Bins = list[list[int]]

# Of each window, rows that stay open for the samples of the next one, and how full a row is that never does.
_MOST_OPEN = 8
_FULL = 63 / 64
# Rows' worth of samples that the parent gathers before it packs them.
GATHERED_ROWS = 4 * _MOST_OPEN

# MindFormers' default for the number of samples of a row (dataset/dataloader/hf_dataloader.py of 1.9.0,
# compressed_eod_mask_length).
_LEAST_SEAMS = 128
_TOKENS_A_SAMPLE = 32


def seams_of(seq_length: int) -> int:
    """Return the length of the column ``actual_seq_len``: one more than the most samples that share a row."""
    return min(max(_LEAST_SEAMS, seq_length // _TOKENS_A_SAMPLE), seq_length)


def best_fit(lengths: Sequence[int], capacity: int, most: int) -> Bins:
    """Return rows as lists of indices into ``lengths``, each at most ``capacity`` tokens and ``most`` pieces.

    Longest first, each goes to the row with the least room that takes it (Johnson et al., SIAM J. Comput. 3(4), 1974:
    at most 11/9 of the fewest rows possible, and 4). Raises ValueError for a length above ``capacity``.
    """
    rows: Bins = []
    by_room: dict[int, list[int]] = {}
    # Bit r says that a row with room for r tokens is open: the least room that fits is found in one step.
    rooms = 0
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        length = lengths[piece]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            rooms ^= 0 if by_room[room] else 1 << room
        else:
            row, room = len(rows), capacity
            rows.append([])
        if length > room:
            raise ValueError(f"{length} tokens do not fit into a row of {capacity}")
        rows[row].append(piece)
        left = room - length
        if left and len(rows[row]) < most:
            by_room.setdefault(left, []).append(row)
            rooms |= 1 << left
    return rows


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
