"""The hardware of a run: devices on hosts, and the placement of ranks on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One family of Ascend chips, with the properties that matter to a launcher.

    ``table_version``: version of its HCCL rank table; ``per_server``: devices of a full server; ``max_device_id``: the
    largest physical id. ``ip_needed``: HCCL wants a ``device_ip`` even when all devices are in one server.
    Source: HCCL user guide, rank_table_config_{910,a2,a3,a5,300i_duo}.md (hicann/hccl 09300b70df9a).
    """

    name: str
    products: str
    table_version: str
    per_server: int
    max_device_id: int
    bfloat16: bool
    ip_needed: bool = False


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(name="910", products="Ascend 910A, 910B (first generation), Atlas 800 9000/9010", table_version="1.0",
             per_server=8, max_device_id=7, bfloat16=False, ip_needed=True),
        Kind(name="A2", products="Ascend 910B1 to 910B4, Atlas 800T A2, 900 A2", table_version="1.0",
             per_server=8, max_device_id=15, bfloat16=True),
        Kind(name="A3", products="Ascend 910_93, Atlas 800T A3, 900 A3 SuperPoD", table_version="1.2",
             per_server=16, max_device_id=15, bfloat16=True),
        Kind(name="950", products="Ascend 950", table_version="2.0", per_server=8, max_device_id=64, bfloat16=True),
        Kind(name="310P", products="Ascend 310P, Atlas 300I Duo", table_version="1.0", per_server=8,
             max_device_id=15, bfloat16=False, ip_needed=True),
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NetAddress:
    """One address of a 950 device in one network layer. ``kind`` is "EID", "IPV4" or "IPV6"."""

    kind: str
    address: str
    ports: tuple[str, ...] = ()
    plane_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class NetLevel:
    """The addresses of a 950 device in one network layer: 0 in the box, 1 in the pod, 2 and up beyond it."""

    net_layer: int
    net_instance_id: str
    net_type: str
    addresses: tuple[NetAddress, ...]


@dataclass(frozen=True, kw_only=True)
class Device:
    """One chip (on A3, one die).

    ``device_id`` is the physical id, N of /dev/davinciN and of the rank table. ``device_ip`` is the address of the
    chip's network card, without which two servers cannot talk. ``super_device_id`` (A3) is the SDID, and
    ``levels`` (950) its addresses; other kinds have neither. ``logic_id`` counts the chips of this OS or container and
    is the id for ASCEND_RT_VISIBLE_DEVICES; None where it is unknown (an inventory).
    """

    device_id: int
    device_ip: str | None = None
    logic_id: int | None = None
    super_device_id: int | None = None
    levels: tuple[NetLevel, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Host:
    """One server. ``address``: the one by which other hosts and msrun reach it; ``name``: its host name.

    ``server_id``: its name in a rank table (its address by default); ``super_pod_id``: the pod that it is in (A3).
    """

    name: str
    address: str
    devices: tuple[Device, ...]
    server_id: str | None = None
    super_pod_id: str | None = None

    @property
    def visible(self) -> tuple[int, ...]:
        """Return the logic ids of the devices in order of local rank, for ASCEND_RT_VISIBLE_DEVICES."""
        return tuple(device.device_id if device.logic_id is None else device.logic_id for device in self.devices)


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One training process.

    ``rank_id`` counts over the whole job, ``local_rank`` on the host, ``node_rank`` numbers the hosts.
    """

    rank_id: int
    local_rank: int
    node_rank: int
    host: Host
    device: Device


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The hosts of a run.

    ``target`` is MindSpore's device_target, "Ascend" or "CPU"; ``kind`` a key of KINDS, or None if unknown.
    """

    target: str
    hosts: tuple[Host, ...]
    kind: str | None = None

    @property
    def num_devices(self) -> int:
        return sum(len(host.devices) for host in self.hosts)

    def ranks(self) -> Iterator[Rank]:
        """Yield the ranks in order: hosts as listed, devices of a host as listed."""
        rank_id = 0
        for node_rank, host in enumerate(self.hosts):
            for local_rank, device in enumerate(host.devices):
                yield Rank(rank_id=rank_id, local_rank=local_rank, node_rank=node_rank, host=host, device=device)
                rank_id += 1
