"""``launcher devices``."""

from __future__ import annotations

import click

from launcher.cli.options.common import format_option
from launcher.cli.output.tables import print_json, table
from launcher.cluster.discover import Card, HostReport, cpu_device_count, look_around
from launcher.cluster.discover.report_json import report_json
from launcher.cluster.model import KINDS


@click.command()
@format_option
def devices(form: str) -> None:
    """Show the Ascend cards of this host with kind, memory, health and processes, or its CPU if it has none.

    \b
    launcher devices
    launcher devices --format json
    """
    report = look_around()
    if form == "json":
        print_json(report_json(report))
    else:
        _print(report)


_HEADER = ("DEVICE", "NPU/CHIP", "LOGIC", "KIND", "NAME", "HEALTH", "MIB USED", "ADDRESS", "USE", "PROCESSES")


def _print(report: HostReport) -> None:
    _print_software(report)
    if not report.cards:
        click.echo(f"no Ascend card: {report.npu_smi_fault or 'none in /dev'}")
        click.echo(f"CPU: {cpu_device_count()} ranks")
        return
    click.echo(table(_HEADER, map(_row, report.cards)))
    _print_notes(report)


def _row(card: Card) -> tuple[str, ...]:
    chip = card.chip
    return (
        str(card.device_id),
        f"{chip.npu_id}/{chip.chip_id}" if chip else "",
        "" if card.logic_id is None else str(card.logic_id),
        card.kind or "?",
        chip.name if chip else "",
        chip.health if chip else "?",
        f"{chip.hbm_used_mib} of {chip.hbm_mib}" if chip and chip.hbm_mib else "",
        card.address or "",
        "yes" if card.usable else "no",
        ", ".join(f"{process.pid} {process.name}" for process in card.processes),
    )


def _print_software(report: HostReport) -> None:
    software = report.software
    known = [
        f"{name} {version}"
        for name, version in (("driver", software.driver), ("firmware", software.firmware), ("CANN", software.cann))
        if version
    ]
    click.echo(f"{report.name}: {', '.join(known) or 'no Ascend software'}")


def _print_notes(report: HostReport) -> None:
    kind = KINDS.get(report.kind or "")
    if kind:
        floats = "with" if kind.bfloat16 else "without"
        click.echo(f"\nkind {kind.name}: {kind.products}; rank table {kind.table_version}; {floats} bfloat16")
    if any(card.kind == "910" and card.chip and card.chip.name.upper().endswith("910B") for card in report.cards):
        click.echo('"910B" with 32 GB is a first-generation 910, not an A2 (those are 910B1 to 910B4).')
    for note in report.notes:
        click.echo(f"note: {note}")
