"""What this host has: Ascend cards, or else its CPU."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from launcher.cluster import Cluster, Device, Host
from launcher.errors import HostError

_DAVINCI = re.compile(r"davinci(\d+)")


def ascend_device_ids(dev: Path = Path("/dev")) -> list[int]:
    """Physical ids of the Ascend chips that this host or container sees: N of every /dev/davinciN, ascending."""
    matches = (_DAVINCI.fullmatch(entry.name) for entry in dev.glob("davinci*"))
    return sorted(int(match[1]) for match in matches if match)


def cpu_device_count() -> int:
    """How many ranks the CPU of this host may carry: its cores, at least 2, or $LAUNCHER_CPU_DEVICES."""
    named = os.environ.get("LAUNCHER_CPU_DEVICES")
    if named is None:
        return max(2, os.cpu_count() or 1)
    if not named.isdecimal() or int(named) < 1:
        raise HostError(
            f"LAUNCHER_CPU_DEVICES={named!r} is not a number of CPU ranks",
            hint="export LAUNCHER_CPU_DEVICES=4, or unset it",
        )
    return int(named)


def local_cluster(cards: int | None = None) -> Cluster:
    """This host as a cluster of ``cards`` devices (all of them if None): Ascend cards if there are any, else CPU.

    Raises HostError when the host has fewer devices.
    """
    ids = ascend_device_ids()
    target = "Ascend" if ids else "CPU"
    available = ids or list(range(cpu_device_count()))
    wanted = len(available) if cards is None else cards
    if not 1 <= wanted <= len(available):
        raise HostError(_too_many(wanted, len(available), target), hint=_card_hint(len(available), target))
    devices = tuple(Device(device_id=device_id) for device_id in available[:wanted])
    host = Host(name=socket.gethostname(), address="127.0.0.1", devices=devices)
    return Cluster(target=target, hosts=(host,))


def _too_many(wanted: int, have: int, target: str) -> str:
    noun = "Ascend cards" if target == "Ascend" else "CPU ranks"
    return f"--cards {wanted}: this host has {have} {noun}"


def _card_hint(have: int, target: str) -> str:
    hint = f"pass --cards 1 to --cards {have}"
    if target == "CPU":
        hint += "; to try more ranks than cores, export LAUNCHER_CPU_DEVICES=N"
    return hint
