"""The index of a checkpoint file of either format: names, dtypes, shapes and byte ranges, before a tensor is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launcher.checkpoint.dtypes import Array, item_size
from launcher.errors import CheckpointError

CKPT = "ckpt"
SAFETENSORS = "safetensors"
SUFFIXES = {".ckpt": CKPT, ".safetensors": SAFETENSORS}

_MAX_NAME_BYTES = 1024
MAX_DIMS = 16
# The state of a 70B model with its optimizer has some 3,000 tensors; more than this is no model, and costs minutes.
MAX_TENSORS = 50_000
# Of one tensor: parts of 512 MiB are 2 TiB then.
MAX_PARTS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A tensor in a file. ``extents``: (offset in the file, bytes), in order; .ckpt cuts tensors above 512 MiB."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    extents: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * item_size(self.dtype)


@dataclass(frozen=True, kw_only=True)
class Index:
    """The contents of a file: its tensors in file order, its metadata, and its stored CRC, if any."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str] = field(default_factory=dict)
    crc: int | None = None


class Readable(Protocol):
    """An open file, as the readers of the two formats need it; ``entries`` is set once they have read its index."""

    @property
    def path(self) -> Path: ...

    @property
    def size(self) -> int: ...

    @property
    def entries(self) -> Mapping[str, Entry]: ...

    def pread(self, offset: int, nbytes: int) -> bytes: ...

    def array(self, name: str) -> Array: ...


def format_of(path: Path) -> str:
    """Return CKPT or SAFETENSORS, by the file name. Raises CheckpointError when it is neither."""
    found = SUFFIXES.get(path.suffix)
    if found is None and not path.exists():
        raise CheckpointError(f"there is no {path}", hint="give a .ckpt or .safetensors file, or a folder of them")
    if found is None:
        raise CheckpointError(
            f"{path} does not have the name of a checkpoint", hint="give a .ckpt or .safetensors file"
        )
    return found


class FlawError(ValueError):
    """Bytes that do not match their format: the reason, without the file that they are in."""


class DamagedFile(CheckpointError):
    """A file whose bytes do not match its format: half written, truncated, or of another kind."""


def damaged(path: Path, reason: str) -> DamagedFile:
    """Return the error for a file whose bytes do not match its format."""
    of_a_rank = path.parent.name.startswith("rank_")
    other = "copy it again from the host that wrote it, or merge an earlier --step"
    return DamagedFile(
        f"{path} is damaged: {reason}", hint=other if of_a_rank else "download it, copy it or make it again"
    )


def check_count(count: int) -> None:
    """Raise FlawError for more tensors than any model has."""
    if count > MAX_TENSORS:
        raise FlawError(f"it has more than {MAX_TENSORS} tensors")


def check_name(raw: bytes) -> str:
    """Decode ``raw`` as a tensor name. Raises FlawError for paths, control characters and invalid UTF-8."""
    if len(raw) > _MAX_NAME_BYTES:
        raise FlawError(f"a tensor name of {len(raw)} bytes")
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FlawError(f"a tensor name that is not UTF-8: {raw[:40]!r}") from error
    if not name.isprintable() or not name or "/" in name or "\\" in name or ".." in name:
        raise FlawError(f"an impossible tensor name: {name[:80]!r}")
    return name


def check_entry(entry: Entry) -> Entry:
    """Return ``entry`` when its shape and its bytes agree. Raises FlawError otherwise."""
    stored = sum(nbytes for _, nbytes in entry.extents)
    if len(entry.shape) > MAX_DIMS or min(entry.shape, default=0) < 0 or entry.nbytes != stored:
        shape = list(entry.shape[:MAX_DIMS])
        raise FlawError(f"{entry.name} has {stored} bytes, which is not {entry.dtype}{shape}")
    return entry
