"""Are the copies of a slice that several ranks hold the same, and is each file the one that was written?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from launcher.checkpoint import ckpt, safetensors_format
from launcher.checkpoint.gather import Copies, OpenShards
from launcher.checkpoint.tensorfile import CKPT, Entry, TensorFile, damaged
from launcher.errors import CheckpointError

# A sample compares small slices (adapters, norms) whole and this many blocks of large ones, with this many ranks.
_SMALL_BYTES = 256 << 10
_SAMPLE_BLOCKS = 8
_SAMPLE_BYTES = 16 << 10
_SAMPLE_RANKS = 8
_FULL_BYTES = 1 << 20
# Files up to this many bytes in total are hashed whole; of larger sets a fingerprint is taken.
_HASH_ALL_BYTES = 256 << 20


def compare_copies(shards: OpenShards, copies: Iterable[Copies], *, full: bool) -> int:
    """Compare slices that several ranks hold; returns how many bytes were looked at on each side.

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
    """The ranks that ``compare_copies`` will read."""
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
    """Whether the file carries a CRC. Raises CheckpointError when its bytes do not give it."""
    if file.index.crc is None:
        return False
    module = ckpt if file.format == CKPT else safetensors_format
    if module.computed_crc(file) != file.index.crc:
        raise damaged(file.path, "its CRC is not that of its bytes")
    return True


def identify(files: Mapping[int, TensorFile], *, full: bool) -> list[dict[str, str | int]]:
    """Path, size and checksum of each file: SHA-256 (all bytes), or for large sets a fingerprint of sampled bytes."""
    whole = full or sum(file.size for file in files.values()) <= _HASH_ALL_BYTES
    kind, digest = ("sha256", _sha256) if whole else ("fingerprint", _fingerprint)
    return [
        {"rank": rank, "path": str(file.path), "bytes": file.size, kind: digest(file)} for rank, file in files.items()
    ]


def _sha256(file: TensorFile) -> str:
    digest = hashlib.sha256()
    for start in range(0, file.size, _FULL_BYTES):
        digest.update(file.pread(start, min(_FULL_BYTES, file.size - start)))
    return digest.hexdigest()


def _fingerprint(file: TensorFile) -> str:
    """SHA-256 over the size, both ends and 64 blocks of 4 KiB spread evenly: tells files apart, proves nothing."""
    digest = hashlib.sha256(str(file.size).encode())
    for number in range(64):
        digest.update(file.pread((file.size - 4096) * number // 63, 4096))
    return digest.hexdigest()
