"""Checks of the jobs folder: room, inodes and write speed. Nothing stays in it, no wait is endless."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.doctor.findings import Finding, JobNeeds, failed, passed, warned

# A job writes some hundred files, and more with each checkpoint of each rank.
_INODES_LEAST = 2_000
_INODES_WANTED = 20_000
_LIMIT_S = 15.0
_WRITE_S = 0.5
_MOST = 16 << 20
_CHUNK = 2 << 20
# Slower than any disk, and slower than a share over a network of 1 Gbit/s: something is wrong with it.
_SLOW = 10 << 20
_LONG_S = 600


def check_storage(needs: JobNeeds, cards: int, *, measure: bool = False) -> Iterator[Finding]:
    """Check the disk of the job's folder; ``measure`` its write speed too, which takes up to two seconds."""
    if needs.folder is None:
        return
    folder = needs.folder.absolute()
    found = within(_LIMIT_S, lambda: list(_checks(folder, needs, cards, measure=measure)))
    if found is None:
        what = f"{folder} does not answer within {_LIMIT_S:g} s: is its file server gone?"
        yield failed("disk", what, f"df {folder}; mount it again, or pass --jobs-dir DIR")
    else:
        yield from found


def within(seconds: float, work: Callable[[], list[Finding]]) -> list[Finding] | None:
    """Return the result of ``work``, or None when it takes longer: a system call on a dead share never returns."""
    result: list[list[Finding]] = []
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else None


def _checks(folder: Path, needs: JobNeeds, cards: int, *, measure: bool) -> Iterator[Finding]:
    place = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), Path("/"))
    if not os.access(place, os.W_OK):
        yield failed("disk", f"{place} cannot be written", "pass --jobs-dir DIR")
        return
    wanted = needs.checkpoint_bytes * needs.copies(cards)
    yield room_finding(place, wanted)
    yield from inodes_finding(place, os.statvfs(place))
    if measure:
        yield from speed_finding(place, write_speed(place), wanted // (needs.keep + 1))


def room_finding(place: Path, wanted: int) -> Finding:
    """Check that there is room for ``wanted`` bytes."""
    free = shutil.disk_usage(place).free
    what = f"{size(free)} free below {place}"
    if not wanted:
        return passed("disk", what)
    if free < wanted:
        fix = "free some, pass --jobs-dir DIR, or lower checkpoint.keep"
        return failed("disk", f"{what}; the checkpoints need {size(wanted)}", fix)
    return passed("disk", f"{what}; the checkpoints need {size(wanted)}")


def inodes_finding(place: Path, status: os.statvfs_result) -> Iterator[Finding]:
    """Check that files can be made; file systems without a fixed number of inodes say 0."""
    if not status.f_files:
        return
    if status.f_favail < _INODES_WANTED:
        what = f"{status.f_favail} files can still be made below {place} (inodes of {status.f_files})"
        complain = failed if status.f_favail < _INODES_LEAST else warned
        yield complain("inodes", what, f"df -i {place}; remove old jobs and caches, or pass --jobs-dir DIR")
    else:
        yield passed("inodes", f"{status.f_favail} files can be made below {place}")


def write_speed(place: Path) -> float | None:
    """Return the bytes a second that reach the disk, of a file without a name; None if there is no room to try."""
    chunk, written, began = os.urandom(_CHUNK), 0, time.monotonic()
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            while written < _MOST and time.monotonic() - began < _WRITE_S:
                file.write(chunk)
                os.fsync(file.fileno())
                written += _CHUNK
    except OSError:
        return None
    return written / max(1e-6, time.monotonic() - began)


def speed_finding(place: Path, speed: float | None, checkpoint: int) -> Iterator[Finding]:
    """Check that the checkpoint of one save, in bytes over all ranks, is written in minutes."""
    if speed is None:
        return
    took_s = checkpoint / speed
    what = f"{size(int(speed))}/s below {place}"
    if checkpoint:
        what += f": a checkpoint of {size(checkpoint)} takes {took_s:.0f} s"
    if took_s > _LONG_S or speed < _SLOW:
        yield warned(
            "write-speed", what, "pass --jobs-dir DIR on a faster disk, or save less often (checkpoint.every_steps)"
        )
    else:
        yield passed("write-speed", what)


def size(count: int) -> str:
    """Return ``count`` bytes for people: "1.5 GiB"."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
