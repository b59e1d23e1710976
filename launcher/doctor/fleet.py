"""Checks over all hosts: what must be equal, what must differ, and who reaches whom."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from launcher.cluster.discover.hccn import Ping
from launcher.cluster.model import Cluster, Host
from launcher.doctor.between import Reached
from launcher.doctor.facts import HostFacts
from launcher.doctor.findings import Finding, Status, failed, passed, warned, worst
from launcher.upstream.versions import release_key

# Different ones of these work together as a rule; of the others they do not.
_MAY_DIFFER = ("driver", "firmware")
# Up to so many hosts every pair pings; of more, each host pings the next ones, so that every port is tried both ways.
_ALL_PAIRS = 4
_NEXT = 3


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """The checks of one host of the inventory; ``fault``: the reason why there are none.

    ``ahead_s``: its clock minus ours, give or take ``error_s``.
    """

    name: str
    address: str
    findings: tuple[Finding, ...] = ()
    facts: HostFacts | None = None
    ahead_s: float = 0.0
    error_s: float = 0.0
    fault: str = ""

    @property
    def status(self) -> Status:
        return "fail" if self.fault else worst(self.findings)


@dataclass(frozen=True, kw_only=True)
class Probes:
    """The probes between hosts, by address of the host that made them.

    ``ports``: those that each listened on; ``faults``: the reasons why hosts did not make theirs.
    """

    ports: Mapping[str, Sequence[int]] = field(default_factory=dict)
    unreached: Mapping[str, Sequence[Reached]] = field(default_factory=dict)
    pings: Mapping[str, Sequence[Ping]] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)


def completed(cluster: Cluster, hosts: Sequence[Checkup]) -> Cluster | None:
    """Return ``cluster`` with what its hosts know of their cards, as the job's agents would tell it.

    None if a host did not answer that should have told its addresses: the rank table cannot be judged.
    """
    known = {host.address: host.facts for host in hosts if host.facts is not None}
    if any(
        host.address not in known and not all(device.device_ip for device in host.devices) for host in cluster.hosts
    ):
        return None
    return replace(cluster, hosts=tuple(_completed(host, known.get(host.address)) for host in cluster.hosts))


def _completed(host: Host, facts: HostFacts | None) -> Host:
    if facts is None:
        return host
    devices = tuple(
        replace(
            device,
            device_ip=device.device_ip or facts.addresses.get(str(device.device_id)),
            super_device_id=facts.sdids.get(str(device.device_id), device.super_device_id),
        )
        for device in host.devices
    )
    return replace(host, devices=devices, super_pod_id=host.super_pod_id or facts.super_pod_id)


def compare(cluster: Cluster, hosts: Sequence[Checkup]) -> Iterator[Finding]:
    """Yield the findings on the facts of all hosts that answered."""
    known = [(host, host.facts) for host in hosts if host.facts is not None]
    if len(known) < 2:
        return
    yield names_finding([facts for _, facts in known])
    yield from versions_findings(known)
    yield from tls_over_hosts(known)
    yield from addresses_finding(cluster, known)
    yield from networks_finding(known)


def names_finding(facts: Sequence[HostFacts]) -> Finding:
    """Check that the hosts' own names differ: MindSpore counts the ranks of a host by its name."""
    twice = [name for name, count in Counter(item.name for item in facts).items() if count > 1]
    if twice:
        what = f"{', '.join(twice[:4])} is the name of several hosts: their ranks would share cards"
        return failed("host-names", what, "sudo hostnamectl set-hostname NAME, another on each")
    return passed("host-names", f"{len(facts)} different names")


def versions_findings(known: Sequence[tuple[Checkup, HostFacts]]) -> Iterator[Finding]:
    """Check that versions and kind of card are the same on all hosts."""
    apart = []
    for name in ("kind", *sorted({name for _, facts in known for name in facts.versions})):
        groups = _grouped(known, name)
        if len(groups) > 1:
            apart.append(name)
            yield _differing(name, groups)
    if not apart:
        first = known[0][1]
        shown = ", ".join(f"{name} {version}" for name, version in first.versions.items())
        yield passed("same-versions", shown)


def _grouped(known: Sequence[tuple[Checkup, HostFacts]], name: str) -> dict[str, list[str]]:
    groups = defaultdict(list)
    for host, facts in known:
        value = facts.kind or "none" if name == "kind" else facts.versions.get(name, "none")
        groups[value].append(host.name)
    return groups


def _differing(name: str, groups: Mapping[str, Sequence[str]]) -> Finding:
    """Return the finding on a value that differs, the rarest and oldest first: that is as a rule the wrong one."""
    ordered = sorted(groups.items(), key=lambda group: (len(group[1]), release_key(group[0])))
    shown = "; ".join(f"{value} on {few(names)}" for value, names in ordered)
    what = f"{'kind of card' if name == 'kind' else name}: {shown}"
    fix = f"install {name} {ordered[-1][0]} on {few(ordered[0][1])}" if name != "kind" else "name hosts of one kind"
    return (warned if name in _MAY_DIFFER else failed)("same-versions", what, fix)


def few(names: Sequence[str], most: int = 4) -> str:
    """Return names for people: the first ones, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def tls_over_hosts(known: Sequence[tuple[Checkup, HostFacts]]) -> Iterator[Finding]:
    """Check that the TLS switch is the same on all hosts; one that differs among a host's cards is its own finding."""
    on = [host.name for host, facts in known if facts.tls and all(facts.tls.values())]
    off = [host.name for host, facts in known if facts.tls and not any(facts.tls.values())]
    if on and off:
        what = f"the TLS switch is on on {few(on)} and off on {few(off)} (EI0006)"
        fix = "on each host where it is on: for i in 0 1 2 3 4 5 6 7; do sudo hccn_tool -i $i -tls -s enable 0; done"
        yield failed("same-tls", what, fix)
    elif on or off:
        yield passed("same-tls", f"{'on' if on else 'off'} on {len(on or off)} hosts")


def addresses_finding(cluster: Cluster, known: Sequence[tuple[Checkup, HostFacts]]) -> Iterator[Finding]:
    """Check that no two cards of the job have one address, and the inventory has the addresses that the cards have."""
    owners = defaultdict(list)
    for host, facts in known:
        for ident, address in facts.addresses.items():
            owners[address].append(f"card {ident} of {host.name}")
    twice = next(((address, cards) for address, cards in owners.items() if len(cards) > 1), None)
    wrong = next(_not_as_listed(cluster, known), None)
    if twice:
        what = f"{twice[0]} is the address of {' and of '.join(twice[1][:2])} (EI0014)"
        yield failed("card-addresses", what, "sudo hccn_tool -i N -ip -s address A netmask M, another on each card")
    elif wrong:
        yield failed("card-addresses", wrong, "correct device_ip in the inventory, or leave it out to have it read")
    elif owners:
        yield passed("card-addresses", f"{len(owners)} cards, each with its own")


def _not_as_listed(cluster: Cluster, known: Sequence[tuple[Checkup, HostFacts]]) -> Iterator[str]:
    found = {host.address: facts.addresses for host, facts in known}
    for host in cluster.hosts:
        for device in host.devices:
            real = found.get(host.address, {}).get(str(device.device_id))
            if real and device.device_ip and real != device.device_ip:
                yield (
                    f"card {device.device_id} of {host.name} has the address {real}, in the inventory "
                    f"{device.device_ip} (EJ0004)"
                )


def networks_finding(known: Sequence[tuple[Checkup, HostFacts]]) -> Iterator[Finding]:
    """Check that cards of the same place are in one network on all hosts, or have gateways; the pings try it."""
    if any(facts.routed or not facts.networks for _, facts in known):
        return
    first, reference = known[0]
    for host, facts in known[1:]:
        for ident, network in facts.networks.items():
            ours = reference.networks.get(ident)
            if ours and network != ours:
                what = f"card {ident} is in {ours} on {first.name} and in {network} on {host.name}, without a gateway"
                fix = f"sudo hccn_tool -i {ident} -gateway -s gateway G, or addresses of one network"
                yield warned("networks", what, fix)
                return
    yield passed("networks", f"{len(set(reference.networks.values()))} networks, the same on {len(known)} hosts")


# ---------------------------------------------------------------------------------------------- who reaches whom


def tcp_finding(hosts: Sequence[Checkup], probes: Probes) -> Iterator[Finding]:
    """Check that every host connects to every other one's ports; firewalls drop or refuse what they do not know."""
    names = {host.address: host.name for host in hosts}
    for address, fault in probes.faults.items():
        yield warned("probes", f"{names[address]} did not try to reach the others: {fault}", "launcher doctor again")
    if len(probes.ports) < 2:
        return
    faults = [(source, item) for source, items in probes.unreached.items() for item in items]
    ports = sorted({port for own in probes.ports.values() for port in own})
    if not faults:
        yield passed("tcp", f"{len(probes.ports)} hosts connect to each other on ports {_listed(ports)}")
        return
    source, first = faults[0]
    what = f"{names[source]} does not reach {names[first.address]} on port {first.port}: {first.fault}"
    rest = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
    fix = (
        f"on {names[first.address]}: sudo firewall-cmd --list-all, or sudo iptables -S; let the job's hosts through on "
        "all ports from 1024 on: HCCL's 60000-60031, the scheduler's, and free ones"
    )
    bad = {(one, item.address) for one, item in faults}
    cells = {pair: "fail" if pair in bad else "ok" for pair in _pairs(list(probes.ports))}
    yield failed("tcp", what + rest, fix, matrix(list(probes.ports), names, cells))


def _listed(ports: Sequence[int]) -> str:
    return ", ".join(map(str, ports[:6])) + (" and more" if len(ports) > 6 else "")


def _pairs(addresses: Sequence[str]) -> list[tuple[str, str]]:
    return [(one, other) for one in addresses for other in addresses if one != other]


def planned_pings(hosts: Sequence[Checkup]) -> dict[str, list[tuple[int, str]]]:
    """Return the pings that each host makes, by its address: each card to the card of the same place on other hosts."""
    known = [(host, host.facts.addresses) for host in hosts if host.facts is not None and host.facts.addresses]
    count = len(known)
    steps = range(1, count if count <= _ALL_PAIRS else _NEXT + 1)
    plan: dict[str, list[tuple[int, str]]] = {}
    for number, (host, own) in enumerate(known):
        others = [known[(number + step) % count][1] for step in steps]
        plan[host.address] = [
            (int(ident), address)
            for other in others
            for ident, address in zip(sorted(own, key=int), _by_place(other), strict=False)
        ]
    return plan


def _by_place(addresses: Mapping[str, str]) -> list[str]:
    return [addresses[ident] for ident in sorted(addresses, key=int)]


def pings_finding(hosts: Sequence[Checkup], probes: Probes) -> Iterator[Finding]:
    """Check that the cards of each host reach those of the others."""
    names = {host.address: host.name for host in hosts}
    owner = {
        address: host.address for host in hosts if host.facts is not None for address in host.facts.addresses.values()
    }
    made = [(source, item) for source, items in probes.pings.items() for item in items]
    lost = [(source, item) for source, item in made if item.lost]
    unknown = [(source, item) for source, item in made if item.lost is None]
    if not made:
        return
    if lost:
        source, first = lost[0]
        way = f"{first.address} of {names[owner[first.address]]}"
        count = f"{len(lost)} of {len(made)} pairs"
        what = f"card {first.device_id} of {names[source]} does not reach {way}: {first.fault} ({count})"
        command = f"hccn_tool -i {first.device_id} -ping -g address {first.address}"
        fix = f"on {names[source]}: {command}, and -link -g; then look at switch, VLAN and gateway"
        yield failed("card-ping", what, fix, matrix(list(probes.pings), names, _cells(made, owner)))
    elif unknown:
        source, first = unknown[0]
        what = f"{len(unknown)} of {len(made)} pairs of cards are not known: {names[source]}: {first.fault}"
        yield warned("card-ping", what, f"as root: hccn_tool -i {first.device_id} -ping -g address {first.address}")
    else:
        yield passed("card-ping", f"{len(made)} pairs of cards on different hosts reach each other")


def _cells(made: Sequence[tuple[str, Ping]], owner: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Return "7/8" for each pair of hosts: pings that came back, of those made."""
    counts: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for source, item in made:
        counts[source, owner[item.address]].append(item.lost is False)
    return {pair: f"{sum(back)}/{len(back)}" for pair, back in counts.items()}


def matrix(addresses: Sequence[str], names: Mapping[str, str], cells: Mapping[tuple[str, str], str]) -> tuple[str, ...]:
    """Return a table as lines, a row for each host that asks: "from \\\\ to", a column for each that is asked."""
    width = max(len(names[address]) for address in addresses)
    columns = [max(len(names[address]), 4) for address in addresses]
    head = " ".join(f"{names[address]:>{size}}" for address, size in zip(addresses, columns, strict=True))
    rows = [f"{'from | to':<{max(width, 9)}} {head}"]
    for one in addresses:
        row = " ".join(
            f"{cells.get((one, other), '-'):>{size}}" for other, size in zip(addresses, columns, strict=True)
        )
        rows.append(f"{names[one]:<{max(width, 9)}} {row}")
    return tuple(rows)
