"""``launcher rank-table``: make, check, show, merge, convert."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from launcher.cli.options.common import format_option
from launcher.cli.output.tables import print_table
from launcher.cluster.model import KINDS, Cluster
from launcher.cluster.rank_table.lint import load_table
from launcher.cluster.rank_table.problems import Problem, Report
from launcher.cluster.rank_table.table import Table, table_of
from launcher.common.ranges import spans
from launcher.errors import HostError, SpecError

_FILE = click.Path(path_type=Path)
_FEW_RANKS = 64
_PLACES_SHOWN = 8
_LEVELS = (("E", "error"), ("W", "warning"), ("N", "note"))


@click.group(name="rank-table")
def rank_table() -> None:
    """Make, check, show and merge HCCL rank tables (versions 1.0, 1.2, 2.0).

    \b
    launcher rank-table make --inventory rank_tables/2x8.yaml
    launcher rank-table check hccl.json
    """


def _output_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--force", is_flag=True, help="Replace OUTPUT if it says something else.")(command)
    return click.option("-o", "--output", type=_FILE, help="File to write; - for the screen.")(command)


@rank_table.command()
@click.option("-i", "--inventory", type=_FILE, help="Hosts and devices; without it, the cards of this host.")
@click.option("--hosts", help='Some of the hosts, e.g. "node[0-3]" or "0-3" by position.')
@click.option("--devices", help='Some of the devices, by physical id, in the order of their ranks, e.g. "4-7".')
@click.option(
    "--order", type=click.Choice(["listed", "name", "address"]), default="listed", show_default=True,
    help="Order of the hosts, and so of the ranks; numbers go by value (node9 before node10).",
)  # fmt: skip
@click.option("--version", type=click.Choice(["1.0", "1.2", "2.0"]), help="By default what the devices want.")
@click.option("--address", help="Address of this host, when there is no inventory.")
@click.option("--pod-ip/--no-pod-ip", default=True, show_default=True, help="Add pod_ip, which msrun asks for.")
@_output_options
def make(
    inventory: Path | None, hosts: str | None, devices: str | None, order: str, version: str | None,
    address: str | None, pod_ip: bool, output: Path | None, force: bool,
) -> None:  # fmt: skip
    """Make a rank table from an inventory, or from the cards of this host.

    \b
    launcher rank-table make -i rank_tables/2x8.yaml
    launcher rank-table make --devices 4-7 -o four.json
    """
    from launcher.cluster.rank_table.select import select

    if inventory is not None and address is not None:
        raise SpecError("--address is for this host, and --inventory names the hosts", hint="leave one of them out")
    cluster = select(_cluster(inventory, address), hosts=hosts, devices=devices, order=order)
    target = output or Path("rank_tables") / f"{inventory.stem if inventory else cluster.hosts[0].name}.json"
    table = table_of(cluster, version=version, pod_ip=pod_ip)
    if cluster.kind == "A3" and table.version == "1.0" and version is None:
        click.echo("note: no super pod is known, so this is a 1.0 table (HCCL's AI server mode of A3)", err=True)
    if cluster.kind is None and version is None:
        click.echo(
            "note: the kind of the cards is not known, so this is a 1.0 table; --version names another", err=True
        )
    _finish(table, target, force=force, kind=cluster.kind, order=f"hosts {_ORDER_TEXT[order]}")


_ORDER_TEXT = {
    "listed": "as listed",
    "name": "sorted by name",
    "address": "sorted by address",
    "server": "sorted by super pod and server_id",
    "given": "as given",
}


def _cluster(inventory: Path | None, address: str | None) -> Cluster:
    if inventory is not None:
        from launcher.cluster.inventory import load_inventory

        return load_inventory(inventory)
    from launcher.cluster.discover import host_cluster, look_around

    return host_cluster(look_around(), address=address or _own_address())


def _own_address() -> str:
    from launcher.cluster.discover.address import own_address

    found = own_address()
    if found is None:
        raise HostError("this host has no address but 127.0.0.1", hint="pass --address A, as other hosts reach it")
    return found


def _finish(table: Table, target: Path, *, force: bool, kind: str | None, order: str) -> None:
    from launcher.cluster.rank_table.make import checked_text, write_table

    to_screen = str(target) == "-"
    text, report = checked_text(table, "rank_table.json" if to_screen else target.name, kind=kind)
    if to_screen:
        click.echo(text, nl=False)
        return
    verb = "wrote" if write_table(target, text, force=force) else "unchanged:"
    servers = f"{len(table.servers)} server{'s' if len(table.servers) != 1 else ''}, " if table.servers else ""
    click.echo(f"{verb} {target}: version {table.version}, {servers}{table.num_ranks} ranks; {order}")
    for problem in _first_of_each(report.of_level("W") + report.of_level("N")):
        click.echo(f"  {problem.code} {problem.path}: {problem.rule.rule}", err=True)


def _first_of_each(problems: list[Problem]) -> list[Problem]:
    return list({problem.code: problem for problem in reversed(problems)}.values())[::-1]


@rank_table.command()
@click.argument("files", nargs=-1, required=True, type=_FILE)
@format_option
@click.option(
    "--kind",
    type=click.Choice(list(KINDS)),
    help="Judge for this kind of chip; some rules hold on 910 alone.",
)
@click.option("--against-host", is_flag=True, help="Compare with the cards and hccn.conf of this host too.")
@click.pass_context
def check(ctx: click.Context, files: tuple[Path, ...], form: str, kind: str | None, against_host: bool) -> None:
    """Find everything that is wrong with rank tables; exit code 1 if anything is an error.

    \b
    launcher rank-table check hccl.json
    launcher rank-table check --format json --against-host *.json
    """
    reports = [report.for_kind(kind) for report in _reports(files, against_host=against_host)]
    if form == "json":
        click.echo(json.dumps({"files": [_as_json(report) for report in reports]}, ensure_ascii=True, indent=2))
    else:
        for report in reports:
            _print_report(report)
    ctx.exit(1 if any(report.count("E") for report in reports) else 0)


def _reports(files: tuple[Path, ...], *, against_host: bool) -> list[Report]:
    host = None
    if against_host:
        from launcher.cluster.discover import look_around
        from launcher.cluster.rank_table.against_host import compare_with_host

        host = look_around()
    reports = []
    for path in files:
        document, report = load_table(path)
        if host is not None:
            compare_with_host(document, report, host)
        reports.append(report)
    return reports


def _as_json(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = {
        "file": report.name,
        "version": report.version,
        "servers": report.servers,
        "ranks": report.ranks,
        "verdict": report.verdict,
        "counts": dict(sorted(report.counts.items())),
    }
    for letter, name in _LEVELS:
        found[f"{name}s"] = [_problem_json(problem) for problem in report.of_level(letter)]
    return found


def _problem_json(problem: Problem) -> dict[str, str]:
    return {
        "code": problem.code,
        "path": problem.path,
        "value": problem.value,
        "detail": problem.detail,
        "rule": problem.rule.rule,
        "cann": problem.rule.cann,
        "fix": problem.rule.fix,
    }


def _print_report(report: Report) -> None:
    totals = ", ".join(_count(report.count(letter), name) for letter, name in _LEVELS)
    what = f"version {report.version}, {report.ranks} ranks; " if report.ranks else ""
    click.echo(f"{_plain(report.name)}: {what}{totals}")
    for letter, _ in _LEVELS:
        for code in dict.fromkeys(problem.code for problem in report.of_level(letter)):
            _print_code(report, code)


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _print_code(report: Report, code: str) -> None:
    problems = [problem for problem in report.problems if problem.code == code]
    rule = problems[0].rule
    click.echo(f"  {code}  {rule.rule}")
    for problem in problems[:_PLACES_SHOWN]:
        value = f" = {problem.value}" if problem.value else ""
        detail = f"  ({problem.detail})" if problem.detail else ""
        click.echo(f"      {_plain(problem.path + value + detail)}")
    more = report.counts[code] - _PLACES_SHOWN
    if more > 0:
        click.echo(f"      and {more} more (--format json lists them)")
    click.echo(f"      CANN: {rule.cann}")
    click.echo(f"      fix:  {rule.fix}")


def _plain(text: str) -> str:
    """``text`` as the terminal's encoding can show it: a file's bytes may be anything."""
    shown = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


@rank_table.command()
@click.argument("file", type=_FILE)
@click.option("--by", type=click.Choice(["rank", "server"]), help="One line a rank (up to 64 ranks) or a server.")
@format_option
def show(file: Path, by: str | None, form: str) -> None:
    """Show a rank table for people: servers, ranks, devices, addresses, super pods.

    \b
    launcher rank-table show rank_tables/2x8.json
    """
    from launcher.cluster.rank_table.view import BREAKING, Entry, entries

    document, report = load_table(file)
    if document is None or BREAKING & set(report.counts):
        raise SpecError(
            f"{file} cannot be shown: {', '.join(report.verdict)}", hint=f"launcher rank-table check {file}"
        )
    ranks: list[Entry] = entries(document)
    if form == "json":
        click.echo(json.dumps([asdict(entry) for entry in ranks], indent=2))
        return
    servers = len({entry.server for entry in ranks})
    click.echo(f"{file}: version {report.version}, {servers} servers, {len(ranks)} ranks\n")
    if (by or ("rank" if len(ranks) <= _FEW_RANKS else "server")) == "rank":
        _show_ranks(ranks)
    else:
        _show_servers(ranks)
    if report.count("E"):
        click.echo(f"\n{_count(report.count('E'), 'error')}: launcher rank-table check {file}", err=True)


def _show_ranks(ranks: list[Any]) -> None:
    rows = [
        [
            str(e.rank_id),
            _plain(e.server),
            str(e.device_id),
            _plain(e.address),
            _plain(e.super_device_id),
            _plain(e.pod),
        ]
        for e in ranks
    ]
    header = ["rank", "server", "device", "address", "super device id", "super pod"]
    kept = [index for index in range(len(header)) if index < 4 or any(row[index] for row in rows)]
    print_table([header[index] for index in kept], [[row[index] for index in kept] for row in rows])


def _show_servers(ranks: list[Any]) -> None:
    servers: dict[str, list[Any]] = {}
    for entry in ranks:
        servers.setdefault(entry.server, []).append(entry)
    rows = []
    for server, own in servers.items():
        ids = spans(sorted(entry.device_id for entry in own))
        addresses = [entry.address for entry in own if entry.address]
        ends = " .. ".join(dict.fromkeys((addresses[0], addresses[-1]))) if addresses else ""
        rows.append([spans([entry.rank_id for entry in own]), _plain(server), ids, _plain(ends), _plain(own[0].pod)])
    header = ["ranks", "server", "devices", "addresses", "super pod"]
    width = 5 if any(row[4] for row in rows) else 4
    print_table(header[:width], [row[:width] for row in rows])


@rank_table.command()
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option(
    "--order", type=click.Choice(["server", "given"]), default="server", show_default=True,
    help="server: by super pod and server_id, numbers by value. given: as the files come.",
)  # fmt: skip
@_output_options
def merge(files: tuple[Path, ...], order: str, output: Path | None, force: bool) -> None:
    """Merge tables of single hosts into one, and number the ranks anew. One file alone is renumbered.

    \b
    launcher rank-table merge node0.json node1.json -o both.json
    """
    from launcher.cluster.rank_table.merge import merge_files

    _finish(
        merge_files(list(files), order=order), _required(output, "merged.json"), force=force, kind=None,
        order=f"servers {_ORDER_TEXT[order]}, devices by their old rank",
    )  # fmt: skip


@rank_table.command()
@click.argument("file", type=_FILE)
@_output_options
def convert(file: Path, output: Path | None, force: bool) -> None:
    """Convert a table of the old form (group_list) to version 1.0.

    \b
    launcher rank-table convert old.json -o new.json
    """
    from launcher.cluster.rank_table.legacy import convert_legacy
    from launcher.cluster.rank_table.lint import is_legacy

    document, report = load_table(file)
    if document is None or not isinstance(document, dict) or not is_legacy(document):
        raise SpecError(f"{file} is not of the old form: no group_list", hint=f"launcher rank-table check {file}")
    table = convert_legacy(document, report.name)
    _finish(table, _required(output, "new.json"), force=force, kind=None, order="ranks as they were")


def _required(output: Path | None, example: str) -> Path:
    if output is None:
        raise SpecError("no place to write to", hint=f"pass -o {example}, or -o - for the screen")
    return output
