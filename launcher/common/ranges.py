"""Ranges of numbers in short notation, ``0-3,7`` and ``host[1-4]``: reading and writing them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

MOST_RANKS = 65536  # HCCL's own limit (rank_count of version 2.0)
_RANGE = re.compile(r"\[([^\[\]]*)\]")
_SPAN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def expand(text: str, *, most: int = MOST_RANKS) -> list[str]:
    """Return ``text`` with every ``[a-b]`` or ``[a,c-d]`` expanded, the last one varying fastest.

    Raises ValueError when a range is malformed or runs backwards, or when there would be more than ``most`` texts.
    """
    pieces = _RANGE.split(text)
    if "[" in "".join(pieces[::2]) or "]" in "".join(pieces[::2]):
        raise ValueError(f"{text!r}: brackets do not match")
    choices = [[piece] if index % 2 == 0 else _choices(piece, most) for index, piece in enumerate(pieces)]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total > most:
        raise ValueError(f"{text!r} means {total} entries; {most} is the most there can be")
    return ["".join(parts) for parts in itertools.product(*choices)]


def numbers(text: str | int, *, most: int = MOST_RANKS) -> list[int]:
    """Return ``0-3,6`` as [0, 1, 2, 3, 6]. Raises ValueError when the text is not a list of numbers."""
    return [int(number) for number in _choices(str(text), most)]


def _choices(text: str, most: int) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        match = _SPAN.fullmatch(part.strip())
        if not match:
            raise ValueError(f"{part.strip()!r} in {text!r} is no number and no range such as 0-7")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first):
            raise ValueError(f"{text!r} runs backwards")
        if int(last) - int(first) + len(found) >= most:
            raise ValueError(f"{text!r} means more than {most} entries")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found


def spans(numbers: Sequence[int]) -> str:
    """Return ascending ``numbers`` in short, "0-3, 7, 9-10"; at most ten spans."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in found[:10]]
    return ", ".join(texts) + (f" and {len(found) - 10} more" if len(found) > 10 else "")


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that compares digits as numbers: node9 before node10, 10.0.0.9 before 10.0.0.10."""
    return tuple(
        (1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"([0-9]+)", text) if part
    )
