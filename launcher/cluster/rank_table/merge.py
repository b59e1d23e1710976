"""Merging of several tables into one: nothing lost, nothing twice, ranks numbered anew in a stated order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.cluster.addresses import packed_ip
from launcher.cluster.rank_table.legacy import convert_legacy
from launcher.cluster.rank_table.lint import is_legacy, load_table
from launcher.cluster.rank_table.problems import check_read, show_value
from launcher.cluster.rank_table.table import Table, TablePod, TableServer
from launcher.cluster.rank_table.view import pods_by_server
from launcher.common.ranges import natural
from launcher.errors import SpecError

ORDERS = ("server", "given")
# Errors that merging itself repairs: whatever the ranks were, they are numbered anew.
_REPAIRED = {"E_RANKS", "E_SERVER_COUNT"}


def merge_files(paths: list[Path], *, order: str = "server") -> Table:
    """Return one table of all ``paths``, in the version of its parts.

    ``order`` "server" sorts by super pod and server_id, numbers by value; "given" keeps the order of the files and
    of their servers. Devices of a server stay in the order of their old ranks. Raises SpecError when a part has
    errors, versions differ, or a server or address occurs twice.
    """
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice:
        raise SpecError(f"{twice} is named twice", hint="name each table once")
    parts = [_load(path) for path in paths]
    versions = {version for version, _ in parts}
    if len(versions) > 1:
        listed = ", ".join(f"{path} is {version}" for path, (version, _) in zip(paths, parts, strict=True))
        raise SpecError(f"tables of different versions do not merge: {listed}", hint="make them again, all the same")
    version = versions.pop()
    documents = [document for _, document in parts]
    if version == "2.0":
        return _merge_v2(paths, documents)
    return _merge_v1(version, paths, documents, order)


def _load(path: Path) -> tuple[str, dict[str, Any]]:
    document, report = load_table(path)
    check_read(path, report)
    errors = [problem for problem in report.of_level("E") if problem.code not in _REPAIRED]
    if document is None or errors:
        problems = [
            f"{problem.code} {problem.path} {problem.value} {problem.detail}".rstrip() for problem in errors[:20]
        ]
        raise SpecError(f"{path} has errors", problems=problems, hint=f"launcher rank-table check {path}")
    if is_legacy(document):
        table = convert_legacy(document, str(path))
        servers = [{**server.fields, "device": list(server.devices)} for server in table.servers]
        return "1.0", {"version": "1.0", "server_list": servers}
    return document["version"], document


def _merge_v1(version: str, paths: list[Path], documents: list[dict[str, Any]], order: str) -> Table:
    _refuse_twice(paths, [_identities_v1(document) for document in documents])
    pods = {server: pod for document in documents for server, pod in pods_by_server(document).items()}
    servers = [server for document in documents for server in document["server_list"]]
    if order == "server":
        servers.sort(key=lambda server: (natural(pods.get(server["server_id"], "")), natural(server["server_id"])))
    rank_id = 0
    found = []
    for server in servers:
        devices = sorted(server["device"], key=_old_rank)
        numbered = tuple({**device, "rank_id": str(rank_id + index)} for index, device in enumerate(devices))
        found.append(TableServer(fields=_kept_fields(server, single=len(servers) == 1), devices=numbered))
        rank_id += len(devices)
    merged = _merged_pods(servers, pods, _pod_fields(paths, documents))
    return Table(version=version, servers=tuple(found), pods=merged, fields=_top_fields(paths, documents))


def _old_rank(device: dict[str, Any]) -> int:
    return int(device["rank_id"]) if str(device["rank_id"]).isdecimal() else 0


def _kept_fields(server: dict[str, Any], *, single: bool) -> dict[str, Any]:
    """Return the server's keys without its devices; the pod_ip for msrun is replaced if it held for one server only."""
    fields = {key: value for key, value in server.items() if key != "device"}
    if single:
        fields.setdefault("pod_ip", "127.0.0.1")
        return fields
    if fields.get("pod_ip", "127.0.0.1") == "127.0.0.1":
        fields.pop("pod_ip", None)
        address = server.get("host_ip") or server["server_id"]
        if packed_ip(address):
            fields["pod_ip"] = address
    return fields


# What a template writes itself.
_WRITTEN = {"status", "version", "server_count", "server_list", "super_pod_list", "rank_count", "rank_list"}


def _top_fields(paths: list[Path], documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the top-level keys of the parts that are not made anew. Raises SpecError when parts disagree."""
    found: dict[str, Any] = {}
    for path, document in zip(paths, documents, strict=True):
        _add_fields(found, {key: value for key, value in document.items() if key not in _WRITTEN}, f"{path}: $")
    return found


def _pod_fields(paths: list[Path], documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the pods' keys except their servers, by super_pod_id. Raises SpecError when parts disagree."""
    found: dict[str, dict[str, Any]] = {}
    for path, document in zip(paths, documents, strict=True):
        for pod in document.get("super_pod_list", ()):
            own = {key: value for key, value in pod.items() if key not in ("super_pod_id", "server_list")}
            _add_fields(found.setdefault(pod["super_pod_id"], {}), own, f"{path}: super pod {pod['super_pod_id']}")
    return found


def _add_fields(found: dict[str, Any], more: dict[str, Any], where: str) -> None:
    for key, value in more.items():
        if found.setdefault(key, value) != value:
            raise SpecError(
                f"{where}.{key} is {show_value(value)}, and {show_value(found[key])} in a table before",
                hint="make them equal; one table has one",
            )


def _merged_pods(
    servers: list[dict[str, Any]], pods: dict[str, str], fields: dict[str, dict[str, Any]]
) -> tuple[TablePod, ...]:
    members: dict[str, list[str]] = {}
    for server in servers:
        if server["server_id"] in pods:
            members.setdefault(pods[server["server_id"]], []).append(server["server_id"])
    return tuple(
        TablePod(super_pod_id=pod, server_ids=tuple(ids), fields=fields.get(pod, {})) for pod, ids in members.items()
    )


def _identities_v1(document: dict[str, Any]) -> list[str]:
    """Return the values that may occur only once in a merged table: server ids, device addresses, SDIDs in a pod."""
    pods = pods_by_server(document)
    found = []
    for server in document["server_list"]:
        found.append(f"server_id {server['server_id']}")
        for device in server["device"]:
            found += [f"device_ip {ip}" for ip in device.get("device_ip", "").split(",") if ip]
            pod = pods.get(server["server_id"])
            if pod is not None and "super_device_id" in device:
                found.append(f"super_device_id {device['super_device_id']} of super pod {pod}")
    return found


def _refuse_twice(paths: list[Path], identities: list[list[str]]) -> None:
    owner: dict[str, Path] = {}
    problems = []
    for path, names in zip(paths, identities, strict=True):
        problems += [f"{name} is in {owner[name]} and in {path}" for name in names if name in owner]
        owner.update(dict.fromkeys(names, path))
    if problems:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise SpecError("the tables do not merge: what may stand once stands twice", problems=shown)


def _merge_v2(paths: list[Path], documents: list[dict[str, Any]]) -> Table:
    _refuse_twice(paths, [[_identity_v2(rank) for rank in document["rank_list"]] for document in documents])
    ranks = [rank for document in documents for rank in sorted(document["rank_list"], key=lambda rank: rank["rank_id"])]
    numbered = tuple({**rank, "rank_id": index} for index, rank in enumerate(ranks))
    return Table(version="2.0", ranks=numbered, fields=_top_fields(paths, documents))


def _identity_v2(rank: dict[str, Any]) -> str:
    addresses = [address["addr"] for level in rank["level_list"] for address in level["rank_addr_list"]]
    return f"rank with address {', '.join(addresses)}"
