"""Checks of environment variables: left over from other jobs, of HCCL, and switches for tests and debugging."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from launcher.doctor.findings import Finding, failed, passed, warned

_LEFTOVERS = (
    "MS_ROLE", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_NUM", "MS_NODE_ID",
    "RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH", "RANK_ID", "RANK_SIZE", "DEVICE_ID", "CM_CHIEF_IP",
)  # fmt: skip


def check_environment(env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Check that no variable of another start method is left over, and HCCL's time-outs are plausible."""
    left = [name for name in _LEFTOVERS if env.get(name)]
    if left:
        what = f"{', '.join(left)} {'is' if len(left) == 1 else 'are'} set, and would steer the ranks"
        yield warned("environment", what, f"unset {' '.join(left)}")
    else:
        yield passed("environment", "nothing left over from other start methods")
    problems = list(_hccl_problems(env))
    if problems:
        yield failed("hccl-env", problems[0][0], f"unset {problems[0][1]}")


def _hccl_problems(env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    connect = _seconds(env, "HCCL_CONNECT_TIMEOUT")
    execute = _seconds(env, "HCCL_EXEC_TIMEOUT")
    if connect == -1 or (connect is not None and not 120 <= connect <= 7200):
        yield (
            f"HCCL_CONNECT_TIMEOUT={env['HCCL_CONNECT_TIMEOUT']!r} is not 120 to 7200 (EI0001)",
            "HCCL_CONNECT_TIMEOUT",
        )
    if execute == -1:
        yield f"HCCL_EXEC_TIMEOUT={env['HCCL_EXEC_TIMEOUT']!r} is not a number of seconds (EI0001)", "HCCL_EXEC_TIMEOUT"
    if connect and execute and connect >= execute:
        yield f"HCCL_CONNECT_TIMEOUT {connect} is not below HCCL_EXEC_TIMEOUT {execute}", "HCCL_CONNECT_TIMEOUT"
    if env.get("HCCL_INTRA_PCIE_ENABLE") == "1" and env.get("HCCL_INTRA_ROCE_ENABLE") == "1":
        yield "HCCL_INTRA_PCIE_ENABLE and HCCL_INTRA_ROCE_ENABLE are both 1 (EI0001)", "HCCL_INTRA_ROCE_ENABLE"


def _seconds(env: Mapping[str, str], name: str) -> int | None:
    """Return the number in ``name``; None when it is not set, -1 when it is not a number."""
    text = env.get(name)
    if text is None:
        return None
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else -1


def check_interface(root: Path, env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Check that HCCL_IF_IP is an address of this host, or HCCL_SOCKET_IFNAME leaves one of its interfaces.

    "eth,enp" are prefixes, "=eth0" names; "^" before either excludes them (HCCL user guide, hccl_env).
    """
    address, named = env.get("HCCL_IF_IP"), env.get("HCCL_SOCKET_IFNAME")
    if address:
        if address not in _own_addresses():
            yield failed(
                "hccl-interface", f"HCCL_IF_IP={address} is no address of this host (EI0001)", "unset HCCL_IF_IP"
            )
        return
    interfaces = sorted(entry.name for entry in (root / "sys/class/net").glob("*"))
    if not named or not interfaces:
        return
    left = [name for name in interfaces if _is_chosen(name, named)]
    if left:
        yield passed("hccl-interface", f"HCCL_SOCKET_IFNAME={named} is {left[0]}")
    else:
        others = [name for name in interfaces if name != "lo"] or interfaces
        what = f"HCCL_SOCKET_IFNAME={named} leaves none of this host's interfaces: {', '.join(interfaces[:8])}"
        yield failed("hccl-interface", what, f"export HCCL_SOCKET_IFNAME=={others[0]}, or unset HCCL_SOCKET_IFNAME")


def _is_chosen(interface: str, named: str) -> bool:
    excluding, exact = named.startswith("^"), named.lstrip("^").startswith("=")
    words = [word for word in named.lstrip("^").removeprefix("=").split(",") if word]
    fits = interface in words if exact else interface.startswith(tuple(words))
    return fits != excluding


def _own_addresses() -> set[str]:
    return {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}


def check_whitelist(env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Check HCCL's whitelist, which is off by default; on, it refuses every host that its file does not name."""
    value = env.get("HCCL_WHITELIST_DISABLE") or "1"
    off = "export HCCL_WHITELIST_DISABLE=1, or unset it"
    if value == "1":
        return
    path = env.get("HCCL_WHITELIST_FILE")
    if value != "0":
        yield failed("hccl-whitelist", f"HCCL_WHITELIST_DISABLE={value!r} is neither 0 nor 1 (EI0001)", off)
    elif not path:
        yield failed("hccl-whitelist", "HCCL_WHITELIST_DISABLE=0, and HCCL_WHITELIST_FILE is not set", off)
    else:
        yield _whitelist_file(Path(path), off)


def _whitelist_file(path: Path, off: str) -> Finding:
    try:
        hosts = json.loads(path.read_text(encoding="utf-8"))["host_ip"]
    except OSError as error:
        return failed("hccl-whitelist", f"HCCL_WHITELIST_FILE={path}: {error.strerror}", off)
    except (ValueError, KeyError, TypeError):
        return failed("hccl-whitelist", f'{path} is no JSON with a list "host_ip"', off)
    if not isinstance(hosts, list) or not _own_addresses() & {str(host) for host in hosts}:
        return failed("hccl-whitelist", f"{path} does not name this host", f"add its address to host_ip, or {off}")
    return passed("hccl-whitelist", f"{path} names this host and {len(hosts) - 1} others")


def check_switches(env: Mapping[str, str] = os.environ, *, ascend: bool = True) -> Iterator[Finding]:
    """Check that no switch for dry runs or debugging is left on; that for dry runs is made for cards alone."""
    level = env.get("MS_SIMULATION_LEVEL")
    if level:
        what = f"MS_SIMULATION_LEVEL={level}: MindSpore only simulates, without cards, and trains nothing"
        yield (failed if ascend else warned)("switches", what, "unset MS_SIMULATION_LEVEL")
    if env.get("ASCEND_LAUNCH_BLOCKING") == "1":
        what = (
            "ASCEND_LAUNCH_BLOCKING=1: every operator waits for the one before, for debugging; steps take much longer"
        )
        yield warned("switches", what, "unset ASCEND_LAUNCH_BLOCKING")
