"""Checks of the hosts of an inventory: names that occur twice, clocks that differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from launcher.doctor.findings import Finding, JobNeeds, failed, passed, warned
from launcher.doctor.fleet import Checkup

# The first failing rank is found by the time of its messages: clocks must agree better than ranks fail apart.
_SKEW_S = 1.0


def check_inventory(needs: JobNeeds) -> Iterator[Finding]:
    """Check that the inventory can be read, and no host in it occurs twice."""
    if needs.inventory_fault:
        yield failed("inventory", needs.inventory_fault, "correct the inventory")
    if needs.hosts is None:
        return
    names = Counter(host.name for host in needs.hosts.hosts) + Counter()
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        # MindSpore counts local ranks by host name: two hosts of one name share their devices.
        yield failed("inventory", f"host name {', '.join(twice[:4])} stands twice", "give each host its own name")
    else:
        hosts = needs.hosts
        yield passed("inventory", f"{len(hosts.hosts)} hosts, {hosts.num_devices} devices of kind {hosts.kind}")


def clocks_finding(checkups: Sequence[Checkup]) -> Finding:
    """Return the finding on the measured clocks."""
    known = [host for host in checkups if not host.fault]
    apart = [host for host in known if abs(host.ahead_s) > _SKEW_S + host.error_s]
    if apart:
        worst = max(apart, key=lambda host: abs(host.ahead_s))
        direction = "ahead" if worst.ahead_s > 0 else "behind"
        what = f"{len(apart)} of {len(known)} clocks differ; {worst.address} is {abs(worst.ahead_s):.1f} s {direction}"
        return warned("clocks", what, f"ssh {worst.address} sudo chronyc makestep")
    return passed("clocks", f"{len(known)} hosts within {_SKEW_S:g} s")


def reached_finding(checkups: Sequence[Checkup]) -> Finding:
    """Return the finding on which hosts answered over ssh."""
    silent = [host for host in checkups if host.fault]
    if not silent:
        return passed("hosts", f"{len(checkups)} of {len(checkups)} hosts answer")
    first = silent[0]
    what = f"{len(silent)} of {len(checkups)} hosts do not answer: {first.address}: {first.fault}"
    return failed("hosts", what, _how_to_reach(first))


def _how_to_reach(host: Checkup) -> str:
    """Return what to type about a host that does not answer, by what ssh said."""
    if "denied" in host.fault:
        return f"ssh-copy-id {host.address}"
    if "verification failed" in host.fault:
        return f"ssh {host.address}, and compare its key"
    if "launcher" in host.fault or "python" in host.fault:
        return f"install this launcher on {host.address}, under the same path"
    return f"ping {host.address}: is the address right, is the host up, does its sshd run?"
