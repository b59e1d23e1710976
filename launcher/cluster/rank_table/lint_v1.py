"""The rules of versions 1.0 and 1.2 (HCCL's "Concise" parser and the guides for 910, A2, A3 and 300I Duo)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

from launcher.cluster.addresses import packed_ip
from launcher.cluster.rank_table.problems import Report
from launcher.cluster.rank_table.values import check_ranks, decimal, objects, string
from launcher.cluster.sdid import SDID_MAX, sdid_fits

_LONGEST_ID = 64
_LARGEST_DEVICE_ID = 15
_USUAL = frozenset(("device_id", "device_ip", "rank_id"))
_PORTS = ("device_port", "host_port", "backup_device_port", "device_vnic_port")


class Row(NamedTuple):
    """One device of a table; unreadable values are None. ``ips`` are packed addresses."""

    path: str
    fields: dict[str, Any]
    server: int
    device_id: int | None
    rank_id: int | None
    ips: tuple[bytes, ...]
    sdid: int | None


class Server(NamedTuple):
    path: str
    server_id: str | None
    rows: list[Row]
    fields: dict[str, Any]


def lint_v1(document: dict[str, Any], report: Report) -> None:
    """Add every finding about a table with ``server_list`` to ``report``."""
    _status(document, report)
    servers = [_server(report, path, index, item) for index, (path, item) in _enumerated(report, document)]
    report.servers = len(servers)
    rows = [row for server in servers for row in server.rows]
    report.ranks = len(rows)
    _server_count(document, report, len(servers))
    _unique(report, "E_DUP_SERVER", [(f"{server.path}.server_id", server.server_id) for server in servers])
    # Without servers, E_MISSING says it already.
    if servers:
        check_ranks(report, [(f"{row.path}.rank_id", row.rank_id) for row in rows], "$.server_list")
    _shape(report, servers)
    pods = _pods(document, report, servers)
    _addresses(report, rows, several=_need_ips(document, servers, pods))
    _notes(document, report, servers)


def _enumerated(report: Report, document: dict[str, Any]) -> Any:
    return enumerate(objects(report, document, "server_list", "$"))


def _status(document: dict[str, Any], report: Report) -> None:
    status = string(report, document, "status", "$")
    if status is not None and status != "completed":
        report.add("E_STATUS", "$.status", status)


def _server_count(document: dict[str, Any], report: Report, servers: int) -> None:
    count = string(report, document, "server_count", "$", required=False)
    if "server_count" not in document:
        report.add("N_SERVER_COUNT", "$.server_count")
    if count is not None and decimal(count) != servers:
        report.add("E_SERVER_COUNT", "$.server_count", count, f"server_list has {servers}")


def _server(report: Report, path: str, index: int, fields: dict[str, Any]) -> Server:
    server_id = string(report, fields, "server_id", path)
    if server_id is not None and not 1 <= len(server_id) <= _LONGEST_ID:
        report.add("E_SERVER_ID", f"{path}.server_id", server_id, f"{len(server_id)} characters")
    host_ip = string(report, fields, "host_ip", path, required=False)
    if host_ip and packed_ip(host_ip) is None:
        report.add("E_BAD_IP", f"{path}.host_ip", host_ip)
    rows = [_row(report, place, index, device) for place, device in objects(report, fields, "device", path)]
    _unique(report, "E_DUP_DEVICE", [(f"{row.path}.device_id", row.device_id) for row in rows])
    return Server(path, server_id, rows, fields)


def _row(report: Report, path: str, server: int, device: dict[str, Any]) -> Row:
    device_id = _number(report, device, "device_id", path, "E_DEVICE_ID", _LARGEST_DEVICE_ID)
    rank_id = _number(report, device, "rank_id", path, "E_RANKS", None)
    sdid = _number(report, device, "super_device_id", path, "E_SDID", SDID_MAX, required=False)
    ips = _ips(report, device, path)
    # Tables have up to 65,536 devices, and hardly one has another key: the usual case stays fast.
    if not _USUAL.issuperset(device):
        _optional(report, device, path)
    return Row(path, device, server, device_id, rank_id, ips, sdid)


def _number(
    report: Report,
    device: dict[str, Any],
    key: str,
    path: str,
    code: str,
    largest: int | None,
    *,
    required: bool = True,
) -> int | None:
    text = string(report, device, key, path, required=required)
    if text is None:
        return None
    number = decimal(text)
    if number is None:
        report.add(code, f"{path}.{key}", text, "empty" if not text else "not a decimal number")
    elif largest is not None and number > largest:
        report.add(code, f"{path}.{key}", text, f"larger than {largest}")
    return number


def _ips(report: Report, device: dict[str, Any], path: str) -> tuple[bytes, ...]:
    text = string(report, device, "device_ip", path, required=False)
    if not text:
        return ()
    packed = [packed_ip(part) for part in text.split(",")]
    if None in packed:
        report.add("E_BAD_IP", f"{path}.device_ip", text)
    return tuple(address for address in packed if address is not None)


def _optional(report: Report, device: dict[str, Any], path: str) -> None:
    for key in _PORTS:
        text = string(report, device, key, path, required=False)
        if text is not None and not 1 <= (decimal(text) or 0) <= 65535:
            report.add("E_PORT", f"{path}.{key}", text)
    backup = string(report, device, "backup_device_ip", path, required=False)
    if backup and None in map(packed_ip, backup.split(",")):
        report.add("E_BAD_IP", f"{path}.backup_device_ip", backup)


def _unique(report: Report, code: str, values: list[tuple[str, Any]]) -> None:
    first: dict[Any, str] = {}
    for path, value in values:
        if value in first:
            report.add(code, path, value, f"first at {first[value]}")
        elif value is not None:
            first[value] = path


def _shape(report: Report, servers: list[Server]) -> None:
    sizes = Counter(len(server.rows) for server in servers)
    if len(sizes) > 1:
        # The most frequent size is probably the intended one, so the other servers are named.
        usual = sizes.most_common(1)[0][0]
        for server in servers:
            if len(server.rows) != usual:
                report.add("W_UNEVEN", f"{server.path}.device", server.fields.get("device"), f"others have {usual}")
    # HCCL takes ranks in any order, but its guide asks for those of one server to follow each other.
    ranked = sorted((row for server in servers for row in server.rows if row.rank_id is not None), key=_by_rank)
    runs = Counter(server for server, _ in groupby(ranked, key=lambda row: row.server))
    for server_index, count in runs.items():
        if count > 1:
            report.add("W_INTERLEAVED", servers[server_index].path, detail=f"its ranks lie in {count} separate runs")


def _by_rank(row: Row) -> int:
    return -1 if row.rank_id is None else row.rank_id


# ---------------------------------------------------------------------------------------------- addresses


def _need_ips(document: dict[str, Any], servers: list[Server], pods: int) -> bool:
    """Return True if the table needs device_ip: between servers, except inside an A3 super pod, which uses HCCS."""
    if document.get("version") == "1.2" and pods:
        return pods > 1
    return len(servers) > 1


def _addresses(report: Report, rows: list[Row], *, several: bool) -> None:
    for row in rows:
        if not row.ips:
            _no_ip(report, row, several=several)
    with_ips = [row for row in rows if row.ips]
    _repeated_ips(report, with_ips)
    if several and with_ips:
        # Only the first odd one is noted: in a mixed table that would be half of all addresses.
        family = len(with_ips[0].ips[0])
        odd = (row for row in with_ips if any(len(packed) != family for packed in row.ips))
        _note_first(report, "E_IP_FAMILY", odd, "the table begins with the other family")
    counts = Counter(len(row.ips) for row in with_ips)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = (row for row in with_ips if len(row.ips) != usual)
        _note_first(report, "E_IP_COUNT", odd, f"others have {usual}")


def _note_first(report: Report, code: str, rows: Iterator[Row], detail: str) -> None:
    row = next(rows, None)
    if row is not None:
        report.add(code, f"{row.path}.device_ip", row.fields["device_ip"], detail)


def _no_ip(report: Report, row: Row, *, several: bool) -> None:
    value = row.fields.get("device_ip", ...)
    if value is ... or value == "":  # HCCL reads an empty one as none
        # In one server only 910 and 300I Duo need it: the report's ``for_kind`` makes the note an error for them.
        report.add("E_NO_IP" if several else "N_NO_IP", f"{row.path}.device_ip", value)


def _repeated_ips(report: Report, rows: list[Row]) -> None:
    first: dict[bytes, str] = {}
    for row in rows:
        for packed in row.ips:
            if packed in first:
                report.add("E_DUP_IP", f"{row.path}.device_ip", row.fields["device_ip"], f"first at {first[packed]}")
            first.setdefault(packed, row.path)


# -------------------------------------------------------------------------------------------- super pods


def _pods(document: dict[str, Any], report: Report, servers: list[Server]) -> int:
    """Check super_pod_list; return the number of pods of a 1.2 table."""
    if "super_pod_list" not in document:
        if document.get("version") == "1.2":
            report.add("N_NO_PODS", "$.super_pod_list")
        return 0
    if document.get("version") != "1.2":
        report.add("N_POD_IGNORED", "$.super_pod_list")
        return 0
    pods = objects(report, document, "super_pod_list", "$")
    members = [(path, _pod_members(report, path, pod)) for path, pod in pods]
    _unique(
        report,
        "E_DUP_POD",
        [(f"{path}.super_pod_id", _hashable(pod.get("super_pod_id"))) for path, pod in pods],
    )
    _cover(report, servers, [pair for _, pod in members for pair in pod])
    # Device ids of A3 are unique in their super pod alone, so SDIDs are compared pod by pod.
    by_id = {server.server_id: server for server in servers if server.server_id is not None}
    for _, pod in members:
        _sdids(report, [by_id[server_id] for _, server_id in pod if server_id in by_id])
    return len(pods)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str) else None


def _pod_members(report: Report, path: str, pod: dict[str, Any]) -> list[tuple[str, str]]:
    pod_id = string(report, pod, "super_pod_id", path)
    if pod_id is not None and not 1 <= len(pod_id) <= _LONGEST_ID:
        report.add("E_POD_ID", f"{path}.super_pod_id", pod_id, f"{len(pod_id)} characters")
    found = []
    for place, member in objects(report, pod, "server_list", path):
        server_id = string(report, member, "server_id", place)
        if server_id is not None:
            found.append((f"{place}.server_id", server_id))
    return found


def _cover(report: Report, servers: list[Server], members: list[tuple[str, str]]) -> None:
    known = {server.server_id for server in servers}
    taken: dict[str, str] = {}
    for path, server_id in members:
        if server_id not in known:
            report.add("E_POD_SERVER", path, server_id, "no server of server_list")
        elif server_id in taken:
            report.add("E_POD_COVER", path, server_id, f"already in a pod at {taken[server_id]}")
        else:
            taken[server_id] = path
    for server in servers:
        if server.server_id is not None and server.server_id not in taken:
            report.add("E_POD_COVER", f"{server.path}.server_id", server.server_id, "in no super pod")
    _contiguous(report, servers, taken)


def _contiguous(report: Report, servers: list[Server], taken: dict[str, str]) -> None:
    order = [taken[server.server_id].split(".server_list")[0] for server in servers if server.server_id in taken]
    runs = Counter(pod for pod, _ in groupby(order))
    for pod, count in runs.items():
        if count > 1:
            report.add("N_POD_ORDER", pod, detail=f"its servers lie in {count} separate runs")


def _sdids(report: Report, servers: list[Server]) -> None:
    for server in servers:
        for row in server.rows:
            path = f"{row.path}.super_device_id"
            if "super_device_id" not in row.fields:
                report.add("E_MISSING", path, detail="no super_device_id, which version 1.2 asks for")
            elif row.sdid is not None and row.device_id is not None and not sdid_fits(row.sdid, row.device_id):
                report.add("N_SDID", path, row.fields["super_device_id"], "the formula does not give it")
    rows = [row for server in servers for row in server.rows]
    _unique(report, "E_SDID", [(f"{row.path}.super_device_id", row.sdid) for row in rows])


# ------------------------------------------------------------------------------------------------- notes


def _notes(document: dict[str, Any], report: Report, servers: list[Server]) -> None:
    if "cluster_list" in document:
        report.add("N_CLUSTER_LIST", "$.cluster_list", document["cluster_list"])
    for server in servers:
        _note_pod_ip(report, server)
        ids = [row.device_id for row in server.rows if row.device_id is not None]
        # msrun goes by the position in this list, so local ranks are not in the order that the ids suggest.
        if ids != sorted(ids):
            report.add("N_LIST_ORDER", f"{server.path}.device", server.fields["device"])
        if document.get("version") == "1.0" and ids and max(ids) < 8 and not _fits_910(ids):
            report.add("N_910_GROUP", f"{server.path}.device", server.fields["device"])


def _note_pod_ip(report: Report, server: Server) -> None:
    pod_ip = server.fields.get("pod_ip", ...)
    if pod_ip is ...:
        report.add("N_POD_IP", f"{server.path}.pod_ip", detail="no pod_ip")
    elif not isinstance(pod_ip, str) or packed_ip(pod_ip) is None:
        report.add("N_POD_IP", f"{server.path}.pod_ip", pod_ip, "not an address")


def _fits_910(ids: list[int]) -> bool:
    # A first-generation server has two groups of four cards: 2 or 4 cards must be in one of them.
    return len(ids) in (1, 8) or (len(ids) in (2, 4) and len({device_id // 4 for device_id in ids}) == 1)
