"""Writes that are whole or absent; not in ``common.rendering``, so that small processes do not import templates."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(target: Path, data: str | bytes, *, parents: bool = True) -> None:
    """Write so that a reader sees the old file or the new one, never half of it.

    ``parents``: make missing folders. Without it a missing folder is a FileNotFoundError, so that a folder that was
    removed is not made again.
    """
    if parents:
        target.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    temporary = target.with_name(f".{target.name}.{os.urandom(8).hex()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(raw)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
