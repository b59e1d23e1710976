"""Output files that are whole or absent, never overwritten unless forced, and untouched when nothing changed."""

from __future__ import annotations

import filecmp
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.errors import DataError


class OutputExistsError(DataError):
    """The output exists and its content would change."""

    def __init__(self, target: Path) -> None:
        super().__init__(
            f"{target} exists and would change", hint="add --force to overwrite it, or name another --output"
        )


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """Make a folder beside ``target`` to build it in, removed at the end in any case.

    Raises DataError when the folder cannot be made, or when the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}") from error
    with folder as name:
        try:
            yield Path(name)
        except OSError as error:
            raise DataError(f"cannot write {target}: {error.strerror}") from error


def refuse_folder(target: Path) -> None:
    """Raise DataError when ``target`` is a folder."""
    if target.is_dir():
        raise DataError(f"{target} is a folder", hint="name a file in it with --output")


def put(built: Path, target: Path, *, force: bool) -> bool:
    """Move ``built`` to ``target``; return False when the same bytes are there already.

    Raises OutputExistsError when other bytes are there without ``force``.
    """
    refuse_folder(target)
    if target.exists():
        if filecmp.cmp(built, target, shallow=False):
            return False
        if not force:
            raise OutputExistsError(target)
    flush(built)
    built.replace(target)
    return True


def flush(path: Path) -> None:
    """Sync the bytes of ``path`` to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_or_remove(built: Path | None, target: Path) -> None:
    """Move ``built`` over ``target``; if None, remove ``target``, which belongs to an older run."""
    if built is None:
        target.unlink(missing_ok=True)
    else:
        built.replace(target)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file's bytes in hexadecimal. Raises DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as source:
            while block := source.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()
