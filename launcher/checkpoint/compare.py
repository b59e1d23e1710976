"""Check that copies of a slice on several ranks are equal, and that each file is the one that was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launcher.checkpoint import ckpt, safetensors_format
from launcher.checkpoint.dtypes import item_size
from launcher.checkpoint.entries import CKPT, Entry, damaged
from launcher.checkpoint.gather import Copies, OpenShards
from launcher.checkpoint.tensorfile import TensorFile
from launcher.checkpoint.tensors import Piece, Whole
from launcher.errors import CheckpointError

# A sample compares small slices (adapters, norms) whole and this many blocks of large ones, with this many ranks.
_SMALL_BYTES = 256 << 10
_SAMPLE_BLOCKS = 8
_SAMPLE_BYTES = 16 << 10
_SAMPLE_RANKS = 8
_FULL_BYTES = 1 << 20
# Files up to this many bytes in total are hashed whole; of larger sets a fingerprint is taken: of tensors up to so
# many bytes everything, of others both ends.
_HASH_ALL_BYTES = 256 << 20
_HASHED_TENSOR_BYTES, _HASHED_END_BYTES = 64 << 10, 4 << 10


def compare_copies(shards: OpenShards, copies: Iterable[Copies], *, full: bool) -> int:
    """Compare slices that several ranks hold; return the number of bytes compared on each side.

    Raises CheckpointError, naming tensor and ranks, when two differ or a rank lacks what its file should hold.
    """
    looked = 0
    for same in copies:
        for rank in same.ranks[1:] if full else _some(same.ranks[1:]):
            looked += _compare(shards, same.name, same.ranks[0], rank, full=full)
    return looked


def _some(ranks: Sequence[int]) -> Sequence[int]:
    step = -(-len(ranks) // _SAMPLE_RANKS)
    return ranks[::step] if ranks else ranks


def compared_ranks(copies: Iterable[Copies], *, full: bool) -> list[int]:
    """Return the ranks that ``compare_copies`` will read."""
    found: set[int] = set()
    for same in copies:
        found.update(same.ranks[:1], same.ranks[1:] if full else _some(same.ranks[1:]))
    return sorted(found)


def _compare(shards: OpenShards, name: str, first: int, other: int, *, full: bool) -> int:
    one, two = shards[first], shards[other]
    left, right = one.entries[name], two.entries.get(name)
    if right is None:  # redundancy removed: this rank leaves the slice to the first
        return 0
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        raise _differ(name, first, other, two.path, "in shape or type")
    looked = 0
    for start, nbytes in _blocks(left.nbytes, full=full):
        if _read(one, left, start, nbytes) != _read(two, right, start, nbytes):
            raise _differ(name, first, other, two.path, f"near byte {start} of the tensor")
        looked += nbytes
    return looked


def _blocks(size: int, *, full: bool) -> Iterator[tuple[int, int]]:
    if full or size <= _SMALL_BYTES:
        for start in range(0, size, _FULL_BYTES):
            yield start, min(_FULL_BYTES, size - start)
        return
    for number in range(_SAMPLE_BLOCKS):
        yield (size - _SAMPLE_BYTES) * number // (_SAMPLE_BLOCKS - 1), _SAMPLE_BYTES


def _read(file: TensorFile, entry: Entry, start: int, nbytes: int) -> bytes:
    return b"".join(file.pread(offset, length) for offset, length in file.spans(entry, start, nbytes))


def _differ(name: str, first: int, other: int, path: Path, where: str) -> CheckpointError:
    return CheckpointError(
        f"{name} differs between rank {first} and rank {other} {where} ({path}): they should hold the same",
        hint="the ranks did not train together, a file is damaged, or shards need their strategy files (--strategy)",
    )


def check_crc(file: TensorFile) -> bool:
    """Return whether the file carries a CRC. Raises CheckpointError when its bytes do not give it."""
    if file.index.crc is None:
        return False
    module = ckpt if file.format == CKPT else safetensors_format
    if module.computed_crc(file) != file.index.crc:
        raise damaged(file.path, "its CRC is not that of its bytes")
    return True


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The identity of an input file, which tells it from other files and from its own earlier versions.

    fingerprint: of sampled bytes of every tensor; sha256: of all bytes, None when not taken.
    """

    path: Path
    size: int
    mtime_ns: int
    inode: int
    fingerprint: str
    sha256: str | None

    def record(self) -> dict[str, str | int]:
        """Return the identity as merge.json holds it."""
        found: dict[str, str | int] = {
            "path": str(self.path.absolute()),
            "bytes": self.size,
            "mtime_ns": self.mtime_ns,
            "inode": self.inode,
            "fingerprint": self.fingerprint,
        }
        return found | ({"sha256": self.sha256} if self.sha256 else {})


def identify(files: Iterable[TensorFile], *, full: bool) -> list[Identity]:
    """Return the identity of each file; all bytes are read only when ``full`` or for small files."""
    files = list(files)
    whole = full or sum(file.size for file in files) <= _HASH_ALL_BYTES
    return [
        Identity(
            path=file.path,
            size=file.size,
            mtime_ns=file.mtime_ns,
            inode=file.inode,
            fingerprint=fingerprint(file),
            sha256=_sha256(file) if whole else None,
        )
        for file in files
    ]


def small_record(path: Path) -> dict[str, str | int]:
    """Return path, size and SHA-256 of a small file, for merge.json. Raises CheckpointError when it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", hint="put it back") from error
    return {"path": str(path.absolute()), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sha256(file: TensorFile) -> str:
    digest = hashlib.sha256()
    for start in range(0, file.size, _FULL_BYTES):
        digest.update(file.pread(start, min(_FULL_BYTES, file.size - start)))
    return digest.hexdigest()


def fingerprint(file: TensorFile) -> str:
    """Return a SHA-256 over every tensor's description and bytes: small tensors whole, large ones at both ends."""
    digest = hashlib.sha256()
    for entry in file.entries.values():
        digest.update(f"{entry.name} {entry.dtype}{entry.shape}\n".encode())
        for start, nbytes in _hashed_spans(entry):
            digest.update(file.pread(start, nbytes))
    return digest.hexdigest()


def weights_fingerprint(path: Path) -> str:
    """Return a SHA-256 that tells the weights in a file or below a folder from others, wherever they lie.

    It is of each file's ``fingerprint``; of more than a few hundred files, of names and sizes. "" where there are no
    files, or one cannot be read.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)
    digest = hashlib.sha256()
    try:
        for file in files:
            digest.update(_told_by(path, file, whole=len(files) <= _FINGERPRINTED_FILES).encode())
    except (OSError, CheckpointError):
        return ""
    return digest.hexdigest() if files else ""


_SUFFIXES = (".safetensors", ".ckpt")
_FINGERPRINTED_FILES = 256


def _told_by(path: Path, file: Path, *, whole: bool) -> str:
    name = "" if file == path else str(file.relative_to(path))
    if not whole:
        return f"{name} {file.stat().st_size}\n"
    with TensorFile(file) as opened:
        return f"{name} {fingerprint(opened)}\n"


def _hashed_spans(entry: Entry) -> Iterator[tuple[int, int]]:
    for offset, nbytes in entry.extents:
        if nbytes <= _HASHED_TENSOR_BYTES:
            yield offset, nbytes
        else:
            yield offset, _HASHED_END_BYTES
            yield offset + nbytes - _HASHED_END_BYTES, _HASHED_END_BYTES


def check_not_copied(tensors: Iterable[Whole], identities: Mapping[TensorFile, Identity]) -> None:
    """Check that no rank has a copy of another rank's file where the strategy gives the two different slices.

    Equal slices alone prove nothing (fresh adapters are zero, norms are one): a file is refused when all its bytes
    equal those of another rank's file and at least one of its slices is not constant.
    Raises CheckpointError, naming both files.
    """
    for whole in tensors:
        places: dict[str, Piece] = {}
        for piece in whole.pieces:
            identity = identities[piece.file]
            other = places.setdefault(identity.sha256 or identity.fingerprint, piece)
            if other.file is not piece.file and _is_copy(other, piece):
                raise CheckpointError(
                    f"{piece.file.path} has the same bytes as {other.file.path}, but the strategy gives the two ranks "
                    f"different slices of {whole.name}",
                    hint="one was copied from the other: copy each rank's files again from its host",
                )


def _is_copy(one: Piece, two: Piece) -> bool:
    return _varies(one) and _equal(one.file, two.file)


def _varies(piece: Piece) -> bool:
    """Return whether the slice of ``piece`` has values that differ."""
    array = piece.file.array(piece.entry.name).reshape(-1).view(np.uint8).reshape(-1, item_size(piece.entry.dtype))
    return bool((array != array[:1]).any())


def _equal(one: TensorFile, two: TensorFile) -> bool:
    starts = range(0, one.size, _FULL_BYTES)
    return one.size == two.size and all(
        one.pread(start, min(_FULL_BYTES, one.size - start)) == two.pread(start, min(_FULL_BYTES, two.size - start))
        for start in starts
    )
