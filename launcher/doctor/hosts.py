"""Checks of the hosts of an inventory: names that occur twice, clocks that differ."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from launcher.cluster.discover.programs import run_program
from launcher.cluster.model import Cluster
from launcher.cluster.rank_table.against_host import own_names
from launcher.doctor.findings import Finding, JobNeeds, failed, passed, warned

# The first failing rank is found by the time of its messages: clocks must agree better than ranks fail apart.
_SKEW_S = 1.0
_SSH_TIMEOUT_S = 5
_AT_A_TIME = 32


@dataclass(frozen=True, kw_only=True)
class Skew:
    """The clock of ``address`` minus ours, with its error ``error_s``; ``fault``: the reason why it is unknown."""

    address: str
    ahead_s: float = 0.0
    error_s: float = 0.0
    fault: str = ""


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


def check_others(hosts: Cluster, measure: Callable[[str], Skew] | None = None) -> Iterator[Finding]:
    """Check that all other hosts answer over ssh, and that the clocks of those that do agree with this host's."""
    own = own_names()
    others = [host.address for host in hosts.hosts if not own & {host.address, host.name}]
    if not others:
        yield passed("hosts", "no other host")
        return
    with ThreadPoolExecutor(max_workers=_AT_A_TIME) as pool:
        skews = list(pool.map(measure or ssh_skew, others))
    yield reached_finding(skews)
    if any(not skew.fault for skew in skews):
        yield clocks_finding(skews)


def clocks_finding(skews: list[Skew]) -> Finding:
    """Return the finding on the measured clocks."""
    known = [skew for skew in skews if not skew.fault]
    apart = [skew for skew in known if abs(skew.ahead_s) > _SKEW_S + skew.error_s]
    if apart:
        worst = max(apart, key=lambda skew: abs(skew.ahead_s))
        direction = "ahead" if worst.ahead_s > 0 else "behind"
        what = f"{len(apart)} of {len(known)} clocks differ; {worst.address} is {abs(worst.ahead_s):.1f} s {direction}"
        return warned("clocks", what, f"ssh {worst.address} sudo chronyc makestep")
    return passed("clocks", f"{len(known)} hosts within {_SKEW_S:g} s")


def reached_finding(skews: list[Skew]) -> Finding:
    """Return the finding on which hosts answered over ssh."""
    silent = [skew for skew in skews if skew.fault]
    if not silent:
        return passed("hosts", f"{len(skews)} of {len(skews)} other hosts answer over ssh")
    first = silent[0]
    what = f"{len(silent)} of {len(skews)} other hosts do not answer over ssh: {first.address}: {first.fault}"
    return failed("hosts", what, _how_to_reach(first))


def _how_to_reach(skew: Skew) -> str:
    """Return what to type about a host that does not answer, by what ssh said."""
    if "denied" in skew.fault:
        return f"ssh-copy-id {skew.address}"
    if "verification failed" in skew.fault:
        return f"ssh {skew.address}, and compare its key"
    return f"ping {skew.address}: is the address right, is the host up, does its sshd run?"


def ssh_skew(address: str) -> Skew:
    """Ask ``address`` for its time over ssh, without ever asking for a password."""
    options = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={_SSH_TIMEOUT_S}")
    before = time.time()
    result = run_program("ssh", *options, "--", address, "date", "+%s.%N", timeout_s=_SSH_TIMEOUT_S + 5)
    after = time.time()
    try:
        remote = float(result.stdout.strip())
    except ValueError:
        return Skew(address=address, fault=result.fault or "it did not tell its time")
    return Skew(address=address, ahead_s=remote - (before + after) / 2, error_s=(after - before) / 2)
