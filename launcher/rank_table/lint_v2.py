"""The rules of version 2.0, for the 950 (HCCL user guide, rank_table_config_a5.md, hicann/hccl 09300b70df9a)."""

from __future__ import annotations

import re
from typing import Any

from launcher.rank_table.problems import Report
from launcher.rank_table.values import check_ranks, integer, objects, packed_ip, string

_MOST_RANKS = 65536
_LARGEST_ID = 64
_MOST_LEVELS = 8
_MOST_ADDRESSES = 24
_MOST_PORTS = 16
_LONGEST_INSTANCE = 1024
_EID = re.compile(r"[0-9a-fA-F]{32}")


def lint_v2(document: dict[str, Any], report: Report) -> None:
    """Add every finding about a table with ``rank_list`` to ``report``."""
    status = document.get("status", "completed")
    if status != "completed":
        report.add("E_STATUS", "$.status", status)
    ranks = objects(report, document, "rank_list", "$")
    report.ranks = len(ranks)
    _rank_count(document, report)
    ids = [(f"{path}.rank_id", integer(report, rank, "rank_id", path)) for path, rank in ranks]
    if ranks:
        check_ranks(report, ids, "$.rank_list")
    seen: dict[str, str] = {}
    for path, rank in ranks:
        _rank(report, path, rank, seen)


def _rank_count(document: dict[str, Any], report: Report) -> None:
    count = integer(report, document, "rank_count", "$")
    ranks = document.get("rank_list")
    listed = len(ranks) if isinstance(ranks, list) else 0
    if count is not None and (count != listed or not 1 <= count <= _MOST_RANKS):
        report.add("E_RANK_COUNT", "$.rank_count", count, f"rank_list has {listed}")


def _rank(report: Report, path: str, rank: dict[str, Any], seen: dict[str, str]) -> None:
    levels = objects(report, rank, "level_list", path)
    # The form of earlier test files ("level", "fabric_type") has no device_id either: said once, by its net_layer.
    draft = any("net_layer" not in level for _, level in levels)
    _in_range(report, rank, "local_id", path, "E_LOCAL_ID", _LARGEST_ID, required=True)
    _in_range(report, rank, "device_id", path, "E_DEVICE_ID", _LARGEST_ID, required=not draft)
    for key in ("device_port", "host_port"):
        _in_range(report, rank, key, path, "E_PORT", 65535, required=False, least=1)
    if len(levels) > _MOST_LEVELS:
        report.add("E_NET_LAYER", f"{path}.level_list", rank["level_list"], f"{len(levels)} levels")
    _layers(report, levels)
    for place, level in levels:
        _level(report, place, level, seen)


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
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < _MOST_LEVELS:
            detail = "no net_layer; the key is `level` in an earlier form" if layer is ... else ""
            report.add("E_NET_LAYER", f"{path}.net_layer", layer, detail)
        elif layer <= last:
            report.add("E_NET_LAYER", f"{path}.net_layer", layer, f"after layer {last}")
        else:
            last = layer


def _level(report: Report, path: str, level: dict[str, Any], seen: dict[str, str]) -> None:
    net_type = level.get("net_type", ...)
    if net_type not in ("TOPO_FILE_DESC", "CLOS"):
        report.add("E_NET_TYPE", f"{path}.net_type", net_type, "no net_type" if net_type is ... else "")
    if "net_layer" not in level:
        return
    instance = string(report, level, "net_instance_id", path)
    if instance is not None and len(instance) > _LONGEST_INSTANCE:
        report.add("E_SERVER_ID", f"{path}.net_instance_id", instance, f"{len(instance)} characters")
    addresses = objects(report, level, "rank_addr_list", path)
    if len(addresses) > _MOST_ADDRESSES:
        report.add("E_ADDR", f"{path}.rank_addr_list", level["rank_addr_list"], f"{len(addresses)} addresses")
    for place, address in addresses:
        _address(report, place, address, seen)


def _address(report: Report, path: str, address: dict[str, Any], seen: dict[str, str]) -> None:
    kind = string(report, address, "addr_type", path)
    text = string(report, address, "addr", path)
    if kind is not None and kind not in ("EID", "IPV4", "IPV6"):
        report.add("E_ADDR", f"{path}.addr_type", kind)
    elif kind is not None and text is not None and not _is_address(kind, text):
        report.add("E_ADDR", f"{path}.addr", text, f"not an {kind} address")
    ports = address.get("ports", [])
    if not isinstance(ports, list) or len(ports) > _MOST_PORTS or not all(isinstance(port, str) for port in ports):
        report.add("E_ADDR", f"{path}.ports", ports, f'a list of at most {_MOST_PORTS} strings such as "0/4"')
    if text in seen:
        report.add("N_DUP_ADDR", f"{path}.addr", text, f"first at {seen[text]}.addr")
    elif text is not None:
        seen[text] = path


def _is_address(kind: str, text: str) -> bool:
    if kind == "EID":
        return _EID.fullmatch(text) is not None
    packed = packed_ip(text)
    return packed is not None and len(packed) == (4 if kind == "IPV4" else 16)
