"""A folder that appears whole or not at all, written by one process at a time."""

from __future__ import annotations

import ctypes
import fcntl
import glob
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launcher.common.sizes import size_text
from launcher.errors import CheckpointError, HostError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def whole_folder(target: Path, *, replace: bool) -> Iterator[Path]:
    """Yield a scratch folder beside ``target`` that becomes ``target`` when the block succeeds, synced to disk.

    Scratch folders of killed processes are removed: a scratch folder is locked as long as its process lives.
    Raises HostError when the folder cannot be made or renamed, or the disk is full in the block.
    """
    # The name comes first: an interruption at any later point finds it to be removed.
    scratch = target.parent / f"{_scratch_prefix(target)}{secrets.token_hex(4)}"
    handle = -1
    try:
        handle = _make_scratch(target, scratch)
        yield scratch
        os.fsync(handle)
        _put(scratch, target, replace=replace)
        _sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        if handle >= 0:
            os.close(handle)
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def made_once(target: Path) -> Iterator[Path]:
    """Yield a scratch folder that becomes ``target`` when the block succeeds; the first of several processes wins.

    It is for caches, which every process makes the same. Raises OSError when the scratch folder cannot be made; if it
    cannot be put in place, there is no ``target`` afterwards.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield scratch
        with suppress(OSError):  # as a rule another process was faster
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def real_path(target: Path) -> Path:
    """Return ``target`` with links followed, so that writing replaces the link's destination and not the link."""
    with suppress(OSError):  # a name that is too long leads nowhere
        if target.is_symlink():
            return Path(os.path.realpath(target))
    return target


@contextmanager
def only_writer(target: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Make this process the only writer of ``target``; ``on_wait`` is called when another has to end first.

    Without locks (a file system that has none, no permission) writers are not kept apart: the first to end wins.
    """
    path = target.parent / f".{target.name[:100]}.lock"
    try:
        handle = _lock(path, on_wait)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        # Before the handle is closed: a process that gets the lock afterwards finds another file and tries again.
        path.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def only_new(target: Path) -> Iterator[Path]:
    """Yield the real path of ``target``. Raises CheckpointError when it exists, or another process is writing it."""

    def refuse() -> None:
        raise CheckpointError(f"another process writes {target}", hint="wait for it, or give another --output")

    place = real_path(target)
    with only_writer(place, refuse):
        if is_taken(place):
            raise CheckpointError(f"{target} exists", hint="give another --output")
        yield place


def _lock(path: Path, on_wait: Callable[[], None] | None) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _wait_for(handle, on_wait)
            # Who had it before removes the file: this lock counts when it is still the one to be found.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def is_being_written(folder: Path) -> bool:
    """Return whether a process writes something in ``folder`` as ``only_writer`` of it."""
    return any(_is_locked(path) for path in folder.glob(".*.lock"))


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # its writer has just ended
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(handle)


def _wait_for(handle: int, on_wait: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if on_wait is not None:
            on_wait()
        fcntl.flock(handle, fcntl.LOCK_EX)


def _scratch_prefix(target: Path) -> str:
    return f".{target.name[:100]}.part-"


def _make_scratch(target: Path, scratch: Path) -> int:
    """Make ``scratch`` and lock it. Returns the handle that holds the lock."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(target)
        scratch.mkdir()
        handle = os.open(scratch, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise cannot_write(target, error) from error
    return handle


def cannot_write(target: Path, error: OSError) -> HostError:
    """Return the error for a ``target`` that cannot be made."""
    return HostError(f"cannot write {target}: {error.strerror}", hint="give another --output")


def _put(scratch: Path, target: Path, *, replace: bool) -> None:
    try:
        if not (replace and target.exists()):
            scratch.rename(target)
        elif not _exchange(scratch, target):
            # Without the swap there is a moment without target, but never a half one: the old folder goes last.
            old = scratch.with_name(f".{target.name[:100]}.old-{secrets.token_hex(4)}")
            target.rename(old)
            scratch.rename(target)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise HostError(f"cannot put {target} in place: {error.strerror}", hint="give another --output") from error


def _exchange(one: Path, two: Path) -> bool:
    """Swap two folders atomically (renameat2(2)), so that there is always one; False where that is not supported."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return call is not None and call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two), _RENAME_EXCHANGE) == 0


def remove_stale(target: Path) -> None:
    """Remove scratch folders of ``target`` whose process is gone."""
    for path in target.parent.glob(f"{glob.escape(_scratch_prefix(target))}*"):
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def sync_file(path: Path) -> None:
    """Sync the bytes of ``path`` to the disk. Raises HostError when that fails."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", hint="look at the disk") from error
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    with suppress(HostError):
        sync_file(path)


def check_target(target: Path, needed: int) -> None:
    """Raise HostError when ``needed`` bytes cannot be written into a folder ``target``, CheckpointError for a file."""
    try:
        # The folder itself may not exist yet: the nearest one that does is on the same disk.
        parent = next(path for path in (target, *target.absolute().parents) if path.exists())
        is_folder = parent.is_dir()
        usage = shutil.disk_usage(parent)
    except OSError as error:
        raise cannot_write(target, error) from error
    if not is_folder:
        raise CheckpointError(f"{parent} is a file", hint="give a folder that is not there yet as --output")
    # Pseudo file systems such as /proc report a size of 0.
    if usage.total == 0 or not os.access(parent, os.W_OK | os.X_OK):
        reason = "it holds no files of ours" if usage.total == 0 else "permission denied"
        raise HostError(f"cannot write in {parent}: {reason}", hint="give another --output")
    if usage.free < needed:
        raise HostError(
            f"{parent} has {size_text(usage.free)} free, the result needs {size_text(needed)}",
            hint="make room, or give an --output on another disk",
        )


def is_taken(target: Path) -> bool:
    """Return True if something other than an empty folder is at ``target``. Raises HostError for an impossible path."""
    try:
        return target.exists() and not (target.is_dir() and not any(target.iterdir()))
    except OSError as error:
        raise cannot_write(target, error) from error
