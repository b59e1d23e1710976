"""Checks of single values of a rank table: strings, numbers, lists of objects, rank ids."""

from __future__ import annotations

from typing import Any

from launcher.cluster.rank_table.problems import Report
from launcher.common.ranges import spans

_LONGEST_NUMBER = 20


def decimal(text: str) -> int | None:
    """Return the number in ``text``, if it is written in ASCII digits, or None."""
    if text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER:
        return int(text)
    return None


def string(report: Report, holder: dict[str, Any], key: str, path: str, *, required: bool = True) -> str | None:
    """Return the string at ``key``, or None with E_MISSING or E_NOT_STRING noted."""
    value = holder.get(key, ...)
    if isinstance(value, str):
        return value
    if value is not ...:
        report.add("E_NOT_STRING", f"{path}.{key}", value)
    elif required:
        report.add("E_MISSING", f"{path}.{key}", detail=f"no {key}")
    return None


def objects(
    report: Report, holder: dict[str, Any], key: str, path: str, *, may_be_empty: bool = False
) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of the list at ``key``, each with its path; other items are noted and left out."""
    value = holder.get(key, ...)
    here = f"{path}.{key}"
    if value is ...:
        report.add("E_MISSING", here, detail=f"no {key}")
        return []
    if not isinstance(value, list):
        report.add("E_TYPE", here, value, "a list is expected")
        return []
    if not value and not may_be_empty:
        report.add("E_MISSING", here, value, f"{key} is empty")
    found = []
    for index, item in enumerate(value):
        if isinstance(item, dict):
            found.append((f"{here}[{index}]", item))
        else:
            report.add("E_TYPE", f"{here}[{index}]", item, "an object is expected")
    return found


def integer(report: Report, holder: dict[str, Any], key: str, path: str, *, required: bool = True) -> int | None:
    """Return the integer at ``key``, or None with E_MISSING or E_NOT_INT noted. true and false are not integers."""
    value = holder.get(key, ...)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if value is not ...:
        report.add("E_NOT_INT", f"{path}.{key}", value)
    elif required:
        report.add("E_MISSING", f"{path}.{key}", detail=f"no {key}")
    return None


def check_ranks(report: Report, ranks: list[tuple[str, int | None]], list_path: str) -> None:
    """Note E_RANKS unless the rank ids, each with its path, are exactly 0 .. N-1. None means one already noted."""
    seen: dict[int, str] = {}
    for path, rank in ranks:
        if rank is None:
            continue
        if rank in seen:
            report.add("E_RANKS", path, rank, f"rank {rank} stands also at {seen[rank]}")
        elif not 0 <= rank < len(ranks):
            report.add("E_RANKS", path, rank, f"there are {len(ranks)} devices, so ranks end at {len(ranks) - 1}")
        seen.setdefault(rank, path)
    missing = [rank for rank in range(len(ranks)) if rank not in seen]
    if missing:
        report.add("E_RANKS", list_path, detail=f"no rank {spans(missing)}")
