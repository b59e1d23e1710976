"""The peak memory of this process."""

from __future__ import annotations

import re
import resource
from contextlib import suppress
from pathlib import Path


def peak_so_far() -> int:
    """Return the peak resident memory of this process in bytes, since its program began.

    getrusage(2) is too high when the parent was larger: its peak is inherited through fork and exec.
    """
    with suppress(OSError):
        match = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if match:
            return int(match[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
