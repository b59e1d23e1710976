"""The doctor's findings on a terminal: line by line for one host, as a matrix for several."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from launcher.control.checkup import FleetReport
    from launcher.doctor.findings import Finding
    from launcher.doctor.fleet import Checkup

_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}
_WORST_FIRST = ("fail", "warn", "pass")
# More columns of hosts do not fit a terminal: their names are then in a list of numbers.
_MOST_NAMES = 78
_NO_CHECK = "-"


def print_findings(found: Iterable[Finding]) -> list[Finding]:
    """Print each finding as it comes, because some take seconds, and return them all."""
    findings = []
    for finding in found:
        findings.append(finding)
        print_finding(finding)
    return findings


def print_finding(finding: Finding, where: str = "") -> None:
    status = click.style(finding.status, fg=_COLOURS[finding.status])
    click.echo(f"{status}  {finding.id:<15} {where}{finding.what}")
    for line in finding.table:
        click.echo(f"{'':<22}{line}")
    if finding.fix:
        click.echo(f"{'':<22}-> {finding.fix}")


def summary(findings: Sequence[Finding], who: str = "this host", be: str = "is") -> str:
    """Return the last line: how many findings of each status, and what that means for ``who``."""
    from launcher.doctor.findings import worst

    counts = Counter(finding.status for finding in findings)
    end = {
        "pass": f"{who} {be} ready",
        "warn": f"{who} can run it; look at the warnings",
        "fail": f"{who} cannot run it yet",
    }[worst(findings)]
    return f"\n{counts['pass']} pass, {counts['warn']} warn, {counts['fail']} fail: {end}"


# ------------------------------------------------------------------------------------------------- several hosts


def print_fleet(report: FleetReport) -> None:
    """Print what hosts have together, the matrix of checks, and what each has to correct."""
    for finding in sorted(report.findings, key=lambda one: _WORST_FIRST.index(one.status)):
        print_finding(finding)
    able = [host for host in report.hosts if not host.fault]
    for number, line in enumerate(fleet_matrix(able)):
        click.echo(line if number else f"\n{line}")
    if any(host.status != "pass" for host in able):
        click.echo("")
    for finding, names in grouped(able):
        print_finding(finding, where=f"{_few(names)}: ")
    everything = [*report.findings, *(finding for host in report.hosts for finding in host.findings)]
    click.echo(summary(everything, "these hosts", "are"))


def fleet_matrix(hosts: Sequence[Checkup]) -> Iterator[str]:
    """Yield a row for each check: first those that differ from host to host, then those that all hosts fail.

    Checks that all hosts pass are in one line at the end.
    """
    if not hosts:
        return
    rows = {ident: [_status(host, ident) for host in hosts] for ident in _ids(hosts)}
    differing = [ident for ident, row in rows.items() if len(set(row)) > 1]
    alike = [ident for ident, row in rows.items() if len(set(row)) == 1 and row[0] != "pass"]
    heads, legend = _heads(hosts)
    yield from legend
    if differing or alike:
        yield f"{'':<15} {' '.join(heads)}".rstrip()
    for ident in [*_worst_first(differing, rows), *_worst_first(alike, rows)]:
        gaps = [" " * (len(head) - len(cell)) for cell, head in zip(rows[ident], heads, strict=True)]
        cells = [click.style(cell, fg=_COLOURS.get(cell)) for cell in rows[ident]]
        yield f"{ident:<15} {' '.join(cell + gap for cell, gap in zip(cells, gaps, strict=True))}".rstrip()
    same = [ident for ident, row in rows.items() if set(row) == {"pass"}]
    if same:
        yield f"pass on all {len(hosts)} hosts: {', '.join(same)}"


def _ids(hosts: Sequence[Checkup]) -> list[str]:
    return list(dict.fromkeys(finding.id for host in hosts for finding in host.findings))


def _status(host: Checkup, ident: str) -> str:
    statuses = {finding.status for finding in host.findings if finding.id == ident}
    return next((status for status in _WORST_FIRST if status in statuses), _NO_CHECK)


def _worst_first(idents: Sequence[str], rows: dict[str, list[str]]) -> list[str]:
    return sorted(idents, key=lambda ident: min(_WORST_FIRST.index(cell) for cell in rows[ident] if cell != _NO_CHECK))


def _heads(hosts: Sequence[Checkup]) -> tuple[list[str], list[str]]:
    """Return the heads of the columns: names, or numbers with a legend where those are too long."""
    names = [f"{host.name:<4}" for host in hosts]
    if len(" ".join(names)) <= _MOST_NAMES:
        return names, []
    numbers = [f"{number:<4}" for number in range(1, len(hosts) + 1)]
    return numbers, [f"{number.strip()}: {host.name}" for number, host in zip(numbers, hosts, strict=True)]


def grouped(hosts: Sequence[Checkup]) -> list[tuple[Finding, list[str]]]:
    """Return each finding that is no pass once, with the names of its hosts: failures first, then the rarest."""
    groups: dict[Finding, list[str]] = defaultdict(list)
    for host in hosts:
        for finding in host.findings:
            if finding.status != "pass":
                groups[finding].append(host.name)
    return sorted(groups.items(), key=lambda group: (_WORST_FIRST.index(group[0].status), len(group[1])))


def _few(names: Sequence[str]) -> str:
    from launcher.doctor.fleet import few

    return few(names)
