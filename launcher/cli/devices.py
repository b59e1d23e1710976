"""``launcher devices``."""

from __future__ import annotations

import json
from typing import Any

import click

from launcher.cli.options.common import format_option
from launcher.cli.output.tables import print_table
from launcher.cluster.discover import Card, HostReport, cpu_device_count, look_around
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
        click.echo(json.dumps(_as_json(report), indent=2))
        return
    _print_software(report)
    if not report.cards:
        click.echo(f"no Ascend card: {report.npu_smi_fault or 'none in /dev'}")
        click.echo(f"CPU: {cpu_device_count()} ranks")
        return
    header = ["device", "npu/chip", "logic", "kind", "name", "health", "MiB used", "address", "use", "processes"]
    print_table(header, [_row(card) for card in report.cards])
    _print_notes(report)


def _row(card: Card) -> list[str]:
    chip = card.chip
    return [
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
    ]


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
    for text in (report.npu_smi_fault, report.npu_smi_warning, report.hccn.fault):
        if text:
            click.echo(f"note: {text}")


def _as_json(report: HostReport) -> dict[str, Any]:
    software = report.software
    return {
        "host": report.name,
        "target": "Ascend" if report.cards else "CPU",
        "kind": report.kind,
        "cpu_ranks": None if report.cards else cpu_device_count(),
        "driver": software.driver,
        "firmware": software.firmware,
        "cann": software.cann,
        "notes": [text for text in (report.npu_smi_fault, report.npu_smi_warning, report.hccn.fault) if text],
        "devices": [_card_json(card) for card in report.cards],
    }


def _card_json(card: Card) -> dict[str, Any]:
    chip = card.chip
    kind = KINDS.get(card.kind or "")
    return {
        "device_id": card.device_id,
        "logic_id": card.logic_id,
        "npu_id": chip.npu_id if chip else None,
        "chip_id": chip.chip_id if chip else None,
        "kind": card.kind,
        "bfloat16": kind.bfloat16 if kind else None,
        "name": chip.name if chip else None,
        "health": chip.health if chip else None,
        "hbm_mib": chip.hbm_mib if chip else None,
        "hbm_used_mib": chip.hbm_used_mib if chip else None,
        "address": card.address,
        "usable": card.usable,
        "processes": [
            {"pid": process.pid, "name": process.name, "memory_mib": process.memory_mib} for process in card.processes
        ],
    }
