"""Known errors: recognised in what a failed rank said, each with its probable cause, what to check and what to do.

``known_error_rules`` has the rules as data. A rule is looked for line by line, in what the system said: lines of
Python code, of lower levels than an error, and CANN's lists of possible causes are no evidence, and neither is the
message of an exception that programs raise about their own data. The earliest line decides; what is ``vague`` counts
only where nothing else matches, because the details come after such a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from launcher.supervise.known_error_rules import KNOWN_ERRORS, NOT_BUILT, KnownError

__all__ = ["KNOWN_ERRORS", "NOT_BUILT", "KnownError", "Recognised", "look_for", "recognise"]

# Exceptions that Python programs raise about their own data: what they quote is not what the system said.
_ABOUT_DATA = frozenset({
    "ArithmeticError", "AssertionError", "AttributeError", "FloatingPointError", "IndexError", "KeyError",
    "LookupError", "NameError", "NotImplementedError", "OverflowError", "StopIteration", "SyntaxError", "TypeError",
    "UnboundLocalError", "UnicodeDecodeError", "UnicodeEncodeError", "UnicodeError", "ValueError", "ZeroDivisionError",
})  # fmt: skip

# "RuntimeError: ...", "socket.gaierror: ...", at the beginning of a line: the exception that speaks from there on.
_SPEAKER = re.compile(r"(?:[a-z_]\w*\.)*([A-Za-z_]\w*(?:Error|Exception|Iteration|error))(?::|$)")

# A line of a Python stack; the line of code below it may quote anything.
_FRAME = re.compile(r'\s+File "[^"]*", line \d+')

# The levels below an error, as MindSpore, CANN, MindFormers and Python's logging write them.
_QUIET = re.compile(
    r"\[(?:WARNING|WARN|INFO|DEBUG|EVENT|TRACE)\]|\s- (?:WARNING|INFO|DEBUG) - |^(?:WARNING|INFO|DEBUG)\b"
)

# CANN adds to each error what may have caused it, and what to look for: nothing of it has happened yet.
_ADVICE = re.compile(r"\s*(?:Possible Cause|Solution)\s*:")


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """A known error, and the line that shows it."""

    known: KnownError
    line: str


def recognise(texts: Iterable[str]) -> KnownError | None:
    """Return the known error found in the first of ``texts`` that shows one."""
    found = look_for(texts)
    return found.known if found else None


def look_for(texts: Iterable[str], *, warnings: bool = False) -> Recognised | None:
    """Return the known error found in the first of ``texts`` that shows one, and the line that does.

    ``warnings``: lines of lower levels than an error count too.
    """
    evidence = [[*_evidence(text, warnings)] for text in texts]
    told = (found for lines in evidence for line in lines for found in _matches(line))
    hinted = (found for lines in evidence for line in lines for found in _matches(line, vague=True))
    return next(told, None) or min(hinted, key=lambda found: KNOWN_ERRORS.index(found.known), default=None)


def _matches(evidence: tuple[str, str], *, vague: bool = False) -> Iterator[Recognised]:
    """Yield the rules that match a line, in their order."""
    speaker, line = evidence
    for known in KNOWN_ERRORS:
        heard = speaker not in _ABOUT_DATA or speaker in known.raised
        if heard and (known.vague if vague else known.pattern).search(line):
            yield Recognised(known=known, line=line)


def _evidence(text: str, warnings: bool) -> Iterator[tuple[str, str]]:
    """Yield the lines that say what happened, each with the exception that speaks, "" for none."""
    speaker, after_frame = "", False
    for line in text.splitlines():
        if _FRAME.match(line):
            after_frame = True
            continue
        is_code, after_frame = after_frame and line.startswith("    "), False
        if is_code or (not warnings and _QUIET.search(line)) or _ADVICE.match(line):
            continue
        if said := _SPEAKER.match(line):
            speaker = said[1]
        yield speaker, line
