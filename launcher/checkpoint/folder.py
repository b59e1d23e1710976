"""A folder that appears whole or not at all, and the names of the files in a merged one."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from launcher.errors import CheckpointError, HostError

MERGE_RECORD = "merge.json"
WEIGHTS, CKPT_WEIGHTS = "model.safetensors", "model.ckpt"
MODEL_CONFIG = "launcher_model.json"
TOKENIZER = "tokenizer.model"


@contextmanager
def whole_folder(target: Path, *, replace: bool) -> Iterator[Path]:
    """A scratch folder beside ``target`` that becomes ``target`` when the block ends well, synced to disk.

    What a killed process left is removed: a scratch folder is locked as long as its process lives.
    Raises HostError when the folder cannot be made or renamed.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(target)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.part-"))
    except OSError as error:
        raise HostError(f"cannot write in {target.parent}: {error.strerror}", hint="give another --output") from error
    handle = os.open(scratch, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield scratch
        scratch.chmod(0o777 & ~_umask())
        os.fsync(handle)
        _put(scratch, target, replace=replace)
        _sync_folder(target.parent)
    finally:
        os.close(handle)
        shutil.rmtree(scratch, ignore_errors=True)


def _put(scratch: Path, target: Path, *, replace: bool) -> None:
    try:
        if replace and target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.part-"))
            target.rename(old)
            scratch.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            scratch.rename(target)
    except OSError as error:
        raise HostError(f"cannot put {target} in place: {error.strerror}", hint="give another --output") from error


def remove_stale(target: Path) -> None:
    """Remove scratch folders of ``target`` whose process is gone."""
    for path in target.parent.glob(f".{target.name}.part-*"):
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def sync_file(path: Path) -> None:
    """Bring the bytes of ``path`` to the disk."""
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_room(target: Path, needed: int) -> None:
    """Raises HostError when the disk under ``target`` has less than ``needed`` bytes free."""
    parent = next(path for path in (target, *target.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise HostError(
            f"{parent} has {free / 1e9:.2f} GB free, the result needs {needed / 1e9:.2f} GB",
            hint="make room, or give an --output on another disk",
        )


def read_record(folder: Path) -> dict[str, Any]:
    """merge.json of ``folder``. Raises CheckpointError when it is missing or damaged."""
    try:
        record = json.loads((folder / MERGE_RECORD).read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "step" not in record:
            raise ValueError("it is no record of a merge")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} exists but its {MERGE_RECORD} is missing or damaged: {error}",
            hint=f"move it away (mv {folder} {folder}.old), or give another --output",
        ) from error
    return record
