"""The checks in their order: the cheap ones, those of a host, and those of the job as a whole."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from launcher.cluster.discover import local_cluster
from launcher.cluster.discover.host import Card, HostReport, host_root, look_around
from launcher.cluster.discover.software import read_software
from launcher.cluster.model import Cluster
from launcher.doctor import (
    cann,
    cards,
    holders,
    hosts,
    job,
    network,
    plan,
    software,
    storage,
    system,
    tuning,
    variables,
)
from launcher.doctor.findings import Finding, JobNeeds, worst
from launcher.errors import HostError
from launcher.upstream.versions import installed


def cheap_checks(cluster: Cluster, needs: JobNeeds) -> list[Finding]:
    """Return the findings of the checks that take milliseconds, for a job on ``cluster``; they run no program."""
    findings = list(_software_checks(needs, cluster.kind, ascend=cluster.target == "Ascend"))
    if cluster.target == "Ascend":
        findings += holders.check_holders([device.device_id for device in cluster.hosts[0].devices], host_root())
        findings += cards.check_bfloat16(needs, {cluster.kind})
    findings += job.check_degrees(needs, cluster.num_devices)
    findings += job.check_files(needs)
    findings += job.check_base(needs)
    findings += hosts.check_inventory(needs)
    findings += _system_checks(needs, cards=cluster.num_devices, ascend=cluster.target == "Ascend")
    return findings


def all_checks(needs: JobNeeds) -> Iterator[Finding]:
    """Yield the findings of every check of this host and the job on it, which takes some seconds on a full server."""
    report = look_around(host_root())
    yield from host_checks(needs, report)
    yield from job_checks(needs, len(report.usable) or _cpu_cards(needs))


def host_checks(needs: JobNeeds, report: HostReport) -> Iterator[Finding]:
    """Yield the findings of the checks of this host, and of the files that the job reads on it."""
    root = host_root()
    ascend = bool(report.cards) or (root / "usr/local/Ascend").exists()
    yield from _software_checks(needs, report.kind, ascend=ascend)
    yield from cards.check_cards(report, needs, root)
    if report.cards:
        yield from network.check_network(report, needs)
    count = needs.cards or len(report.usable) or _cpu_cards(needs)
    yield from _system_checks(needs, cards=count, ascend=ascend, measure=True)
    yield from _speed_checks(cards.chosen(report.usable, needs), count)
    yield from job.check_files(needs)


def job_checks(needs: JobNeeds, available: int, *, with_table: bool = True) -> Iterator[Finding]:
    """Yield the findings on the job as a whole, on its inventory's hosts or ``available`` devices of this one.

    ``with_table``: the rank table too, for which the cards' addresses must be known.
    """
    yield from hosts.check_inventory(needs)
    yield from job.check_degrees(needs, needs.hosts.num_devices if needs.hosts else available)
    yield from job.check_base(needs)
    yield from _plan_checks(needs, with_table=with_table)


def _software_checks(needs: JobNeeds, kind: str | None, *, ascend: bool) -> Iterator[Finding]:
    mindspore = installed("mindspore")
    yield software.check_python()
    yield software.check_packages(mindspore, installed("mindformers"))
    if ascend:
        yield from software.check_triple(read_software(host_root()), mindspore)
        yield from cann.check_firmware(host_root())
        yield from cann.check_sourced(host_root())
        yield from cann.check_kernels(host_root(), kind)
    yield from software.check_programs(needs)


def _plan_checks(needs: JobNeeds, *, with_table: bool) -> Iterator[Finding]:
    """Check the plan, and the rank table, on the inventory's hosts or this one; another check finds a lack of cards."""
    cluster = needs.hosts
    if cluster is None:
        with contextlib.suppress(HostError):
            cluster = local_cluster(needs.cards)
    if cluster is None:
        return
    if needs.spec is not None and worst(job.check_degrees(needs, cluster.num_devices)) == "pass":
        yield plan.check_plan(needs.spec, cluster)
    if with_table and cluster.target == "Ascend":
        yield job.check_rank_table(cluster)


def _speed_checks(chosen: tuple[Card, ...], ranks: int) -> Iterator[Finding]:
    """Check what makes a healthy host slow; clocks and NUMA nodes matter beside cards alone."""
    if chosen:
        yield from tuning.check_governor(host_root())
        yield from tuning.check_binding(chosen, host_root())
    yield from tuning.check_host_memory(ranks, host_root())


def _system_checks(needs: JobNeeds, *, cards: int, ascend: bool, measure: bool = False) -> Iterator[Finding]:
    name = socket.gethostname()
    yield system.check_host_name(system.resolve(name), name, several=needs.several)
    yield system.check_scheduler_port(needs.scheduler_port)
    if ascend:
        yield from system.check_hccl_ports(host_root())
    yield system.check_shared_memory(host_root())
    yield from system.check_limits(cards)
    yield from storage.check_storage(needs, cards, measure=measure)
    yield from variables.check_environment()
    yield from variables.check_switches(ascend=ascend)
    if ascend:
        yield from variables.check_interface(host_root())
        yield from variables.check_whitelist()


def _cpu_cards(needs: JobNeeds) -> int:
    from launcher.cluster.discover import cpu_device_count

    return needs.cards or cpu_device_count()
