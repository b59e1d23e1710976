"""Rank tables for people: their ranks, and what the linter found."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from launcher.cli.output.tables import table
from launcher.cluster.rank_table.problems import LEVELS, Problem, Report
from launcher.cluster.rank_table.view import Entry
from launcher.common.ranges import spans

_FEW_RANKS = 64
_PLACES_SHOWN = 8


def report_lines(report: Report) -> Iterator[str]:
    """Yield the findings of one file, each rule once with the places that break it."""
    totals = ", ".join(count(report.count(letter), name) for letter, name in LEVELS)
    what = f"version {report.version}, {report.ranks} ranks; " if report.ranks else ""
    yield f"{_plain(report.name)}: {what}{totals}"
    for letter, _ in LEVELS:
        for code in dict.fromkeys(problem.code for problem in report.of_level(letter)):
            yield from _code_lines(report, code)


def first_of_each(problems: Sequence[Problem]) -> Iterator[str]:
    """Yield one line for each code."""
    for problem in list({problem.code: problem for problem in reversed(problems)}.values())[::-1]:
        yield f"  {problem.code} {problem.path}: {problem.rule.rule}"


def count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _code_lines(report: Report, code: str) -> Iterator[str]:
    problems = [problem for problem in report.problems if problem.code == code]
    rule = problems[0].rule
    yield f"  {code}  {rule.rule}"
    for problem in problems[:_PLACES_SHOWN]:
        value = f" = {problem.value}" if problem.value else ""
        detail = f"  ({problem.detail})" if problem.detail else ""
        yield f"      {_plain(problem.path + value + detail)}"
    more = report.counts[code] - _PLACES_SHOWN
    if more > 0:
        yield f"      and {more} more (--format json lists them)"
    yield f"      CANN: {rule.cann}"
    yield f"      fix:  {rule.fix}"


def _plain(text: str) -> str:
    """``text`` as the terminal's encoding can show it: a file's bytes may be anything."""
    shown = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def ranks_text(ranks: Sequence[Entry], by: str | None) -> str:
    """Return a line a rank or a server, as ``by`` says; servers alone where the ranks are many."""
    chosen = by or ("rank" if len(ranks) <= _FEW_RANKS else "server")
    return _by_rank(ranks) if chosen == "rank" else _by_server(ranks)


def _by_rank(ranks: Sequence[Entry]) -> str:
    header = ("RANK", "SERVER", "DEVICE", "ADDRESS", "SUPER DEVICE ID", "SUPER POD")
    rows = [
        (str(e.rank_id), e.server, str(e.device_id), e.address, e.super_device_id, e.pod)  # as header has them
        for e in ranks
    ]
    return _without_empty(header, rows, from_column=4)


def _by_server(ranks: Sequence[Entry]) -> str:
    servers: dict[str, list[Entry]] = {}
    for entry in ranks:
        servers.setdefault(entry.server, []).append(entry)
    rows = [_server_row(server, own) for server, own in servers.items()]
    return _without_empty(("RANKS", "SERVER", "DEVICES", "ADDRESSES", "SUPER POD"), rows, from_column=4)


def _server_row(server: str, own: Sequence[Entry]) -> tuple[str, ...]:
    addresses = [entry.address for entry in own if entry.address]
    ends = " .. ".join(dict.fromkeys((addresses[0], addresses[-1]))) if addresses else ""
    devices = spans(sorted(entry.device_id for entry in own))
    return spans([entry.rank_id for entry in own]), server, devices, ends, own[0].pod


def _without_empty(header: Sequence[str], rows: Sequence[Sequence[str]], *, from_column: int) -> str:
    """Return the table without those columns from ``from_column`` on that no row fills."""
    kept = [index for index in range(len(header)) if index < from_column or any(row[index] for row in rows)]
    return table([header[index] for index in kept], ([_plain(row[index]) for index in kept] for row in rows))
