"""Writes the table of known errors into docs/troubleshooting.md."""

from __future__ import annotations

from pathlib import Path

from score import put_between

from launcher.jobs.verdict import EN
from launcher.supervise.known_errors import KNOWN_ERRORS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"

NAME = "known-errors"


def table() -> str:
    """Return the known errors as Markdown."""
    rows = [
        (known.name, known.cause[EN], known.check and f"`{known.check}`", known.fix[EN], "yes" if known.machine else "")
        for known in KNOWN_ERRORS
    ]
    cells = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    head = ["| error | probable cause | check | what to do next | restart |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(f"| {row} |" for row in cells)])


if __name__ == "__main__":
    put_between(PAGE, NAME, table())
