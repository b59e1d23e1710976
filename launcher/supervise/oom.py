"""Whether the kernel's out-of-memory killer ended a process: its log, and the counters of our memory cgroup."""

from __future__ import annotations

import os
import re
from pathlib import Path

# linux/mm/oom_kill.c: "Out of memory: Killed process 1234 (python) total-vm:..." and "Memory cgroup out of memory: ..."
_KILLED = re.compile(r"(?:[Oo]ut of memory|oom-kill).*?(?:Killed process |pid=)(\d+)")
_MAX_BYTES = 1 << 20


def killed_pids(kernel_log: str) -> set[int]:
    """Pids that the kernel's log says were killed for want of memory."""
    return {int(pid) for pid in _KILLED.findall(kernel_log)}


def read_kernel_log(device: Path = Path("/dev/kmsg")) -> str:
    """What the kernel's ring buffer holds, "" when we may not read it."""
    try:
        handle = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    records, size = [], 0
    try:
        while size < _MAX_BYTES and (record := _next(handle)):
            records.append(record.decode("utf-8", "replace"))
            size += len(record)
    finally:
        os.close(handle)
    return "\n".join(records)


def _next(handle: int) -> bytes:
    """One record, b"" at the end of the log. A record that was overwritten meanwhile is passed over."""
    while True:
        try:
            return os.read(handle, 8192)
        except BrokenPipeError:
            continue
        except OSError:
            return b""


def cgroup_kills(root: Path = Path("/")) -> int:
    """Return how many processes of our memory cgroup the OOM killer has ended so far; 0 when that is not counted."""
    try:
        own = (root / "proc/self/cgroup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    total = 0
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            total += _count(root / "sys/fs/cgroup" / ("memory" if controllers else "") / path.lstrip("/"))
    return total


def _count(folder: Path) -> int:
    for name in ("memory.events", "memory.oom_control"):
        try:
            lines = (folder / name).read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return 0


class OomWatch:
    """Made before the job starts; tells later whether a process of it was killed for want of memory."""

    def __init__(self) -> None:
        self._before = cgroup_kills()
        self._pids_before = killed_pids(read_kernel_log())

    def killed(self, pid: int | None) -> bool:
        """Return whether the kernel names ``pid``, or our cgroup counted a kill since this object was made."""
        named = pid is not None and pid in killed_pids(read_kernel_log()) - self._pids_before
        return named or cgroup_kills() > self._before
