"""The memory that this host, or the container around this process, still has."""

from __future__ import annotations

from pathlib import Path

from launcher.common.cgroups import own_cgroups

_KIB = 1024
# Limit and use, in control groups of version 2 and 1.
_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that new programs can have without swapping; None where the system does not say."""
    found = [left for folder in own_cgroups("memory", root) if (left := _left_in(folder)) is not None]
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            found.append(int(value.split()[0]) * _KIB)
    return min(found, default=None)


def _left_in(cgroup: Path) -> int | None:
    for limit, used in _FILES:
        most, now = _read(cgroup / limit).strip(), _read(cgroup / used).strip()
        if most.isdigit() and now.isdigit():  # "max" is no limit
            return max(0, int(most) - int(now))
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
