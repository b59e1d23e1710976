"""The rendezvous of ranks: addresses, port, interfaces, the cards as found, and the cluster for their rank table."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace

from launcher.cluster.locks import card_lock
from launcher.cluster.model import Cluster, Device, Host, NetAddress, NetLevel
from launcher.errors import HostError
from launcher.plan.launch import Launch, NodePlace, RankPlace, ranks_by_node
from launcher.schedulers.registration import Registration


def bind_hosts(launch: Launch, found: Sequence[Registration]) -> Launch:
    """Return ``launch`` with the facts that only the hosts know. Raises HostError when they cannot be reached."""
    addresses = [_address(node, host) for node, host in zip(launch.nodes, found, strict=True)]
    _same_family(addresses, found)
    ranks_of = ranks_by_node(launch.ranks)
    chosen = [
        _devices(launch, node, host, ranks_of[node.node_rank]) for node, host in zip(launch.nodes, found, strict=True)
    ]
    nodes = tuple(
        _node(launch, node, host, address, devices)
        for node, host, address, devices in zip(launch.nodes, found, addresses, chosen, strict=True)
    )
    ranks = tuple(_rank(rank, found, chosen) for rank in launch.ranks)
    # Host 0 runs MindSpore's scheduler, so its address and one of its own free ports are the meeting point.
    return replace(launch, nodes=nodes, ranks=ranks, address=addresses[0], port=launch.port or found[0].port)


def cluster_of(launch: Launch, found: Sequence[Registration]) -> Cluster:
    """Return the hosts of ``launch``, after ``bind_hosts``, in the form for rank tables."""
    hosts, ranks_of = [], ranks_by_node(launch.ranks)
    for node, host in zip(launch.nodes, found, strict=True):
        by_id = {raw["device_id"]: _device(raw) for raw in host.devices}
        ids = [rank.device_id for rank in ranks_of[node.node_rank]]
        devices = tuple(by_id.get(device_id, Device(device_id=device_id)) for device_id in ids)
        hosts.append(Host(name=host.name, address=node.address, devices=devices, super_pod_id=host.super_pod_id))
    return Cluster(target=launch.target, kind=found[0].kind, hosts=tuple(hosts))


def _device(raw: object) -> Device:
    values = dict(raw)  # type: ignore[call-overload]
    levels = tuple(
        NetLevel(
            **{**level, "addresses": tuple(NetAddress(**{**a, "ports": tuple(a["ports"])}) for a in level["addresses"])}
        )
        for level in values.pop("levels", ())
    )
    return Device(**values, levels=levels)


def _address(node: NodePlace, host: Registration) -> str:
    """Return the address that was named, else the host's own choice, else the first of its first interface."""
    if node.address or host.address:
        return node.address or host.address
    first = next((address for addresses in host.addresses.values() for address in addresses), None)
    if first is None:
        raise HostError(f"{host.name} has no address that other hosts could reach", hint=f"on {host.name}: ip address")
    return first


def _same_family(addresses: Sequence[str], found: Sequence[Registration]) -> None:
    # HCCL takes one address family for the whole job (HCCL_SOCKET_FAMILY).
    versions = [ipaddress.ip_address(address).version for address in addresses]
    if len(set(versions)) > 1:
        shown = ", ".join(f"{host.name} {address}" for host, address in zip(found, addresses, strict=True))
        raise HostError(f"IPv4 and IPv6 addresses are mixed: {shown}", hint="name addresses of one family")


def _devices(launch: Launch, node: NodePlace, host: Registration, ranks: Sequence[RankPlace]) -> list[Device]:
    """Return the planned cards when the plan names them, else the first ones. Empty on CPU."""
    if launch.target == "CPU":
        return []
    planned = [rank.device_id for rank in ranks]
    there = {raw["device_id"]: _device(raw) for raw in host.devices}
    if set(planned) <= set(there):
        return [there[device_id] for device_id in planned]
    if node.visible:  # an inventory named them
        missing = sorted(set(planned) - set(there))
        raise HostError(f"{host.name} has no card {missing[0]} that can be used", hint="correct the inventory")
    # A scheduler may give other cards than the plan assumed; any of them will do.
    return list(there.values())[: len(planned)]


def _node(launch: Launch, node: NodePlace, host: Registration, address: str, devices: list[Device]) -> NodePlace:
    # The runtime counts visible cards by logic id, which differs from the device id on some hosts.
    visible = tuple(device.device_id if device.logic_id is None else device.logic_id for device in devices)
    return replace(
        node,
        name=host.name,
        address=address,
        visible=visible,
        env=_own_env(host, address) if launch.target == "Ascend" else {},
        locks=tuple(card_lock(device.device_id) for device in devices),
    )


def _own_env(host: Registration, address: str) -> dict[str, str]:
    """Return HCCL's variables except those already set on the host: an administrator set them for a reason."""
    env = host_env(address, host.interface_of(address))
    return {name: value for name, value in env.items() if name not in host.variables}


def host_env(address: str, interface: str | None) -> dict[str, str]:
    """Return HCCL's variables for one host: the address and interface it uses before the cards are connected.

    "=NAME" means exactly that interface (HCCL environment reference, HCCL_SOCKET_IFNAME).
    """
    family = "AF_INET6" if ipaddress.ip_address(address).version == 6 else "AF_INET"
    env = {"HCCL_IF_IP": address, "HCCL_SOCKET_FAMILY": family}
    return {**env, "HCCL_SOCKET_IFNAME": f"={interface}"} if interface else env


def _rank(rank: RankPlace, found: Sequence[Registration], chosen: Sequence[list[Device]]) -> RankPlace:
    devices = chosen[rank.node_rank]
    device_id = devices[rank.local_rank].device_id if devices else rank.device_id
    return replace(rank, host=found[rank.node_rank].name, device_id=device_id)
