"""Whether an answer is right: exact, by its number, by a pattern, by what it contains, by its letter."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from fractions import Fraction

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+|/\d+)?")
# After such a word stands the letter that is meant, a small one only at an end: "the answer is a number" has none.
# Without such a word it is the first that stands alone, and is no article: "A cat".
_SAID = re.compile(
    r"(?i:answer|choice|option|答案|选项?|选择)(?i:\s*(?:is|:|：|为|是))*\s*[(（\[]?\s*"
    r"([A-J](?![A-Za-z])|[a-j](?=[)）\].,;。]|\s*$))"
)
_ALONE = re.compile(r"(?<![A-Za-z0-9'])([A-J])(?![A-Za-z0-9']| [a-z])")

Judge = Callable[[str, str], bool]


def final_number(text: str) -> str | None:
    """Return the last number in ``text``, without thousands separators: "共 1,250.50 元" gives "1250.50"."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def letter(text: str) -> str | None:
    """Return the letter that an answer chooses: "The answer is (B)." gives "B"; None where there is none."""
    said = _SAID.findall(text)
    if said:
        return str(said[-1]).upper()
    alone = _ALONE.search(text)
    return alone[1] if alone else None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _same_number(answer: str, right: str) -> bool:
    found = _fraction(final_number(answer))
    return found is not None and found == _fraction(final_number(right))


def _fraction(number: str | None) -> Fraction | None:
    try:
        return Fraction(number) if number else None
    except ZeroDivisionError:
        return None


def _contains(answer: str, right: str) -> bool:
    return _plain(right).casefold() in _plain(answer).casefold()


def _same_letter(answer: str, right: str) -> bool:
    found = letter(answer)
    return found is not None and found == letter(right)


def _is_pattern(right: str) -> bool:
    try:
        re.compile(right)
    except (re.error, RecursionError):
        return False
    return bool(right)


JUDGES: Mapping[str, Judge] = {
    "exact": lambda answer, right: _plain(answer) == _plain(right),
    "number": _same_number,
    "regex": lambda answer, right: re.search(right, answer) is not None,
    "contains": _contains,
    "choice": _same_letter,
}
# What a right answer must be for each, or nothing could be right.
USABLE: Mapping[str, Callable[[str], bool]] = {
    "exact": lambda right: bool(_plain(right)),
    "number": lambda right: _fraction(final_number(right)) is not None,
    "regex": _is_pattern,
    "contains": lambda right: bool(_plain(right)),
    "choice": lambda right: letter(right) is not None,
}
