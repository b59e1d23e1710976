"""The bytes on disk below a folder, and what would keep it from being removed. Links are never followed."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = 512  # of st_blocks, whatever the file system's own is (stat(2))


@dataclass(kw_only=True)
class Usage:
    """What was found below a folder.

    ``bytes``: those that removing it frees; a file that has another name elsewhere frees none. ``unread``: folders that
    cannot be looked into. ``foreign``: folders of another file system, mounted below. ``locked``: folders whose entries
    this user may not remove.
    """

    bytes: int = 0
    unread: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    locked: list[str] = field(default_factory=list)


def disk_usage(folder: Path) -> Usage:
    """Return what is below ``folder``, which must exist. What vanishes meanwhile is not counted."""
    status = folder.lstat()
    found, names = Usage(bytes=status.st_blocks * _BLOCK), Counter[tuple[int, int]]()
    left = [str(folder)]
    while left:
        left += _look_into(left.pop(), status.st_dev, found, names)
    return found


def _look_into(folder: str, device: int, found: Usage, names: Counter[tuple[int, int]]) -> list[str]:
    """Add the entries of ``folder`` to ``found``; return the folders among them."""
    if not os.access(folder, os.W_OK | os.X_OK):
        found.locked.append(folder)
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if _add(entry, device, found, names)]
    except FileNotFoundError:
        return []
    except OSError:
        found.unread.append(folder)
        return []


def _add(entry: os.DirEntry[str], device: int, found: Usage, names: Counter[tuple[int, int]]) -> bool:
    """Add one entry; return whether it is a folder to look into."""
    try:
        status = entry.stat(follow_symlinks=False)
        is_folder = entry.is_dir(follow_symlinks=False)
    except FileNotFoundError:
        return False
    if is_folder and status.st_dev != device:
        found.foreign.append(entry.path)
        return False
    names[status.st_dev, status.st_ino] += 1
    # A file is freed with its last name: at that one it is counted.
    if is_folder or names[status.st_dev, status.st_ino] == status.st_nlink:
        found.bytes += status.st_blocks * _BLOCK
    return is_folder
