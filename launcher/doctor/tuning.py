"""Checks of what makes a healthy host slow: clocks of the CPU, CPUs far from the cards, reserved and refused memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from launcher.cluster.discover.host import Card
from launcher.cluster.discover.software import read_text
from launcher.common.ranges import numbers, spans
from launcher.doctor.findings import Finding, passed, warned

# With these drivers "powersave" is the usual setting and clocks rise under load all the same.
_CLEVER_DRIVERS = ("intel_pstate", "amd-pstate", "amd-pstate-epp")
_GIB_A_CARD = 16


def check_governor(root: Path) -> Iterator[Finding]:
    """Check that no governor holds the CPUs at their lowest clock."""
    found: Counter[str] = Counter()
    for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"):
        driver = (read_text(path.with_name("scaling_driver")) or "").strip()
        if driver not in _CLEVER_DRIVERS:
            found[(read_text(path) or "").strip()] += 1
    if found["powersave"]:
        what = (
            f"{found['powersave']} of {found.total()} CPUs have the governor powersave: they stay at their lowest clock"
        )
        yield warned("governor", what, "sudo cpupower frequency-set -g performance")
    elif found:
        yield passed("governor", ", ".join(sorted(found)))


def check_binding(cards: tuple[Card, ...], root: Path, mine: set[int] | None = None) -> Iterator[Finding]:
    """Check that this process may use CPUs of each NUMA node that has a card. ``mine``: by default its affinity."""
    mine = os.sched_getaffinity(0) if mine is None else mine
    nodes = {card.device_id: node for card in cards if (node := _node_of(card, root)) is not None}
    cpus = {node: _cpus(root, node) for node in set(nodes.values())}
    far = sorted(ident for ident, node in nodes.items() if cpus[node] and not cpus[node] & mine)
    if far:
        cpus_here = spans(sorted(mine))
        what = f"card {spans(far)}: this process may use no CPU of the same NUMA node, only CPUs {cpus_here}"
        yield warned("numa", what, "start the container without --cpuset-cpus, the job without taskset and numactl")
    elif cards and len(mine) < len(cards):
        yield warned(
            "numa",
            f"{len(cards)} ranks share {len(mine)} CPUs",
            "allow this process more CPUs (taskset, cpuset, --cpus)",
        )
    elif nodes:
        yield passed("numa", f"CPUs of all {len(cpus)} NUMA nodes that have cards can be used")


def _node_of(card: Card, root: Path) -> int | None:
    """Return the NUMA node of a card by its PCI address; None where npu-smi shows none or there is one node."""
    bus = card.chip.bus_id.lower() if card.chip else ""
    text = (read_text(root / "sys/bus/pci/devices" / bus / "numa_node") or "").strip() if bus else ""
    return int(text) if text.isdecimal() else None


def _cpus(root: Path, node: int) -> set[int]:
    text = (read_text(root / f"sys/devices/system/node/node{node}/cpulist") or "").strip()
    try:
        return set(numbers(text))
    except ValueError:
        return set()


def check_host_memory(cards: int, root: Path) -> Iterator[Finding]:
    """Check that host memory is neither held back in huge pages that nobody uses, nor refused to ``cards`` ranks."""
    memory = _meminfo(root)
    total = memory.get("MemTotal", 0)
    held = memory.get("HugePages_Free", 0) * memory.get("Hugepagesize", 0)
    if total and held > total // 4:
        what = f"{held >> 20} of {total >> 20} GiB are held back in huge pages that nobody uses"
        yield warned("huge-pages", what, "sudo sysctl -w vm.nr_hugepages=0, if no other program wants them")
    elif total:
        yield passed("huge-pages", f"{held >> 20} of {total >> 20} GiB held back")
    if (read_text(root / "proc/sys/vm/overcommit_memory") or "").strip() != "2":
        return
    left = (memory.get("CommitLimit", 0) - memory.get("Committed_AS", 0)) >> 20
    if left < cards * _GIB_A_CARD:
        what = f"vm.overcommit_memory is 2, and {max(0, left)} GiB may still be asked for by {cards} ranks"
        yield warned("overcommit", what, "sudo sysctl -w vm.overcommit_memory=0")
    else:
        yield passed("overcommit", f"{left} GiB may be asked for")


def _meminfo(root: Path) -> dict[str, int]:
    """Return the numbers of /proc/meminfo: KiB, or pages for HugePages_*."""
    found = {}
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        number = value.split()[0] if value.split() else ""
        if number.isdecimal():
            found[key] = int(number)
    return found
