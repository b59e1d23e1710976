"""The control groups of this process, of version 2 and 1."""

from __future__ import annotations

from pathlib import Path


def own_cgroups(controller: str, root: Path = Path("/")) -> list[Path]:
    """Return the folders of our control groups that have, or may have, ``controller``."""
    try:
        own = (root / "proc/self/cgroup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    found = []
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        # cgroup v2 has one line without controllers; v1 has one line per controller.
        if controllers == "" or controller in controllers.split(","):
            found.append(root / "sys/fs/cgroup" / (controller if controllers else "") / path.lstrip("/"))
    return found
