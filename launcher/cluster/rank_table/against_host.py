"""Comparison of a table with this host: its devices and addresses must be the same."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.cluster.addresses import packed_ip
from launcher.cluster.rank_table.lint import is_legacy, load_table
from launcher.cluster.rank_table.problems import Report
from launcher.cluster.rank_table.values import decimal

if TYPE_CHECKING:
    from launcher.cluster.discover.host import HostReport

_NAMES = ("server_id", "pod_ip", "host_ip", "container_ip")


def reports_of(files: Sequence[Path], *, against_host: bool = False) -> list[Report]:
    """Return the linter's report on each file, with what does not fit this host if ``against_host``."""
    host = _this_host() if against_host else None
    reports = []
    for path in files:
        document, report = load_table(path)
        if host is not None:
            compare_with_host(document, report, host)
        reports.append(report)
    return reports


def _this_host() -> HostReport:
    from launcher.cluster.discover.host import look_around

    return look_around()


def compare_with_host(document: Any, report: Report, host: HostReport, *, own: set[str] | None = None) -> None:
    """Add E_HOST_DEVICE, E_HOST_IP, W_HOST_UNKNOWN and W_HOST_HCCN findings to ``report``.

    ``own`` are the names and addresses of this host, by default those of its interfaces.
    """
    if not isinstance(document, dict) or is_legacy(document) or not isinstance(document.get("server_list"), list):
        return
    servers = [
        (f"$.server_list[{index}]", server)
        for index, server in enumerate(document["server_list"])
        if isinstance(server, dict) and isinstance(server.get("device"), list)
    ]
    mine = _mine(servers, own_names() if own is None else own)
    if mine is None:
        report.add("W_HOST_UNKNOWN", "$.server_list", detail="no server_id, pod_ip or host_ip of it is this host's")
        return
    path, server = mine
    if host.hccn.fault:
        report.add("W_HOST_HCCN", "$", detail=host.hccn.fault)
    for index, device in enumerate(server["device"]):
        if isinstance(device, dict):
            _device(report, f"{path}.device[{index}]", device, host)


def own_names() -> set[str]:
    """Return the host name and addresses of this host, without loopback."""
    import psutil

    found = {socket.gethostname()}
    for addresses in psutil.net_if_addrs().values():
        found.update(address.address.split("%")[0] for address in addresses)
    return {name for name in found if not _is_loopback(name)}


def _is_loopback(name: str) -> bool:
    return name in ("localhost", "::1") or name.startswith("127.")


def _mine(servers: list[tuple[str, dict[str, Any]]], own: set[str]) -> tuple[str, dict[str, Any]] | None:
    """Return the server that is this host; in a table of one server, that one."""
    if len(servers) == 1:
        return servers[0]
    return next(
        (item for item in servers if own & {item[1][key] for key in _NAMES if isinstance(item[1].get(key), str)}),
        None,
    )


def _device(report: Report, path: str, device: dict[str, Any], host: HostReport) -> None:
    device_id = decimal(device["device_id"]) if isinstance(device.get("device_id"), str) else None
    if device_id is None:
        return
    known = {card.device_id for card in host.usable}
    if device_id not in known:
        have = ", ".join(map(str, sorted(known))) or "none"
        report.add("E_HOST_DEVICE", f"{path}.device_id", device["device_id"], f"this host has {have}")
    actual = host.hccn.addresses.get(device_id)
    named = device.get("device_ip")
    if actual is None or not isinstance(named, str) or not named:
        return
    if packed_ip(actual) not in [packed_ip(part) for part in named.split(",")]:
        report.add("E_HOST_IP", f"{path}.device_ip", named, f"device {device_id} of this host has {actual}")
