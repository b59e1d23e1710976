"""Discovery of this host's devices: its Ascend cards, or else its CPU."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence

from launcher.cluster.discover.hccn import read_hccn_conf
from launcher.cluster.discover.host import Card, HostReport, ascend_device_ids, host_cluster, host_root, look_around
from launcher.cluster.discover.pci import pci_kind
from launcher.cluster.discover.visible import runtime_visible
from launcher.cluster.model import Cluster, Device, Host
from launcher.errors import HostError

__all__ = [
    "Card",
    "HostReport",
    "ascend_device_ids",
    "cpu_device_count",
    "host_cluster",
    "host_root",
    "local_cluster",
    "look_around",
    "visible_device_ids",
]


def cpu_device_count() -> int:
    """Return the number of ranks for this host's CPU: its cores, at least 2, or $LAUNCHER_CPU_DEVICES."""
    named = os.environ.get("LAUNCHER_CPU_DEVICES")
    if named is None:
        return max(2, os.cpu_count() or 1)
    if not named.isdecimal() or int(named) < 1:
        raise HostError(
            f"LAUNCHER_CPU_DEVICES={named!r} is not a number of CPU ranks",
            hint="export LAUNCHER_CPU_DEVICES=4, or unset it",
        )
    return int(named)


def visible_device_ids() -> list[int]:
    """Return the physical ids of the chips this process may use: /dev/davinci* limited by ASCEND_RT_VISIBLE_DEVICES.

    Raises HostError when that variable is malformed: the Ascend runtime would silently use fewer cards.
    """
    ids = ascend_device_ids()
    named = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if not ids or named is None:
        return ids
    visible = runtime_visible(named)
    beyond = [logic for logic in visible.ids if logic >= len(ids)]
    fault = visible.fault or (f"there is no logic id {beyond[0]}" if beyond else "")
    if fault:
        raise HostError(
            f"ASCEND_RT_VISIBLE_DEVICES={named!r}: {fault}",
            hint=f"export ASCEND_RT_VISIBLE_DEVICES={','.join(map(str, range(len(ids))))}, or unset it",
        )
    return [ids[logic] for logic in visible.ids]


Blocks = Sequence[Sequence[int]]


def first(blocks: Blocks) -> Sequence[int]:
    """Return the first block of cards."""
    return blocks[0]


def local_cluster(cards: int | None = None, *, choose: Callable[[Blocks], Sequence[int]] = first) -> Cluster:
    """Return this host as a cluster of ``cards`` devices (all if None): Ascend cards if there are any, else CPU.

    ``choose``: picks one of the blocks of cards that begin at a multiple of ``cards``; such a block is one ring of the
    host's cards where there are rings. It only reads files and takes a millisecond. Raises HostError when the host has
    fewer devices.
    """
    ids = visible_device_ids()
    target = "Ascend" if ids else "CPU"
    available = ids or list(range(cpu_device_count()))
    wanted = len(available) if cards is None else cards
    if not 1 <= wanted <= len(available):
        raise HostError(_too_many(wanted, len(available), target), hint=_card_hint(len(available), target))
    addresses = read_hccn_conf(host_root() / "etc/hccn.conf").addresses if ids else {}
    logic = {device_id: index for index, device_id in enumerate(ascend_device_ids())}
    devices = tuple(
        Device(device_id=ident, logic_id=logic.get(ident), device_ip=addresses.get(ident))
        for ident in (choose(_blocks(available, wanted)) if ids else available[:wanted])
    )
    host = Host(name=socket.gethostname(), address="127.0.0.1", devices=devices)
    return Cluster(target=target, kind=pci_kind(host_root()) if ids else None, hosts=(host,))


def _blocks(available: Sequence[int], wanted: int) -> Blocks:
    return [available[start : start + wanted] for start in range(0, len(available) - wanted + 1, wanted)]


def _too_many(wanted: int, have: int, target: str) -> str:
    noun = "Ascend cards" if target == "Ascend" else "CPU ranks"
    return f"--cards {wanted}: this host has {have} {noun}"


def _card_hint(have: int, target: str) -> str:
    hint = f"pass --cards 1 to --cards {have}"
    if target == "CPU":
        hint += "; to try more ranks than cores, export LAUNCHER_CPU_DEVICES=N"
    return hint
