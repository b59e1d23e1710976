"""Processes that have a card open, from /proc: cheap, without npu-smi, but blind to other users' processes."""

from __future__ import annotations

from pathlib import Path

from launcher.cluster.discover.software import read_text
from launcher.doctor.findings import Finding, passed, warned


def check_holders(device_ids: list[int], root: Path) -> list[Finding]:
    """Warn about processes that have one of the cards open; only npu-smi knows if they use it."""
    held = holders(device_ids, root)
    if not held:
        return [passed("busy", "no process of ours has the cards open")]
    shown = "; ".join(f"pid {pid} ({name}) has card {device_id} open" for pid, name, device_id in held[:4])
    return [warned("busy", shown, f"launcher doctor; if it is an old job: kill {held[0][0]}, and wait 10 s")]


def holders(device_ids: list[int], root: Path) -> list[tuple[int, str, int]]:
    """Return (pid, name, device id) of every process that has /dev/davinciN open and is visible to us."""
    wanted = {f"/dev/davinci{device_id}": device_id for device_id in device_ids}
    found = []
    for process in root.glob("proc/[0-9]*"):
        for target in _open_files(process / "fd"):
            if target in wanted:
                name = (read_text(process / "comm") or "?").strip()
                found.append((int(process.name), name, wanted[target]))
    return sorted(set(found))


def _open_files(folder: Path) -> list[str]:
    """Return the targets of the links in /proc/PID/fd; none when the process has ended or is not readable to us."""
    found = []
    try:
        for entry in folder.iterdir():
            found.append(str(entry.readlink()))
    except OSError:
        return found
    return found
