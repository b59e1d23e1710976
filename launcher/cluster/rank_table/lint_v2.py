"""The rules of version 2.0, for the 950: those of HCCL's own parser, also where the guide differs from it.

hicann/hcomm, rank_table_info.cc, new_rank_info.cc, rank_level_info.cc, address_info.cc, control_plane.cc (2026-09); the
guide is HCCL's rank_table_config_a5.md (hicann/hccl 09300b70df9a).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from launcher.cluster.addresses import packed_ip
from launcher.cluster.rank_table.problems import Report
from launcher.cluster.rank_table.values import check_ranks, integer, objects, string

_MOST_RANKS = 65536
_BACKUP_ID = 64  # local_id of a device that stands in for another one of its server
_LARGEST_DEVICE_ID = 512
_MOST_LEVELS = 8
_MOST_ADDRESSES = 24
_MOST_PORTS = 16
_LONGEST_PORT = 32
_MOST_BACKUPS = 16
_LONGEST_NAME = 1024
_NET_TYPES = ("TOPO_FILE_DESC", "CLOS", "1DMESH", "2DMESH", "A3_SERVER", "A2_AX_SERVER")
_ADDRESS_TYPES = ("EID", "IPV4", "IPV6")
_EID = re.compile(r"[0-9a-fA-F]{32}")


@dataclass(kw_only=True)
class _Seen:
    """Values compared between ranks: addresses, and the number of addresses per network instance, with their paths."""

    addresses: dict[str, str] = field(default_factory=dict)
    sizes: dict[tuple[Any, str], tuple[int, str]] = field(default_factory=dict)


def lint_v2(document: dict[str, Any], report: Report) -> None:
    """Add every finding about a table with ``rank_list`` to ``report``."""
    # A note only: HCCL's parser of 2.0 does not read status.
    if document.get("status", "completed") != "completed":
        report.add("N_STATUS", "$.status", document["status"])
    if document.get("detour", "") not in ("", "true", "false"):
        report.add("E_DETOUR", "$.detour", document["detour"])
    ranks = objects(report, document, "rank_list", "$")
    report.ranks = len(ranks)
    _rank_count(document, report)
    ids = [(f"{path}.rank_id", integer(report, rank, "rank_id", path)) for path, rank in ranks]
    if ranks:
        check_ranks(report, ids, "$.rank_list")
    seen = _Seen()
    for path, rank in ranks:
        _rank(report, path, rank, seen)
    _backups(report, ranks)


def _rank_count(document: dict[str, Any], report: Report) -> None:
    count = integer(report, document, "rank_count", "$")
    ranks = document.get("rank_list")
    listed = len(ranks) if isinstance(ranks, list) else 0
    if count is not None and (count != listed or not 1 <= count <= _MOST_RANKS):
        report.add("E_RANK_COUNT", "$.rank_count", count, f"rank_list has {listed}")


def _rank(report: Report, path: str, rank: dict[str, Any], seen: _Seen) -> None:
    levels = objects(report, rank, "level_list", path)
    # The form of earlier test files ("level", "fabric_type") has no device_id either: said once, by its net_layer.
    draft = any("net_layer" not in level for _, level in levels)
    _in_range(report, rank, "local_id", path, "E_LOCAL_ID", _BACKUP_ID, required=True)
    if rank.get("local_id") == _BACKUP_ID:
        _in_range(report, rank, "replaced_local_id", path, "E_LOCAL_ID", _BACKUP_ID - 1, required=True)
    _in_range(report, rank, "device_id", path, "E_DEVICE_ID", _LARGEST_DEVICE_ID, required=not draft)
    for key in ("device_port", "host_port"):
        _in_range(report, rank, key, path, "E_PORT", 65535, required=False, least=1)
    if len(levels) > _MOST_LEVELS:
        report.add("E_NET_LAYER", f"{path}.level_list", rank["level_list"], f"{len(levels)} levels")
    _layers(report, levels)
    for place, level in levels:
        _level(report, place, level, seen)
    _control_plane(report, path, rank)


def _backups(report: Report, ranks: list[tuple[str, dict[str, Any]]]) -> None:
    """Check that at most one rank has the backup's local_id, and that the one it stands in for is absent."""
    replaced = [(path, rank.get("replaced_local_id")) for path, rank in ranks if rank.get("local_id") == _BACKUP_ID]
    for path, _ in replaced[1:]:
        report.add("E_LOCAL_ID", f"{path}.local_id", _BACKUP_ID, f"a second backup; the first is {replaced[0][0]}")
    for path, local_id in replaced[:1]:
        at = next((place for place, rank in ranks if rank.get("local_id") == local_id), None)
        if at is not None and at != path:
            report.add("E_LOCAL_ID", f"{path}.replaced_local_id", local_id, f"that device is in the table, at {at}")


def _in_range(
    report: Report,
    rank: dict[str, Any],
    key: str,
    path: str,
    code: str,
    most: int,
    *,
    required: bool,
    least: int = 0,
) -> None:
    number = integer(report, rank, key, path, required=required)
    if number is not None and not least <= number <= most:
        report.add(code, f"{path}.{key}", number)


def _layers(report: Report, levels: list[tuple[str, dict[str, Any]]]) -> None:
    last = -1
    for path, level in levels:
        layer = level.get("net_layer", ...)
        # A bool is an int to Python; HCCL's parser takes true for no number.
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < _MOST_LEVELS:
            detail = "no net_layer; the key is `level` in an earlier form" if layer is ... else ""
            report.add("E_NET_LAYER", f"{path}.net_layer", layer, detail)
        elif layer <= last:
            report.add("E_NET_LAYER", f"{path}.net_layer", layer, f"after layer {last}")
        else:
            last = layer


def _level(report: Report, path: str, level: dict[str, Any], seen: _Seen) -> None:
    # Other rules of such a level would only repeat that the form is an old one.
    draft = "net_layer" not in level
    net_type = level.get("net_type", ...)
    if net_type not in (..., *_NET_TYPES) or (draft and net_type is ...):
        report.add("E_NET_TYPE", f"{path}.net_type", net_type, "no net_type" if net_type is ... else "")
    if draft:
        return
    instance = string(report, level, "net_instance_id", path)
    if instance is not None and not 1 <= len(instance) <= _LONGEST_NAME:
        report.add("E_SERVER_ID", f"{path}.net_instance_id", instance, f"{len(instance)} characters")
    string(report, level, "net_attr", path, required=False)
    addresses = objects(report, level, "rank_addr_list", path, may_be_empty=True)
    if len(addresses) > _MOST_ADDRESSES:
        report.add("E_ADDR", f"{path}.rank_addr_list", level["rank_addr_list"], f"{len(addresses)} addresses")
    if instance is not None and isinstance(level["net_layer"], int):
        count, first = seen.sizes.setdefault((level["net_layer"], instance), (len(addresses), path))
        if count != len(addresses):
            detail = f"{len(addresses)} addresses; {first}, of the same instance, has {count}"
            report.add("E_ADDR", f"{path}.rank_addr_list", level.get("rank_addr_list", ...), detail)
    ports: dict[str, str] = {}
    # Ports must differ within a level, so each level begins with none.
    for place, address in addresses:
        _address(report, place, address, seen.addresses, ports)


def _address(report: Report, path: str, address: dict[str, Any], seen: dict[str, str], taken: dict[str, str]) -> None:
    kind, text = _kind_and_text(report, path, address)
    _ports(report, path, address, taken)
    plane = string(report, address, "plane_id", path, required=False)
    if plane is not None and len(plane) > _LONGEST_NAME:
        report.add("E_ADDR", f"{path}.plane_id", plane, f"{len(plane)} characters")
    if "backup_addr" in address:
        _backup_addresses(report, path, address["backup_addr"], kind)
    if text in seen:
        report.add("N_DUP_ADDR", f"{path}.addr", text, f"first at {seen[text]}.addr")
    elif text is not None:
        seen[text] = path


def _kind_and_text(report: Report, path: str, holder: dict[str, Any]) -> tuple[str | None, str | None]:
    kind, text = string(report, holder, "addr_type", path), string(report, holder, "addr", path)
    if kind is not None and kind not in _ADDRESS_TYPES:
        report.add("E_ADDR", f"{path}.addr_type", kind)
    elif kind is not None and text is not None and not _is_address(kind, text):
        report.add("E_ADDR", f"{path}.addr", text, f"not an {kind} address")
    return kind, text


def _ports(report: Report, path: str, address: dict[str, Any], taken: dict[str, str]) -> None:
    """Check the ports of an address. ``taken``: those of the level's other addresses, with their paths."""
    ports = address.get("ports", ...)
    expected = f'a list of 1 to {_MOST_PORTS} strings such as "0/4"'
    if not isinstance(ports, list) or not 1 <= len(ports) <= _MOST_PORTS:
        report.add("E_ADDR", f"{path}.ports", ports, "no ports" if ports is ... else expected)
        return
    if not all(isinstance(port, str) and 1 <= len(port) <= _LONGEST_PORT for port in ports):
        report.add("E_ADDR", f"{path}.ports", ports, expected)
        return
    # Without repeats: a port that one address lists twice is no port of another one.
    for port in dict.fromkeys(ports):
        if port in taken:
            report.add("E_ADDR", f"{path}.ports", port, f"the port of {taken[port]} too")
        taken.setdefault(port, path)


def _backup_addresses(report: Report, path: str, backups: Any, kind: str | None) -> None:
    here = f"{path}.backup_addr"
    if kind == "EID" and backups:
        report.add("E_ADDR", here, backups, "an EID has no backup address")
    elif not isinstance(backups, list) or len(backups) > _MOST_BACKUPS:
        report.add("E_ADDR", here, backups, f"a list of at most {_MOST_BACKUPS} addresses")
    elif kind in _ADDRESS_TYPES and not all(isinstance(item, str) and _is_address(kind, item) for item in backups):
        report.add("E_ADDR", here, backups, f"not all are {kind} addresses")


def _control_plane(report: Report, path: str, rank: dict[str, Any]) -> None:
    if "control_plane" not in rank:
        return
    plane, here = rank["control_plane"], f"{path}.control_plane"
    if not isinstance(plane, dict):
        report.add("E_TYPE", here, plane, "an object is expected")
        return
    _kind_and_text(report, here, plane)
    _in_range(report, plane, "listen_port", here, "E_PORT", 65535, required=True, least=1)


def _is_address(kind: str, text: str) -> bool:
    if kind == "EID":
        return _EID.fullmatch(text) is not None
    packed = packed_ip(text)
    return packed is not None and len(packed) == (4 if kind == "IPV4" else 16)
