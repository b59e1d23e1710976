"""The hardware of a run: devices on hosts, and how ranks are laid on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Device:
    """One chip (on A3, one die).

    ``device_id`` is the physical id, N of /dev/davinciN and of the rank table. ``device_ip`` is the address of the
    chip's network card, without which two servers cannot talk.
    """

    device_id: int
    device_ip: str | None = None


@dataclass(frozen=True, kw_only=True)
class Host:
    """One server. ``address`` is what the other hosts and msrun reach it by; ``name`` its host name."""

    name: str
    address: str
    devices: tuple[Device, ...]


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
    """All hosts of a run. ``target`` is MindSpore's device_target, "Ascend" or "CPU"."""

    target: str
    hosts: tuple[Host, ...]

    @property
    def num_devices(self) -> int:
        return sum(len(host.devices) for host in self.hosts)

    def ranks(self) -> Iterator[Rank]:
        """Ranks in order: hosts as listed, devices of a host as listed."""
        rank_id = 0
        for node_rank, host in enumerate(self.hosts):
            for local_rank, device in enumerate(host.devices):
                yield Rank(rank_id=rank_id, local_rank=local_rank, node_rank=node_rank, host=host, device=device)
                rank_id += 1
