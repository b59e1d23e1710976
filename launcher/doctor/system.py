"""Checks of the host itself: name, ports, shared memory and limits."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.cluster.discover.software import read_text
from launcher.common.ports import is_free
from launcher.doctor.findings import Finding, failed, passed, warned
from launcher.doctor.storage import size

# HCCL listens on this many ports from HCCL_IF_BASE_PORT (HCCL user guide, hccl_env).
_HCCL_PORTS = 32
_HCCL_BASE = 60000
_HCCL_BASE_RANGE = range(1024, 65521)
# A rank of MindSpore opens some hundred files, its dataset workers and TCP servers more.
_FILES_A_RANK = 512
_FILES_LEAST = 4096
_PROCESSES_A_RANK = 128
# MindDataset's workers pass batches through /dev/shm; Docker's default of 64 MiB is too little.
_SHM_LEAST = 1 << 30


def check_host_name(addresses: list[str] | None, name: str, *, several: bool) -> Finding:
    """Check that the host's name resolves to an address that others reach. ``addresses``: None if it does not."""
    complain = failed if several else warned
    fix = f"add a line to /etc/hosts: <address of this host> {name}"
    if addresses is None:
        return complain("host-name", f"{name} cannot be resolved", fix)
    outside = [address for address in addresses if not address.startswith("127.") and address != "::1"]
    if outside:
        return passed("host-name", f"{name} is {outside[0]}")
    need = "" if several else " (other hosts would need more)"
    return complain("host-name", f"{name} is {addresses[0]}, the loopback{need}", fix)


def resolve(name: str) -> list[str] | None:
    """Return the addresses of ``name``, or None."""
    try:
        return list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(name, None)))
    except (OSError, UnicodeError):
        return None


def check_scheduler_port(port: int | None) -> Finding:
    """Check that the port of MindSpore's scheduler is free; if none is named, a free one is picked at the start."""
    if port is None:
        return passed("scheduler-port", "a free port will be picked")
    if is_free(port, ""):
        return passed("scheduler-port", f"port {port} is free")
    return failed("scheduler-port", f"port {port} is in use", f"ss -ltnp 'sport = :{port}', or pass another --port")


def hccl_ports(env: Mapping[str, str]) -> range | None:
    """Return the host ports that HCCL will listen on; None when HCCL_IF_BASE_PORT is not 1024 to 65520."""
    named = env.get("HCCL_IF_BASE_PORT", str(_HCCL_BASE))
    if not (named.isascii() and named.isdecimal() and int(named) in _HCCL_BASE_RANGE):
        return None
    return range(int(named), int(named) + min(_HCCL_PORTS, 65536 - int(named)))


def check_hccl_ports(root: Path, env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Check that HCCL's host ports are free and the kernel does not hand them out."""
    ports = hccl_ports(env)
    if ports is None:
        what = f"HCCL_IF_BASE_PORT={env['HCCL_IF_BASE_PORT']!r} is not 1024 to 65520 (EI0001)"
        yield failed("hccl-ports", what, "unset HCCL_IF_BASE_PORT")
        return
    span = f"{ports[0]}-{ports[-1]}"
    taken = [port for port in ports if not is_free(port, "")]
    if taken:
        fix = f"ss -ltnp 'sport = :{taken[0]}', or export HCCL_IF_BASE_PORT=..."
        yield failed("hccl-ports", f"port {taken[0]} of HCCL's {span} is in use (EI0019)", fix)
    elif _handed_out(ports, root):
        fix = f"sudo sysctl -w net.ipv4.ip_local_reserved_ports={span}"
        yield warned("hccl-ports", f"{span} are free, but the system may hand them out to any program", fix)
    else:
        yield passed("hccl-ports", f"{span} are free")


def _handed_out(ports: range, root: Path) -> bool:
    """Return True if the range for outgoing connections overlaps ``ports`` and they are not reserved."""
    ends = (read_text(root / "proc/sys/net/ipv4/ip_local_port_range") or "").split()
    if len(ends) != 2 or not all(end.isdecimal() for end in ends):
        return False
    reserved = read_text(root / "proc/sys/net/ipv4/ip_local_reserved_ports") or ""
    handed = range(max(int(ends[0]), ports[0]), min(int(ends[1]), ports[-1]) + 1)
    return any(not _in_spans(port, reserved.strip()) for port in handed)


def _in_spans(port: int, text: str) -> bool:
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal() and int(first) <= port <= int(last or first):
            return True
    return False


def check_shared_memory(root: Path) -> Finding:
    """Check that shared memory is large enough for the dataset's workers."""
    place = root / "dev" / "shm"
    try:
        stat = os.statvfs(place)
    except OSError as error:
        return warned("shm", f"{place}: {error.strerror}", f"mount -t tmpfs tmpfs {place}")
    total, free = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
    fix = f"docker run --shm-size=64g ..., or: mount -o remount,size=64g {place}"
    if total < _SHM_LEAST:
        return warned("shm", f"{place} has {size(total)}", fix)
    if free < _SHM_LEAST // 4:
        return warned(
            "shm", f"{place} has {size(free)} left of {size(total)}", f"ls -la {place}, and remove what is old"
        )
    return passed("shm", f"{place} has {size(total)}")


def check_limits(cards: int) -> Iterator[Finding]:
    """Check that the limits of open files and processes suffice for ``cards`` ranks."""
    files = max(_FILES_LEAST, cards * _FILES_A_RANK)
    yield _limit("open-files", resource.RLIMIT_NOFILE, files, "-n")
    yield _limit("processes", resource.RLIMIT_NPROC, cards * _PROCESSES_A_RANK, "-u")


def _limit(ident: str, kind: int, wanted: int, flag: str) -> Finding:
    soft, hard = resource.getrlimit(kind)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
        return passed(ident, f"the limit is {shown}")
    raisable = hard == resource.RLIM_INFINITY or hard >= wanted
    fix = (
        f"ulimit {flag} {wanted}"
        if raisable
        else f"raise it in /etc/security/limits.conf, then: ulimit {flag} {wanted}"
    )
    return warned(ident, f"the limit is {soft}; {wanted} is what ranks may need", fix)
