"""Checks of the cards' own network: addresses, networks, links and the TLS switch."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from launcher.cluster.discover.hccn import HccnConf, Port, Tls, read_link, read_tls
from launcher.cluster.discover.host import HostReport
from launcher.cluster.discover.programs import default_timeout_s
from launcher.cluster.model import KINDS
from launcher.common.ranges import spans
from launcher.doctor.cards import chosen
from launcher.doctor.findings import Finding, JobNeeds, failed, passed, warned

# More at a time make hccn_tool say that it is busy.
_AT_A_TIME = 4
_TIMEOUT_S = 10.0


def check_network(report: HostReport, needs: JobNeeds) -> Iterator[Finding]:
    """Check that hccn.conf is readable, every card has an address, and its link is up."""
    cards = chosen(report.usable, needs)
    ids = [card.device_id for card in cards]
    kind = KINDS.get(report.kind or "")
    yield check_addresses(report.hccn, ids, required=needs.several or (kind is not None and kind.ip_needed))
    yield from check_segments(report.hccn, ids, report.kind)
    if ids:
        timeout_s = min(_TIMEOUT_S, default_timeout_s())
        with ThreadPoolExecutor(max_workers=_AT_A_TIME) as pool:
            links = list(pool.map(lambda ident: read_link(ident, timeout_s=timeout_s), ids))
        yield links_finding(links)
        # A tool that hangs would for this too.
        yield from tls_finding(read_switches([link.device_id for link in links if not link.fault]))


def check_addresses(hccn: HccnConf, ids: list[int], *, required: bool) -> Finding:
    """Check that every card has an address. ``required``: several hosts, or cards that want one even on one host."""
    complain = failed if required else warned
    if hccn.bad_lines:
        return failed("hccn", f"{hccn.bad_lines[0]} makes no sense", "correct that line of hccn.conf")
    twice = [address for address, count in Counter(hccn.addresses.values()).items() if count > 1]
    if twice:
        owners = [device_id for device_id, address in hccn.addresses.items() if address == twice[0]]
        what = f"cards {spans(owners)} have one address, {twice[0]} (EI0014)"
        return failed("hccn", what, f"sudo hccn_tool -i {owners[-1]} -ip -s address A netmask M")
    missing = [device_id for device_id in ids if device_id not in hccn.addresses]
    if not missing:
        return passed("hccn", f"{len(ids)} cards have an address")
    why = hccn.fault or f"card {spans(missing)} has no address"
    if "cannot be read" in why:
        return complain("hccn", why, "sudo chmod 644 /etc/hccn.conf, or run as root")
    need = "" if required else " (needed with several hosts)"
    return complain("hccn", why + need, f"sudo hccn_tool -i {missing[0]} -ip -s address A netmask M")


def links_finding(ports: Iterable[Port]) -> Finding:
    """Check that every network port that hccn_tool was asked about is up."""
    ports = list(ports)
    down = [port.device_id for port in ports if port.link == "DOWN"]
    unknown = [port for port in ports if port.fault]
    if down:
        return failed(
            "link",
            f"the link of card {spans(down)} is down (EJ0002)",
            f"hccn_tool -i {down[0]} -link -g; check cable and switch",
        )
    if unknown:
        ids = spans([port.device_id for port in unknown])
        return warned(
            "link", f"the link of card {ids} is not known: {unknown[0].fault}", "as root: hccn_tool -i N -link -g"
        )
    return passed("link", f"{len(ports)} links up")


def read_switches(ids: list[int]) -> list[Tls]:
    """Ask hccn_tool for the TLS switches of ``ids``."""
    timeout_s = min(_TIMEOUT_S, default_timeout_s())
    with ThreadPoolExecutor(max_workers=_AT_A_TIME) as pool:
        return list(pool.map(lambda ident: read_tls(ident, timeout_s=timeout_s), ids))


def tls_finding(switches: Iterable[Tls]) -> Iterator[Finding]:
    """Check that the TLS switch is the same on all cards: those that differ cannot connect (EI0006, EI0016)."""
    known = [switch for switch in switches if switch.on is not None]
    on = [switch.device_id for switch in known if switch.on]
    off = [switch.device_id for switch in known if not switch.on]
    if on and off:
        what = f"the TLS switch is on for card {spans(on)} and off for card {spans(off)} (EI0006)"
        yield failed("tls", what, f"for i in {' '.join(map(str, on))}; do sudo hccn_tool -i $i -tls -s enable 0; done")
    elif known:
        yield passed("tls", f"{'on' if on else 'off'} on {len(known)} cards")
    # All unknown: a user who is not root, or cards without RoCE; the check of the links says so.


def check_segments(hccn: HccnConf, ids: list[int], kind: str | None) -> Iterator[Finding]:
    """Check the networks of a first-generation 910 server: N and N + 4 share one, 0 to 3 have one each."""
    networks = {ident: network for ident in ids if (network := network_of(hccn.addresses, hccn.netmasks, ident))}
    if kind != "910" or sorted(networks) != list(range(8)):
        return
    apart = [ident for ident in range(4) if networks[ident] != networks[ident + 4]]
    shared = [ident for ident, count in Counter(networks[ident] for ident in range(4)).items() if count > 1]
    fix = "sudo hccn_tool -i N -ip -s address A netmask M, as the SMP mode wants it; nothing to do in AMP mode"
    if apart:
        pair = f"{networks[apart[0]]}, {networks[apart[0] + 4]}"
        what = f"cards {apart[0]} and {apart[0] + 4} are not in one network: {pair}"
        yield warned("segments", what, fix)
    elif shared:
        yield warned("segments", f"two of cards 0-3 are in one network, {shared[0]}", fix)
    else:
        yield passed("segments", "cards N and N + 4 share a network, 4 networks")


def network_of(addresses: dict[int, str], netmasks: dict[int, str], device_id: int) -> str | None:
    """Return the network of a card, "10.1.0.0/24"; None where address or netmask is not known."""
    if device_id not in addresses or device_id not in netmasks:
        return None
    try:
        return str(ipaddress.ip_interface(f"{addresses[device_id]}/{netmasks[device_id]}").network)
    except ValueError:
        return None
