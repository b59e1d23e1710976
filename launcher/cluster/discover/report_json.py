"""The report of discovery as JSON, for programs."""

from __future__ import annotations

from typing import Any

from launcher.cluster.discover import Card, HostReport, cpu_device_count
from launcher.cluster.model import KINDS


def report_json(report: HostReport) -> dict[str, Any]:
    """Return the host, its software, and its cards or the number of ranks for its CPU."""
    software = report.software
    return {
        "host": report.name,
        "target": "Ascend" if report.cards else "CPU",
        "kind": report.kind,
        "cpu_ranks": None if report.cards else cpu_device_count(),
        "driver": software.driver,
        "firmware": software.firmware,
        "cann": software.cann,
        "notes": list(report.notes),
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
