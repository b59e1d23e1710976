"""Detection of the kernel's out-of-memory killer: from its log, and from the counters of our memory cgroup."""

from __future__ import annotations

import os
import re
from pathlib import Path

from launcher.common.cgroups import own_cgroups

# linux/mm/oom_kill.c: "Out of memory: Killed process 1234 (python) total-vm:..." and "Memory cgroup out of memory: ..."
_KILLED = re.compile(r"(?:[Oo]ut of memory|oom-kill).*?(?:Killed process |pid=)(\d+)")
_MAX_BYTES = 1 << 20


def killed_pids(kernel_log: str) -> set[int]:
    """Return the pids that, by the kernel's log, were killed for lack of memory."""
    return {int(pid) for pid in _KILLED.findall(kernel_log)}


def read_kernel_log(device: Path = Path("/dev/kmsg")) -> str:
    """Return the contents of the kernel's ring buffer, "" when we may not read it."""
    try:
        # Without O_NONBLOCK the end of the log would block until the kernel has more to say.
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
    """Return one record, b"" at the end of the log. A record that was overwritten meanwhile is skipped."""
    while True:
        try:
            return os.read(handle, 8192)
        except BrokenPipeError:
            continue
        except OSError:
            return b""


def cgroup_kills(root: Path = Path("/")) -> int:
    """Return the number of processes of our memory cgroup that the OOM killer ended; 0 when that is not counted."""
    return sum(_count(folder) for folder in own_cgroups("memory", root))


def _count(folder: Path) -> int:
    # v2, then v1: both count kills in a line "oom_kill N".
    for name in ("memory.events", "memory.oom_control"):
        try:
            lines = (folder / name).read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return 0


class OomWatch:
    """The state of memory kills before the job started, to tell later whether one of its processes was killed."""

    def __init__(self) -> None:
        self._before = cgroup_kills()
        self._pids_before = killed_pids(read_kernel_log())

    def killed(self, pid: int | None) -> bool:
        """Return True if the kernel names ``pid``, or our cgroup counted a kill since this object was made."""
        # In a container the log may be closed to us, or name pids of the host: then only the counter tells.
        named = pid is not None and pid in killed_pids(read_kernel_log()) - self._pids_before
        return named or cgroup_kills() > self._before
