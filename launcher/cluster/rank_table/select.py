"""The cluster that a rank table is made of, or a part of it: some hosts, some devices, another order of ranks."""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from pathlib import Path

from launcher.cluster.discover import host_cluster, look_around
from launcher.cluster.discover.address import own_address
from launcher.cluster.inventory import load_inventory
from launcher.cluster.model import Cluster, Host
from launcher.common.ranges import expand, natural, numbers, spans
from launcher.errors import HostError, SpecError

ORDERS = ("listed", "name", "address")


def whole_cluster(inventory: Path | None, address: str | None) -> Cluster:
    """Return the hosts of an inventory, or this host with its cards, which others reach at ``address``."""
    if inventory is None:
        return host_cluster(look_around(), address=address or _own_address())
    if address is not None:
        raise SpecError("--address is for this host, and --inventory names the hosts", hint="leave one of them out")
    return load_inventory(inventory)


def _own_address() -> str:
    found = own_address()
    if found is None:
        raise HostError("this host has no address but 127.0.0.1", hint="pass --address A, as other hosts reach it")
    return found


def select(cluster: Cluster, *, hosts: str | None = None, devices: str | None = None, order: str = "listed") -> Cluster:
    """Return ``cluster`` with only ``hosts`` and ``devices``, hosts in ``order``.

    ``hosts`` is a list such as "node[0-3],10.0.0.9" of names or addresses (``*`` stands for anything), or "0-3" by
    position. ``devices`` is a list of physical ids, and ranks go in the order it gives. ``order`` "listed" is the
    inventory's, "name" and "address" take numbers by value. Raises SpecError for hosts and devices that do not exist.
    """
    kept = cluster.hosts if hosts is None else _hosts(cluster.hosts, hosts)
    if devices is not None:
        kept = tuple(_with_devices(host, _ids(devices)) for host in kept)
    if order == "name":
        kept = tuple(sorted(kept, key=lambda host: natural(host.name)))
    elif order == "address":
        kept = tuple(sorted(kept, key=lambda host: natural(host.address)))
    return replace(cluster, hosts=kept)


def _ids(devices: str) -> list[int]:
    try:
        return numbers(devices)
    except ValueError as error:
        raise SpecError(f"--devices {error}", hint="write physical ids, such as --devices 4-7 or 0,2") from error


def _with_devices(host: Host, ids: list[int]) -> Host:
    own = {device.device_id: device for device in host.devices}
    missing = [device_id for device_id in ids if device_id not in own]
    if missing or len(set(ids)) < len(ids):
        why = f"no device {spans(missing)}" if missing else "a device is named twice"
        raise SpecError(f"host {host.name}: {why}", hint=f"it has {spans(sorted(own))}")
    return replace(host, devices=tuple(own[device_id] for device_id in ids))


def _hosts(hosts: tuple[Host, ...], wanted: str) -> tuple[Host, ...]:
    try:
        patterns = [pattern for part in _split(wanted) for pattern in expand(part)]
    except ValueError as error:
        raise SpecError(f"--hosts {error}") from error
    positions = _positions(hosts, wanted)
    if positions is not None:
        return positions
    found: dict[str, Host] = {}
    for pattern in patterns:
        matched = [host for host in hosts if fnmatch.fnmatchcase(host.name, pattern) or host.address == pattern]
        if not matched:
            known = ", ".join(host.name for host in hosts[:8]) + (" ..." if len(hosts) > 8 else "")
            raise SpecError(f"--hosts: no host {pattern!r}", hint=f"the inventory has {known}")
        found.update({host.name: host for host in matched})
    return tuple(found.values())


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def _positions(hosts: tuple[Host, ...], wanted: str) -> tuple[Host, ...] | None:
    """Return hosts by position, if ``wanted`` consists of numbers and no host has such a name."""
    try:
        indices = numbers(wanted)
    except ValueError:
        return None
    if {host.name for host in hosts} & set(map(str, indices)):
        return None
    if max(indices) >= len(hosts):
        raise SpecError(f"--hosts {wanted}: positions end at {len(hosts) - 1}", hint="the first host is 0")
    return tuple(hosts[index] for index in dict.fromkeys(indices))
