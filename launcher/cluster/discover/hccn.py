"""Addresses of the cards' network ports: /etc/hccn.conf and hccn_tool."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from launcher.cluster.addresses import packed_ip
from launcher.cluster.discover.programs import run_program

_KEY = re.compile(r"(address|IPv6address)_(\d{1,2})")
_NET_KEY = re.compile(r"(netmask|gateway)_(\d{1,2})")
_TLS = re.compile(r"tls switch\[([01])\]")
_LOSS = re.compile(r"(\d+) packets transmitted, (\d+) received")


@dataclass(frozen=True, kw_only=True)
class HccnConf:
    """The contents of hccn.conf. ``addresses``: by physical id, as ``netmasks`` and ``gateways``; ``fault``: the reason
    why there are none; ``bad_lines``: lines that cannot be read."""

    addresses: dict[int, str] = field(default_factory=dict)
    netmasks: dict[int, str] = field(default_factory=dict)
    gateways: dict[int, str] = field(default_factory=dict)
    fault: str = ""
    bad_lines: tuple[str, ...] = ()


def read_hccn_conf(path: Path = Path("/etc/hccn.conf")) -> HccnConf:
    """Read the addresses in hccn.conf. The driver's installer makes it empty, for root alone (mode 640)."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return HccnConf(fault=f"{path} is not there")
    except OSError as error:
        return HccnConf(fault=f"{path} cannot be read: {error.strerror}")
    return parse_hccn_conf(text, name=str(path))


def parse_hccn_conf(text: str, *, name: str = "hccn.conf") -> HccnConf:
    """Read lines ``key_<physical id>=value``: IPv4 wins over IPv6, unknown keys are ignored, a second "=" is wrong."""
    found: dict[str, dict[int, str]] = {"address": {}, "IPv6address": {}, "netmask": {}, "gateway": {}}
    bad = []
    for number, line in enumerate(text.splitlines(), 1):
        key, equals, value = line.strip().partition("=")
        match = _KEY.fullmatch(key.strip())
        net = _NET_KEY.fullmatch(key.strip())
        if net and packed_ip(value.strip()):
            found[net[1]][int(net[2])] = value.strip()
        elif match and equals and packed_ip(value.strip()):
            found[match[1]][int(match[2])] = value.strip()
        elif match:
            bad.append(f"{name}:{number}: {line.strip()[:80]}")
    addresses = {**found["IPv6address"], **found["address"]}
    fault = "" if addresses else f"{name} holds no address"
    return HccnConf(
        addresses=dict(sorted(addresses.items())),
        netmasks=found["netmask"],
        gateways=found["gateway"],
        fault=fault,
        bad_lines=tuple(bad),
    )


@dataclass(frozen=True, kw_only=True)
class Port:
    """One card's network port: ``address`` (None if not set), ``link`` "UP", "DOWN" or "", ``fault`` if unknown."""

    device_id: int
    address: str | None = None
    link: str = ""
    fault: str = ""


def read_address(device_id: int, *, timeout_s: float | None = None) -> Port:
    """Ask hccn_tool for the address of a physical id. A missing address is not a fault."""
    result = run_program("hccn_tool", "-i", str(device_id), "-ip", "-g", timeout_s=timeout_s)
    address = _after(result.stdout, "ipaddr")
    if address and packed_ip(address):
        return Port(device_id=device_id, address=address)
    if "no ip was preset" in result.stderr + result.stdout:
        return Port(device_id=device_id)
    return Port(device_id=device_id, fault=result.fault or "hccn_tool printed no address")


def read_link(device_id: int, *, timeout_s: float | None = None) -> Port:
    """Ask hccn_tool for the state of the link of a physical id."""
    result = run_program("hccn_tool", "-i", str(device_id), "-link", "-g", timeout_s=timeout_s)
    state = _after(result.stdout, "link status")
    if state in ("UP", "DOWN"):
        return Port(device_id=device_id, link=state)
    return Port(device_id=device_id, fault=result.fault or "hccn_tool printed no link status")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """The TLS switch of one card's network port: ``on`` is None if unknown, ``fault`` the reason."""

    device_id: int
    on: bool | None = None
    fault: str = ""


def read_tls(device_id: int, *, timeout_s: float | None = None) -> Tls:
    """Ask hccn_tool for the TLS switch of a physical id."""
    result = run_program("hccn_tool", "-i", str(device_id), "-tls", "-g", timeout_s=timeout_s)
    match = _TLS.search(result.stdout)
    if match:
        return Tls(device_id=device_id, on=match[1] == "1")
    return Tls(device_id=device_id, fault=result.fault or "hccn_tool printed no TLS switch")


@dataclass(frozen=True, kw_only=True)
class Ping:
    """The answer of ``address`` to a ping from a card of this host. ``lost``: True, False, or None if unknown."""

    device_id: int
    address: str
    lost: bool | None = None
    fault: str = ""


def ping(device_id: int, address: str, *, timeout_s: float | None = None) -> Ping:
    """Ping another card's ``address`` from the card of a physical id: three packets, all of which must return."""
    family = ("-inet6", "-g", "ipv6_address") if ":" in address else ("-g", "address")
    result = run_program("hccn_tool", "-i", str(device_id), "-ping", *family, address, timeout_s=timeout_s)
    counts = _LOSS.search(result.stdout)
    text = result.stdout + result.stderr
    if counts:
        whole = counts[1] == counts[2] != "0"
        fault = "" if whole else f"{counts[2]} of {counts[1]} packets came back"
        return Ping(device_id=device_id, address=address, lost=not whole, fault=fault)
    if "recv time out" in text or "Unreachable" in text:
        return Ping(device_id=device_id, address=address, lost=True, fault="no packet came back")
    fault = result.fault or "hccn_tool printed no count of packets"
    return Ping(device_id=device_id, address=address, fault=fault)


def _after(text: str, key: str) -> str:
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == key:
            return value.strip()
    return ""
