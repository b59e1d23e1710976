"""The two old templates without ``version``, and their conversion to 1.0.

"lab" (template 1): group_list[].instance_list[] has one device and its rank_id each. "cloud" (template 2):
an instance is a server with many devices and no rank ids; HCCL gives them by server order, then device id.
Source: cann-hccl 9aeddc05b6f9, framework/common/src/topo/topoinfo_ranktableStandard.cc.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.cluster.rank_table.lint import is_legacy, load_table
from launcher.cluster.rank_table.problems import check_read, show_value
from launcher.cluster.rank_table.table import Table, TableServer
from launcher.cluster.rank_table.values import decimal
from launcher.errors import SpecError

# server_id in lab tables of one machine; any string will do for HCCL, but two machines must differ.
_Device = tuple[int | None, int, dict[str, str]]


def legacy_table(file: Path) -> Table:
    """Return the version 1.0 table of a file of the old form. Raises SpecError for any other file."""
    document, report = load_table(file)
    check_read(file, report)
    if not isinstance(document, dict) or not is_legacy(document):
        raise SpecError(f"{file} is not of the old form: no group_list", hint=f"launcher rank-table check {file}")
    return convert_legacy(document, report.name)


def convert_legacy(document: dict[str, Any], name: str) -> Table:
    """Return ``document`` (see lint.is_legacy) as a version 1.0 table. Raises SpecError with every unreadable value."""
    problems: list[str] = []
    servers: dict[str, list[_Device]] = {}
    for path, instance in _instances(document, problems):
        server_id = instance.get("server_id")
        if not isinstance(server_id, str) or not server_id:
            problems.append(f"{path}.server_id: a string is expected, got {show_value(server_id)}")
            continue
        servers.setdefault(server_id, []).extend(_devices(path, instance, problems))
    if not problems and not any(servers.values()):
        problems.append("$.group_list: no device in it")
    if problems:
        raise SpecError(f"{name} cannot be converted", problems=problems, hint="repair it, or make a new table")
    return _numbered(servers, name)


def _numbered(servers: dict[str, list[_Device]], name: str) -> Table:
    ranked = [device[0] is not None for devices in servers.values() for device in devices]
    if any(ranked) and not all(ranked):
        raise SpecError(f"{name} cannot be converted: some devices have a rank_id and some have none")
    rank_id = 0
    found = []
    for server_id, devices in servers.items():
        fields = []
        for own_rank, device_id, extra in sorted(devices, key=lambda device: device[1]):
            rank = own_rank if own_rank is not None else rank_id
            fields.append({"device_id": str(device_id), **extra, "rank_id": str(rank)})
            rank_id += 1
        found.append(TableServer(fields=_fields(server_id, single=len(servers) == 1), devices=tuple(fields)))
    return Table(version="1.0", servers=tuple(found))


def _fields(server_id: str, *, single: bool) -> dict[str, str]:
    return {"server_id": server_id, "pod_ip": "127.0.0.1" if single else server_id}


def _instances(document: dict[str, Any], problems: list[str]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for path, group in _objects("$.group_list", document.get("group_list"), problems):
        found += _objects(f"{path}.instance_list", group.get("instance_list"), problems)
    return found


def _devices(path: str, instance: dict[str, Any], problems: list[str]) -> list[_Device]:
    found: list[_Device] = []
    rank = instance.get("rank_id")
    rank_id = _decimal(f"{path}.rank_id", rank, problems) if rank is not None else None
    for place, device in _objects(f"{path}.devices", instance.get("devices"), problems):
        device_id = _decimal(f"{place}.device_id", device.get("device_id"), problems)
        ip = device.get("device_ip")
        if device_id is not None:
            found.append((rank_id, device_id, {"device_ip": ip} if isinstance(ip, str) and ip else {}))
    return found


def _objects(path: str, value: Any, problems: list[str]) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(value, list):
        problems.append(f"{path}: a list is expected, got {show_value(value)}")
        return []
    bad = [f"{path}[{index}]: an object is expected" for index, item in enumerate(value) if not isinstance(item, dict)]
    problems.extend(bad)
    return [(f"{path}[{index}]", item) for index, item in enumerate(value) if isinstance(item, dict)]


def _decimal(path: str, value: Any, problems: list[str]) -> int | None:
    number = decimal(value) if isinstance(value, str) else None
    if number is None:
        problems.append(f"{path}: a decimal string is expected, got {show_value(value)}")
    return number
