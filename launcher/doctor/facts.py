"""The facts of a host in which all hosts of a job must agree, or must differ."""

from __future__ import annotations

import platform
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from launcher.cluster.discover.host import HostReport, host_cluster
from launcher.doctor.network import network_of, read_switches
from launcher.errors import HostError
from launcher.upstream.versions import installed


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """``name``: the host's own; ``tls``, ``addresses``, ``networks`` by physical id of the card, as text (for JSON).

    ``routed``: its cards have a gateway; ``sdids`` and ``super_pod_id``: of A3.
    """

    name: str
    kind: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    tls: Mapping[str, bool] = field(default_factory=dict)
    addresses: Mapping[str, str] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)
    routed: bool = False
    sdids: Mapping[str, int] = field(default_factory=dict)
    super_pod_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> HostFacts:
        return cls(**raw)


def facts_of(report: HostReport, *, with_tls: bool = True) -> HostFacts:
    """Return the facts of this host. ``with_tls``: ask hccn_tool for that switch, as it is known to answer."""
    ids = [card.device_id for card in report.usable]
    hccn, software = report.hccn, report.software
    switches = read_switches(ids) if with_tls else []
    versions = {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "mindspore": installed("mindspore") or "none",
        "mindformers": installed("mindformers") or "none",
    }
    if report.cards:
        versions |= {name: getattr(software, name) or "none" for name in ("cann", "driver", "firmware")}
    pod, sdids = _super_pod(report)
    return HostFacts(
        name=socket.gethostname(),
        kind=report.kind,
        versions=versions,
        tls={str(switch.device_id): switch.on for switch in switches if switch.on is not None},
        addresses={str(ident): hccn.addresses[ident] for ident in ids if ident in hccn.addresses},
        networks={
            str(ident): network for ident in ids if (network := network_of(hccn.addresses, hccn.netmasks, ident))
        },
        routed=bool(hccn.gateways),
        sdids=sdids,
        super_pod_id=pod,
    )


def _super_pod(report: HostReport) -> tuple[str | None, dict[str, int]]:
    if report.kind != "A3":
        return None, {}
    try:
        host = host_cluster(report).hosts[0]
    except HostError:
        return None, {}
    found = {str(device.device_id): device.super_device_id for device in host.devices}
    return host.super_pod_id, {ident: sdid for ident, sdid in found.items() if sdid is not None}
