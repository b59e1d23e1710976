"""The report of a host on itself when its agent comes, and the points in which all hosts of a job must agree."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from launcher.cluster.discover.address import own_address
from launcher.cluster.model import Host
from launcher.common.ports import free_port
from launcher.jobs import JobPaths
from launcher.plan.launch import NodePlace, RankPlace, ranks_by_node
from launcher.upstream.installed import installed

# Variables that must be equal on all hosts; HCCL's addresses and interfaces differ on purpose.
_OWN_BY_NATURE = ("HCCL_IF_IP", "HCCL_SOCKET_IFNAME", "HCCL_IF_BASE_PORT")
_COMPARED = ("HCCL_", "MS_")

# Clocks that are further apart than this are told; the verdict corrects for them in any case.
CLOCK_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Registration:
    """The report of one host. ``addresses``: by interface, those that others can reach. ``devices``: the fields of
    each Device that this job may use; none on CPU. ``port``: a free one. ``address``: the one by which others reach it,
    as far as it knows. ``fault``: the reason why the host cannot take part."""

    name: str
    time: float
    versions: Mapping[str, str]
    addresses: Mapping[str, Sequence[str]]
    target: str = "CPU"
    kind: str | None = None
    devices: tuple[Mapping[str, Any], ...] = ()
    super_pod_id: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    address: str = ""
    fault: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Registration:
        """Read a report. Raises TypeError or KeyError when ``raw`` is not one."""
        return cls(**{**raw, "devices": tuple(raw["devices"])})

    def interface_of(self, address: str) -> str | None:
        """Return the interface that has ``address``."""
        return next((name for name, own in self.addresses.items() if address in own), None)


def register(target: str, reads: Sequence[str] = ()) -> Registration:
    """Return the report of this host for a job on ``target``. On Ascend this asks npu-smi and takes some seconds.

    ``reads``: files that the job reads; one that is missing is a fault.
    """
    kind, devices, pod, fault = (None, (), None, "") if target == "CPU" else _cards()
    # A fault of the host itself comes first: a missing file may only be its consequence.
    fault = fault or next((f"{path} is not there; the job reads it on every host" for path in reads
                           if not Path(path).exists()), "")  # fmt: skip
    addresses = own_addresses()
    return Registration(
        name=socket.gethostname(),
        time=time.time(),
        versions={**installed(), **(_ascend_versions() if target == "Ascend" else {})},
        addresses=addresses,
        target=target,
        kind=kind,
        devices=devices,
        super_pod_id=pod,
        variables={key: value for key, value in os.environ.items() if key.startswith(_COMPARED)},
        port=free_port("" if any("." in a for own in addresses.values() for a in own) or not addresses else "::"),
        address=os.environ.get("LAUNCHER_ADDRESS") or own_address() or "",
        fault=fault,
    )


def inputs_of(plan: Mapping[str, Any]) -> list[str]:
    """Return the files that the job of ``plan``, the contents of plan.json, reads on every host."""
    named = (plan.get(key) for key in ("dataset", "evaluation", "tokenizer", "checkpoint"))
    return [str(name) for name in named if name]


def read_inputs(paths: JobPaths) -> list[str]:
    """Return the files that the job reads on every host; none if its plan cannot be read."""
    try:
        return inputs_of(json.loads(paths.plan.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return []


def own_addresses() -> dict[str, tuple[str, ...]]:
    """Return the addresses of each interface, IPv4 first; without loopback and link-local ones."""
    found = {}
    for name, addresses in psutil.net_if_addrs().items():
        v4 = [a.address for a in addresses if a.family == socket.AF_INET and not a.address.startswith("127.")]
        v6 = [a.address for a in addresses if a.family == socket.AF_INET6]
        usable = (*v4, *(a for a in v6 if a != "::1" and not a.startswith("fe80") and "%" not in a))
        if usable:
            found[name] = usable
    return found


def _ascend_versions() -> dict[str, str]:
    from launcher.cluster.discover import host_root
    from launcher.cluster.discover.software import read_software

    software = read_software(host_root())
    return {"cann": software.cann or "-", "driver": software.driver or "-"}


def _cards() -> tuple[str | None, tuple[dict[str, Any], ...], str | None, str]:
    from launcher.cluster.discover import host_cluster, look_around
    from launcher.errors import HostError
    from launcher.schedulers.granted import grant

    try:
        grant()
        cluster = host_cluster(look_around())
    except HostError as error:
        return None, (), None, error.message
    host = cluster.hosts[0]
    return cluster.kind, tuple(asdict(device) for device in host.devices), host.super_pod_id, _busy(host)


def _busy(host: Host) -> str:
    """Return a message that names the cards held by another job or process; "" for none."""
    from launcher.cluster.discover import host_root
    from launcher.cluster.locks import check_free
    from launcher.doctor.holders import holders
    from launcher.errors import HostError

    held = holders([device.device_id for device in host.devices], host_root())
    if held:
        return "; ".join(f"card {card} is held by process {pid} ({name})" for pid, name, card in held[:4])
    try:
        check_free(f"card_{device.device_id}" for device in host.devices)
    except HostError as error:
        return error.message
    return ""


# ------------------------------------------------------------------------------------------------ all together


def problems(nodes: Sequence[NodePlace], ranks: Sequence[RankPlace], found: Sequence[Registration]) -> list[str]:
    """Return the reasons why these hosts cannot run the job together, one line each; empty when they can."""
    lines = [f"{host.name}: {host.fault}" for host in found if host.fault]
    lines += _same_names(found)
    own = ranks_by_node(ranks)
    for node, host in zip(nodes, found, strict=True):
        lines += _own_problems(node, own.get(node.node_rank, []), host)
    lines += _differences(found)
    return lines


def _same_names(found: Sequence[Registration]) -> list[str]:
    """Return a line for each name that two hosts share: MindSpore counts local ranks by host name."""
    counts = Counter(host.name for host in found)
    twice = sorted((name, count) for name, count in counts.items() if count > 1)
    return [f"{count} hosts have the name {name}; give each its own" for name, count in twice]


def _own_problems(node: NodePlace, ranks: Sequence[RankPlace], host: Registration) -> list[str]:
    lines = []
    if node.address and not host.interface_of(node.address):
        own = ", ".join(address for addresses in host.addresses.values() for address in addresses)
        lines.append(f"{host.name}: no interface has the address {node.address}; it has {own or 'none'}")
    if host.target == "Ascend" and not host.fault and len(host.devices) < len(ranks):
        lines.append(f"{host.name}: {len(host.devices)} card(s) can be used, the job needs {len(ranks)}")
    return lines


def _differences(found: Sequence[Registration]) -> list[str]:
    first, lines = found[0], []
    for host in found[1:]:
        for name in sorted({*first.versions, *host.versions}):
            ours, theirs = first.versions.get(name, "-"), host.versions.get(name, "-")
            if ours != theirs:
                lines.append(f"{host.name} has {name} {theirs}, {first.name} has {ours}; install the same on all hosts")
        if host.kind != first.kind:
            lines.append(f"{host.name} has cards of kind {host.kind}, {first.name} of kind {first.kind}")
        for name in sorted({*first.variables, *host.variables} - set(_OWN_BY_NATURE)):
            ours, theirs = first.variables.get(name, ""), host.variables.get(name, "")
            if ours != theirs:
                lines.append(f"{host.name} has {name}={theirs!r}, {first.name} has {ours!r}; set the same on all hosts")
    return lines
