"""Locks on the cards of a job on their host, so that two jobs never take the same one.

A lock is an flock(2) on a file in one folder for all users of the host, held by the job's supervisor; the kernel
releases it when that process is gone, however it ended. The file names the holder. Nothing is ever deleted: a file
without a holder locks nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.errors import HostError


def lock_folder() -> Path:
    """Return $LAUNCHER_LOCKS, or one folder for the host; never a job's folder, which hosts may share."""
    return Path(os.environ.get("LAUNCHER_LOCKS") or "/tmp/launcher-locks")  # noqa: S108 - sticky, like /tmp itself


def card_lock(device_id: int) -> str:
    """Return the name of a card's lock."""
    return f"card_{device_id}"


def check_free(names: Iterable[str]) -> None:
    """Raise HostError when a job has one of the cards now."""
    with hold(names, holder="a check"):
        pass


@contextmanager
def hold(names: Iterable[str], *, holder: str) -> Iterator[None]:
    """Hold the locks ``names`` inside the block. Raises HostError when another process has one of them."""
    handles: list[int] = []
    try:
        # In one order for all jobs, so that two that want the same cards do not each hold one of them.
        for name in sorted(names):
            handles.append(_lock(name, holder))
        yield
    finally:
        for handle in handles:
            os.close(handle)


def _lock(name: str, holder: str) -> int:
    handle = _open(lock_folder() / f"{name}.lock")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "another process"
        os.close(handle)
        raise HostError(
            f"{name.replace('_', ' ')} is taken by {who}",
            hint="launcher submit --queue waits for it; launcher stop JOB ends that job",
        ) from None
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{holder} (pid {os.getpid()})\n".encode(), 0)
    return handle


def shared_folder(folder: Path) -> None:
    """Make a folder that all users of the host may write to, each their own files."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)


def _open(file: Path) -> int:
    """Open a lock file, whichever user made it. Raises HostError when that is not allowed."""
    try:
        shared_folder(file.parent)
        if not file.exists():
            with contextlib.suppress(FileExistsError):
                os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
                file.chmod(0o666)
        # Without O_CREAT: in a sticky folder the kernel refuses that for files of others (fs.protected_regular).
        return os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise HostError(f"cannot lock cards: {error}", hint="set LAUNCHER_LOCKS to a folder of all users") from error
