"""A rank table ready to be written: the input of the templates, and its making from a Cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from launcher.cluster.addresses import packed_ip
from launcher.cluster.model import KINDS, Cluster, Device, Host, NetAddress, NetLevel, Rank
from launcher.common.rendering import RenderedFile, render
from launcher.errors import SpecError

if TYPE_CHECKING:
    import jinja2

_TEMPLATES = {
    "1.0": "rank_table.json.j2",
    "1.2": "rank_table_1.2.json.j2",
    "2.0": "rank_table_2.0.json.j2",
}


@dataclass(frozen=True, kw_only=True)
class TableServer:
    """One entry of server_list: its own keys, and those of each device, exactly as in the file."""

    fields: dict[str, str]
    devices: tuple[dict[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class TablePod:
    """One entry of super_pod_list. ``fields``: its other keys."""

    super_pod_id: str
    server_ids: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A whole table. Versions 1.0 and 1.2 have ``servers`` (1.2 also ``pods``), 2.0 has ``ranks``.

    ``fields``: top-level keys that no version knows, or that do not concern the ranks.
    """

    version: str
    servers: tuple[TableServer, ...] = ()
    pods: tuple[TablePod, ...] = ()
    ranks: tuple[dict[str, Any], ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_ranks(self) -> int:
        return len(self.ranks) or sum(len(server.devices) for server in self.servers)


def render_table(env: jinja2.Environment, table: Table, path: str) -> RenderedFile:
    """Return ``table`` as JSON text, rendered by ``templates/rank_table*.json.j2``."""
    return render(env, _TEMPLATES[table.version], path, table=table)


def version_for(cluster: Cluster) -> str:
    """Return the version for the devices of ``cluster``: 1.2 on A3 with known super pods, 2.0 on 950, else 1.0."""
    kind = KINDS.get(cluster.kind or "")
    if kind is None:
        return "1.0"
    if kind.table_version == "1.2" and not all(host.super_pod_id for host in cluster.hosts):
        return "1.0"  # HCCL's "AI server mode" of A3: no super pod, no SDID
    return kind.table_version


def _suitable(version: str, kind: str | None) -> str:
    wanted = {KINDS[kind].table_version} if kind in KINDS else set(_TEMPLATES)
    if kind == "A3":
        wanted.add("1.0")
    if version not in wanted:
        raise SpecError(
            f"version {version} is not for {kind}: HCCL would refuse it with EI0014 (EI0004 up to CANN 8.x)",
            hint=f"leave --version out, or pass --version {' or '.join(sorted(wanted))}",
        )
    return version


def table_of(cluster: Cluster, *, version: str | None = None, pod_ip: bool = True) -> Table:
    """Return the table of ``cluster``, ranks in the order of ``Cluster.ranks()``.

    ``pod_ip`` adds the key without which msrun ignores a table. Raises SpecError when the cluster lacks something that
    ``version`` (by default that of its kind) requires.
    """
    version = _suitable(version or version_for(cluster), cluster.kind)
    if version == "2.0":
        return Table(version=version, ranks=tuple(_rank_v2(rank) for rank in cluster.ranks()))
    rank_id = 0
    servers = []
    for host in cluster.hosts:
        devices = tuple(_device_v1(device, rank_id + index, version) for index, device in enumerate(host.devices))
        servers.append(TableServer(fields=_server_fields(cluster, host, pod_ip=pod_ip), devices=devices))
        rank_id += len(devices)
    pods = pods_of((host.super_pod_id, _server_id(host)) for host in cluster.hosts) if version == "1.2" else ()
    return Table(version=version, servers=tuple(servers), pods=pods)


def pods_of(members: Iterable[tuple[str | None, str]]) -> tuple[TablePod, ...]:
    """Return pods in order of occurrence, from (super pod id, server id). Raises SpecError for a server without one."""
    pods: dict[str, list[str]] = {}
    for pod_id, server_id in members:
        if not pod_id:
            raise SpecError(
                f"server {server_id}: no super pod, which a 1.2 table asks for",
                hint="name it in the inventory (super_pod: ...), or make a 1.0 table with --version 1.0",
            )
        pods.setdefault(pod_id, []).append(server_id)
    return tuple(TablePod(super_pod_id=pod_id, server_ids=tuple(ids)) for pod_id, ids in pods.items())


def _server_id(host: Host) -> str:
    return host.server_id or host.address


def _server_fields(cluster: Cluster, host: Host, *, pod_ip: bool) -> dict[str, str]:
    fields = {"server_id": _server_id(host)}
    if cluster.kind == "A3" and packed_ip(host.address):
        fields["host_ip"] = host.address
    # With one host msrun's workers register as 127.0.0.1 whatever the host's own address is; with several by address,
    # so that a name would never be found.
    if pod_ip and (len(cluster.hosts) == 1 or packed_ip(host.address)):
        fields["pod_ip"] = host.address if len(cluster.hosts) > 1 else "127.0.0.1"
    return fields


def _device_v1(device: Device, rank_id: int, version: str) -> dict[str, str]:
    fields = {"device_id": str(device.device_id)}
    if device.device_ip:
        fields["device_ip"] = device.device_ip
    if version == "1.2":
        if device.super_device_id is None:
            raise SpecError(
                f"rank {rank_id}, device {device.device_id}: no super_device_id, which a 1.2 table asks for",
                hint="give the host a server_index (or super_device_ids) in the inventory",
            )
        fields["super_device_id"] = str(device.super_device_id)
    fields["rank_id"] = str(rank_id)
    return fields


def _rank_v2(rank: Rank) -> dict[str, Any]:
    if not rank.device.levels:
        raise SpecError(
            f"host {rank.host.name}, device {rank.device.device_id}: no network levels, which a 2.0 table asks for",
            hint="list them in the inventory (levels: ...); rank_tables/README.md shows how",
        )
    return {
        "rank_id": rank.rank_id,
        "local_id": rank.device.device_id,
        "device_id": rank.device.device_id,
        "level_list": [_level_v2(level) for level in rank.device.levels],
    }


def _level_v2(level: NetLevel) -> dict[str, Any]:
    return {
        "net_layer": level.net_layer,
        "net_instance_id": level.net_instance_id,
        "net_type": level.net_type,
        "net_attr": "",
        "rank_addr_list": [_address_v2(address) for address in level.addresses],
    }


def _address_v2(address: NetAddress) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "addr_type": address.kind,
        "addr": address.address,
        "ports": list(address.ports),
    }
    if address.plane_id is not None:
        fields["plane_id"] = address.plane_id
    return fields
