"""``launcher rank-table``: make, check, show, merge, convert."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import click

from launcher.cli.options.common import AnyCase, format_option
from launcher.cli.options.group import option, takes
from launcher.cli.output import rank_tables as lines
from launcher.cli.output.tables import print_json
from launcher.cluster.model import KINDS, Cluster
from launcher.cluster.rank_table.table import Table, table_of
from launcher.errors import SpecError

_FILE = click.Path(path_type=Path)


@click.group(name="rank-table")
def rank_table() -> None:
    """Make, check, show and merge HCCL rank tables (versions 1.0, 1.2, 2.0).

    \b
    launcher rank-table make --inventory rank_tables/2x8.yaml
    launcher rank-table check hccl.json
    """


@dataclass(frozen=True, kw_only=True)
class Target:
    """The file to write."""

    output: Path | None = option("-o", "--output", type=_FILE, help="File to write; - for stdout.")
    force: bool = option("--force", is_flag=True, help="Replace OUTPUT if its contents differ.")

    def place(self, example: str) -> Path:
        """Return the file. Raises SpecError, with ``example`` in its hint, when none was named."""
        if self.output is None:
            raise SpecError("no place to write to", hint=f"pass -o {example}, or -o - for stdout")
        return self.output

    def finish(self, table: Table, place: Path, *, kind: str | None = None, order: str) -> None:
        """Check the table, write it, and say what it holds."""
        from launcher.cluster.rank_table.make import checked_text, write_table

        to_screen = str(place) == "-"
        text, report = checked_text(table, "rank_table.json" if to_screen else place.name, kind=kind)
        if to_screen:
            click.echo(text, nl=False)
            return
        verb = "wrote" if write_table(place, text, force=self.force) else "unchanged:"
        servers = f"{lines.count(len(table.servers), 'server')}, " if table.servers else ""
        click.echo(f"{verb} {place}: version {table.version}, {servers}{table.num_ranks} ranks; {order}")
        for line in lines.first_of_each(report.of_level("W") + report.of_level("N")):
            click.echo(line, err=True)


@dataclass(frozen=True, kw_only=True)
class Made:
    """Which hosts and devices the table is made of, and its form."""

    inventory: Path | None = option(
        "-i", "--inventory", type=_FILE, help="Hosts and devices; without it, the cards of this host."
    )
    hosts: str | None = option("--hosts", help='Some of the hosts, e.g. "node[0-3]" or "0-3" by position.')
    devices: str | None = option(
        "--devices", help='Some of the devices, by physical id, in the order of their ranks, e.g. "4-7".'
    )
    order: str = option(
        "--order",
        type=click.Choice(["listed", "name", "address"]),
        default="listed",
        show_default=True,
        help="Order of the hosts, and so of the ranks; numbers go by value (node9 before node10).",
    )
    version: str | None = option(
        "--version",
        type=click.Choice(["1.0", "1.2", "2.0"]),
        help="Version of the table; by default the one that the devices need.",
    )
    address: str | None = option("--address", help="Address of this host, when there is no inventory.")
    pod_ip: bool = option(
        "--pod-ip/--no-pod-ip", default=True, show_default=True, help="Add pod_ip, which msrun requires."
    )

    def cluster(self) -> Cluster:
        """Return the hosts and devices that are meant."""
        from launcher.cluster.rank_table.select import select, whole_cluster

        whole = whole_cluster(self.inventory, self.address)
        return select(whole, hosts=self.hosts, devices=self.devices, order=self.order)


@rank_table.command()
@takes(Made, "made")
@takes(Target, "target")
def make(made: Made, target: Target) -> None:
    """Make a rank table from an inventory, or from the cards of this host.

    \b
    launcher rank-table make -i rank_tables/2x8.yaml
    launcher rank-table make --devices 4-7 -o four.json
    """
    cluster = made.cluster()
    table = table_of(cluster, version=made.version, pod_ip=made.pod_ip)
    if made.version is None:
        _say_why_1_0(cluster, table)
    name = made.inventory.stem if made.inventory else cluster.hosts[0].name
    place = target.output or Path("rank_tables") / f"{name}.json"
    target.finish(table, place, kind=cluster.kind, order=f"hosts {_ORDER_TEXT[made.order]}")


def _say_why_1_0(cluster: Cluster, table: Table) -> None:
    if cluster.kind == "A3" and table.version == "1.0":
        click.echo("note: no super pod is known, so this is a 1.0 table (HCCL's AI server mode of A3)", err=True)
    if cluster.kind is None:
        click.echo(
            "note: the kind of the cards is not known, so this is a 1.0 table; --version names another", err=True
        )


_ORDER_TEXT = {
    "listed": "as listed",
    "name": "sorted by name",
    "address": "sorted by address",
    "server": "sorted by super pod and server_id",
    "given": "as given",
}


@rank_table.command()
@click.argument("files", nargs=-1, required=True, type=_FILE)
@format_option
@click.option(
    "--kind",
    type=AnyCase(list(KINDS)),
    help="Check for this kind of chip; some rules hold for 910 only.",
)
@click.option("--against-host", is_flag=True, help="Compare with the cards and hccn.conf of this host too.")
@click.pass_context
def check(ctx: click.Context, files: tuple[Path, ...], form: str, kind: str | None, against_host: bool) -> None:
    """Find everything that is wrong with rank tables; exit code 1 if anything is an error.

    \b
    launcher rank-table check hccl.json
    launcher rank-table check --format json --against-host *.json
    """
    from launcher.cluster.rank_table.against_host import reports_of

    reports = [report.for_kind(kind) for report in reports_of(files, against_host=against_host)]
    if form == "json":
        print_json({"files": [report.to_dict() for report in reports]})
    else:
        for line in (line for report in reports for line in lines.report_lines(report)):
            click.echo(line)
    ctx.exit(1 if any(report.count("E") for report in reports) else 0)


@rank_table.command()
@click.argument("file", type=_FILE)
@click.option(
    "--by", type=click.Choice(["rank", "server"]), help="One line per rank (default up to 64 ranks) or per server."
)
@format_option
def show(file: Path, by: str | None, form: str) -> None:
    """Show a rank table for people: servers, ranks, devices, addresses, super pods.

    \b
    launcher rank-table show rank_tables/2x8.json
    """
    from launcher.cluster.rank_table.view import entries_of

    ranks, report = entries_of(file)
    if form == "json":
        print_json([asdict(entry) for entry in ranks])
        return
    servers = len({entry.server for entry in ranks})
    click.echo(f"{file}: version {report.version}, {servers} servers, {len(ranks)} ranks\n")
    click.echo(lines.ranks_text(ranks, by))
    if report.count("E"):
        click.echo(f"\n{lines.count(report.count('E'), 'error')}: launcher rank-table check {file}", err=True)


@rank_table.command()
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option(
    "--order", type=click.Choice(["server", "given"]), default="server", show_default=True,
    help="server: by super pod and server_id, numbers by value. given: as the files come.",
)  # fmt: skip
@takes(Target, "target")
def merge(files: tuple[Path, ...], order: str, target: Target) -> None:
    """Merge tables of single hosts into one, and number the ranks anew. One file alone is renumbered.

    \b
    launcher rank-table merge node0.json node1.json -o both.json
    """
    from launcher.cluster.rank_table.merge import merge_files

    table = merge_files(list(files), order=order)
    target.finish(table, target.place("merged.json"), order=f"servers {_ORDER_TEXT[order]}, devices by their old rank")


@rank_table.command()
@click.argument("file", type=_FILE)
@takes(Target, "target")
def convert(file: Path, target: Target) -> None:
    """Convert a table of the old form (group_list) to version 1.0.

    \b
    launcher rank-table convert old.json -o new.json
    """
    from launcher.cluster.rank_table.legacy import legacy_table

    target.finish(legacy_table(file), target.place("new.json"), order="ranks as they were")
