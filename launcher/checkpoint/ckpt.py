"""MindSpore's .ckpt: consecutive protobuf messages ``Checkpoint.Value``, read and framed without the protobuf library.

checkpoint.proto of mindspore 2.9.0: Checkpoint{1: Value*}, Value{1: tag, 2: TensorProto, 3: MapTensorProto},
TensorProto{1: dims*, 2: tensor_type, 3: tensor_content}. The generated classes hold a whole file in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from launcher.checkpoint.dtypes import CKPT_NAMES, FROM_CKPT
from launcher.checkpoint.entries import (
    MAX_PARTS,
    Entry,
    FlawError,
    Index,
    Readable,
    check_count,
    check_entry,
    check_name,
    damaged,
)
from launcher.checkpoint.wire import BYTES, WireError, field, read_varint, skip, tag, varint
from launcher.errors import CheckpointError

# save_checkpoint(crc_check=True) ends the file with this word and ten bytes, big-endian.
_CRC_WORD = b"crc_num"
_CRC_BYTES = len(_CRC_WORD) + 10
# mindspore 2.9.0 writes these four bytes at the head of each encrypted block (AES-GCM, AES-CBC, SM4-CBC).
_CIPHER_MAGICS = tuple(number.to_bytes(4, "little") for number in (0x7F3A5ED8, 0x7F3A5ED9, 0x7F3A5EDA))
# Tag, dims and type of a value come before its content and fit in this.
_HEAD_BYTES = 4096
# serialization.py, SLICE_SIZE: a larger tensor is cut into values of the same tag.
SLICE_BYTES = 512 << 20


# Files that are remembered, and bytes of each: those of one pipeline stage are equal but for the values' content.
_KEPT_FILES, _KEPT_BYTES = 16, 2 << 20


@dataclass
class _Value:
    """A message of the file. ``frame``: its bytes from ``begin`` up to its content."""

    begin: int
    frame: bytes = b""
    tag: bytes = b""
    dims: tuple[int, ...] = ()
    type: bytes = b""
    content: tuple[int, int] | None = None
    is_map: bool = False


@dataclass(frozen=True, kw_only=True)
class _Known:
    """A file that was read before. ``frames``: its bytes between the contents of values, with their offsets."""

    frames: tuple[tuple[int, bytes], ...]
    entries: Mapping[str, Entry]


# By the bytes before the CRC. Of a file with the same frames all follows but the CRC and the values' content.
_known: dict[int, _Known] = {}


def read_index(file: Readable) -> Index:
    """Read the index of a .ckpt. Raises CheckpointError when it is damaged or encrypted."""
    if file.pread(0, min(4, file.size)) in _CIPHER_MAGICS:
        raise CheckpointError(
            f"{file.path} is encrypted", hint="load it with mindspore (dec_key=...) and save it without enc_key"
        )
    crc = _stored_crc(file)
    end = file.size - (_CRC_BYTES if crc is not None else 0)
    known = _known.get(end)
    if known is not None and _has_frames(file, known.frames):
        return Index(entries=known.entries, crc=crc)
    try:
        entries, frames = _read_values(file, end)
    except (WireError, FlawError) as error:
        raise damaged(file.path, str(error)) from error
    _remember(end, _Known(frames=frames, entries=entries))
    return Index(entries=entries, crc=crc)


def _has_frames(file: Readable, frames: Sequence[tuple[int, bytes]]) -> bool:
    """Return whether ``file`` has these bytes at these places."""
    pread = file.pread
    return all(pread(offset, len(frame)) == frame for offset, frame in frames)


def _remember(end: int, known: _Known) -> None:
    if sum(len(frame) for _, frame in known.frames) <= _KEPT_BYTES:
        _known[end] = known
        if len(_known) > _KEPT_FILES:
            _known.pop(next(iter(_known)), None)


def _read_values(file: Readable, end: int) -> tuple[dict[str, Entry], tuple[tuple[int, bytes], ...]]:
    """Return the tensors before byte ``end``, and their frames: (offset, bytes), from which all else follows."""
    found: dict[str, list[Entry]] = {}
    frames = []
    last = ""
    for value in _values(file, end):
        name = check_name(value.tag)
        frames.append((value.begin, value.frame))
        entry = _entry(file, name, value)
        if entry is None:
            continue
        if name in found and last != name:
            raise FlawError(f"{name} stands twice")
        found.setdefault(name, []).append(entry)
        _check_counts(found, name)
        last = name
    if not found:
        raise FlawError("it holds no tensor")
    return {name: check_entry(_joined(parts)) for name, parts in found.items()}, tuple(frames)


def _check_counts(found: Mapping[str, Sequence[Entry]], name: str) -> None:
    check_count(len(found))
    if len(found[name]) > MAX_PARTS:
        raise FlawError(f"{name} is in more than {MAX_PARTS} parts")


def _stored_crc(file: Readable) -> int | None:
    tail = file.pread(file.size - _CRC_BYTES, _CRC_BYTES) if file.size > _CRC_BYTES else b""
    return int.from_bytes(tail[len(_CRC_WORD) :], "big") if tail.startswith(_CRC_WORD) else None


def computed_crc(file: Readable) -> int:
    """Compute the CRC-32 of a .ckpt's messages that save_checkpoint(crc_check=True) stores. Reads the whole file."""
    crc, offset, end = 0, 0, file.size - _CRC_BYTES
    while offset < end:
        block = file.pread(offset, min(1 << 20, end - offset))
        crc, offset = zlib.crc32(block, crc), offset + len(block)
    return crc


def _joined(parts: Sequence[Entry]) -> Entry:
    """Return the parts of a tensor as one; type and shape are those of the last."""
    return replace(parts[-1], extents=tuple(extent for part in parts for extent in part.extents))


def _entry(file: Readable, name: str, value: _Value) -> Entry | None:
    if value.is_map:
        raise CheckpointError(f"{file.path}: {name} is a map parameter", hint="only LLaMA checkpoints are merged")
    kind = value.type.decode("utf-8", "replace")
    if kind == "str":  # text that save_checkpoint(append_dict=...) adds: no tensor
        return None
    if kind not in FROM_CKPT or value.content is None:
        raise FlawError(f"{name} has the element type {kind[:40]!r}")
    shape = () if value.dims == (0,) else value.dims  # a scalar is written with the one dimension 0
    return Entry(name=name, dtype=FROM_CKPT[kind], shape=shape, extents=(value.content,))


def _values(file: Readable, end: int) -> Iterator[_Value]:
    position = 0
    while position < end:
        head = file.pread(position, min(_HEAD_BYTES, end - position))
        key, at = read_varint(head, 0)
        size, at = read_varint(head, at)
        stop = position + at + size
        if key != tag(1, BYTES) or stop > end:
            raise WireError(f"no whole value at byte {position}")
        value = _Value(begin=position)
        _parse_value(value, head[: stop - position], at, position, stop)
        value.frame = head[: (value.content[0] if value.content else stop) - position]
        yield value
        position = stop


def _parse_value(value: _Value, head: bytes, at: int, base: int, stop: int) -> None:
    """Parse the fields of one Value; ``head`` holds its first bytes, which lie at ``base`` in the file."""
    while base + at < stop:
        key, at = read_varint(head, at)
        if key == tag(1, BYTES):
            value.tag, at = field(head, at)
        elif key == tag(2, BYTES):
            size, at = read_varint(head, at)
            if base + at + size != stop:
                raise WireError(f"a tensor that does not fill its value at byte {base}")
            _parse_tensor(value, head, at, base, stop)
            return
        else:
            value.is_map |= key == tag(3, BYTES)
            at = skip(head, at, key)


def _parse_tensor(value: _Value, head: bytes, at: int, base: int, stop: int) -> None:
    dims: list[int] = []
    while base + at < stop:
        key, at = read_varint(head, at)
        if key == tag(3, BYTES):
            size, at = read_varint(head, at)
            if base + at + size != stop:
                raise WireError(f"content that does not end its tensor at byte {base + at}")
            value.content = (base + at, size)
            at += size
        elif key == tag(2, BYTES):
            value.type, at = field(head, at)
        elif key == tag(1, 0):
            dim, at = read_varint(head, at)
            dims.append(dim)
        else:
            at = skip(head, at, key)
    value.dims = tuple(dims)


def frame(name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> bytes:
    """Return the bytes that precede ``nbytes`` bytes of content of the tensor ``name`` in a .ckpt."""
    kind = CKPT_NAMES[dtype].encode()
    dims = b"".join(tag_bytes(1, 0) + varint(dim) for dim in shape or (0,))
    tensor = dims + tag_bytes(2, BYTES) + varint(len(kind)) + kind + tag_bytes(3, BYTES) + varint(nbytes)
    label = name.encode()
    value = tag_bytes(1, BYTES) + varint(len(label)) + label + tag_bytes(2, BYTES) + varint(len(tensor) + nbytes)
    return tag_bytes(1, BYTES) + varint(len(value) + len(tensor) + nbytes) + value + tensor


def tag_bytes(number: int, kind: int) -> bytes:
    return varint(tag(number, kind))
