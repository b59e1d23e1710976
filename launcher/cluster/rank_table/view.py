"""The ranks of a table that passed the linter, for display, for merging and for comparison with a host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.cluster.rank_table.lint import is_legacy, load_table
from launcher.cluster.rank_table.problems import Report, check_read
from launcher.cluster.rank_table.values import decimal
from launcher.errors import SpecError

# Errors after which the ranks of a table cannot be listed.
BREAKING = frozenset(
    {"E_READ", "E_JSON", "E_TYPE", "E_MISSING", "E_NOT_STRING", "E_NOT_INT", "E_NET_LAYER", "E_VERSION"}
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One rank of a table. ``address``: device_ip, or the first address of a 2.0 rank; "" without one."""

    rank_id: int
    server: str
    device_id: int
    address: str
    super_device_id: str = ""
    pod: str = ""


def entries_of(file: Path) -> tuple[list[Entry], Report]:
    """Return the ranks of ``file`` and the linter's report on it. Raises SpecError when they cannot be listed."""
    document, report = load_table(file)
    check_read(file, report)
    if document is None or BREAKING & set(report.counts):
        raise SpecError(
            f"{file} cannot be shown: {', '.join(report.verdict)}", hint=f"launcher rank-table check {file}"
        )
    return entries(document), report


def entries(document: dict[str, Any]) -> list[Entry]:
    """Return all ranks of a document whose shape is right (see BREAKING), by rank.

    A legacy document without rank ids is numbered as HCCL does.
    """
    if is_legacy(document):
        return _legacy_entries(document)
    found = _entries_v2(document) if document["version"] == "2.0" else _entries_v1(document)
    return sorted(found, key=lambda entry: entry.rank_id)


def pods_by_server(document: dict[str, Any]) -> dict[str, str]:
    """Return the super_pod_id of each server_id in a 1.2 document."""
    pods = document.get("super_pod_list", []) if document.get("version") == "1.2" else []
    return {member["server_id"]: pod["super_pod_id"] for pod in pods for member in pod["server_list"]}


def _entries_v1(document: dict[str, Any]) -> list[Entry]:
    pods = pods_by_server(document)
    return [
        Entry(
            rank_id=_number(device["rank_id"]),
            server=server["server_id"],
            device_id=_number(device["device_id"]),
            address=device.get("device_ip", ""),
            super_device_id=device.get("super_device_id", ""),
            pod=pods.get(server["server_id"], ""),
        )
        for server in document["server_list"]
        for device in server["device"]
    ]


def _number(text: str) -> int:
    """Return a number, -1 for any other value: a table with such errors is still worth showing."""
    number = decimal(text)
    return -1 if number is None else number


def _entries_v2(document: dict[str, Any]) -> list[Entry]:
    return [
        Entry(
            rank_id=rank["rank_id"],
            server=rank["level_list"][0]["net_instance_id"],
            device_id=rank["device_id"],
            address=rank["level_list"][0]["rank_addr_list"][0]["addr"],
        )
        for rank in document["rank_list"]
    ]


def _legacy_entries(document: dict[str, Any]) -> list[Entry]:
    from launcher.cluster.rank_table.legacy import convert_legacy

    table = convert_legacy(document, "the table")
    return [
        Entry(
            rank_id=_number(device["rank_id"]),
            server=server.fields["server_id"],
            device_id=_number(device["device_id"]),
            address=device.get("device_ip", ""),
        )
        for server in table.servers
        for device in server.devices
    ]
