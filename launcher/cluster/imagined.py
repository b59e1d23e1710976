"""Clusters not discovered: cut down to a number of cards, or made up where only a scheduler knows the hosts."""

from __future__ import annotations

import dataclasses

from launcher.cluster.model import KINDS, Cluster, Device, Host, NetAddress, NetLevel
from launcher.errors import HostError, SpecError


def first_cards(cluster: Cluster, cards: int | None) -> Cluster:
    """Return ``cluster`` cut down to its first ``cards`` devices. Raises HostError when it has fewer."""
    if cards is None or cards == cluster.num_devices:
        return cluster
    if not 1 <= cards < cluster.num_devices:
        raise HostError(f"--cards {cards}: the inventory has {cluster.num_devices}", hint="leave --cards out")
    hosts, left = [], cards
    for host in cluster.hosts:
        if left > 0:
            hosts.append(dataclasses.replace(host, devices=host.devices[:left]))
            left -= len(host.devices)
    return dataclasses.replace(cluster, hosts=tuple(hosts))


def hold_back(cluster: Cluster, count: int, cards: int | None) -> tuple[Cluster, tuple[Host, ...]]:
    """Return the first ``cards`` devices of ``cluster`` without its last ``count`` hosts, and those, which are spare.

    Raises SpecError when no host is left or a spare has fewer devices than a host that it may replace, HostError when
    there are not ``cards`` without them.
    """
    if count >= len(cluster.hosts):
        raise SpecError(
            f"--spare-hosts {count}: the inventory has {len(cluster.hosts)} host(s), and the job needs one at least",
            hint="add hosts to the inventory, or hold fewer back",
        )
    used, spares = cluster.hosts[: len(cluster.hosts) - count], cluster.hosts[len(cluster.hosts) - count :]
    rest = dataclasses.replace(cluster, hosts=used)
    if cards is not None and cards > rest.num_devices:
        raise HostError(
            f"--cards {cards}: without its {count} spare host(s) the inventory has {rest.num_devices}",
            hint="leave --cards out, or hold fewer hosts back",
        )
    rest = first_cards(rest, cards)
    most = max(rest.hosts, key=lambda host: len(host.devices))
    for spare in spares:
        if len(spare.devices) < len(most.devices):
            raise SpecError(
                f"--spare-hosts {count}: {spare.name} has {len(spare.devices)} card(s), and the job has "
                f"{len(most.devices)} on {most.name}",
                hint="put the hosts with the most cards last: the last of the inventory are held back",
            )
    return rest, spares


def imagined_cluster(cards: int, kind: str) -> Cluster:
    """Return ``cards`` cards of ``kind`` on full servers and a last one. Raises SpecError for none at all."""
    if cards < 1:
        raise SpecError(f"--cards {cards} is no number of cards", hint="pass --cards 8")
    per_server = KINDS[kind].per_server
    counts = [min(per_server, cards - first) for first in range(0, cards, per_server)]
    hosts = tuple(_host(number, count, kind) for number, count in enumerate(counts))
    return Cluster(target="Ascend", kind=kind, hosts=hosts)


def imagined_hosts(nodes: int, cards: int | None, kind: str) -> Cluster:
    """Return ``nodes`` hosts with ``cards`` devices in total (full hosts if None), of ``kind`` or "CPU".

    Raises SpecError when the cards do not divide evenly: HCCL wants as many on each host.
    """
    per_host, rest = (KINDS[kind].per_server if kind in KINDS else 1, 0) if cards is None else divmod(cards, nodes)
    most = KINDS[kind].per_server if kind in KINDS else 64
    if rest or not 1 <= per_host <= most:
        raise SpecError(
            f"{cards} cards on {nodes} host(s): each must have the same number, 1 to {most}",
            hint=f"--nodes {nodes} --cards {nodes * min(max(per_host, 1), most)}",
        )
    hosts = tuple(_host(number, per_host, kind) for number in range(nodes))
    return Cluster(target="Ascend" if kind in KINDS else "CPU", kind=kind if kind in KINDS else None, hosts=hosts)


def _host(number: int, count: int, kind: str) -> Host:
    high, low = divmod(number, 250)
    devices = (
        Device(
            device_id=index, device_ip=f"10.{100 + high}.{low + 1}.{index + 1}", logic_id=index,
            levels=_levels(number, index) if kind == "950" else (),
        )
        for index in range(count)
    )  # fmt: skip
    return Host(name=f"node{number}", address=f"10.0.{high}.{low + 1}", devices=tuple(devices))


def _levels(host: int, device: int) -> tuple[NetLevel, ...]:
    """Return made-up addresses of a 950 device: in its box, and between boxes."""
    eid = f"{host:016x}{device:016x}"
    inside = NetAddress(kind="EID", address=f"0{eid[1:]}", ports=("0/1",))
    between = NetAddress(kind="EID", address=f"1{eid[1:]}", ports=("1/1",))
    return (
        NetLevel(net_layer=0, net_instance_id=f"node{host}", net_type="TOPO_FILE_DESC", addresses=(inside,)),
        NetLevel(net_layer=1, net_instance_id="pod0", net_type="CLOS", addresses=(between,)),
    )
