"""safetensors: eight bytes of header length, a JSON header, the tensors. Read here to know byte offsets.

The format: github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from launcher.checkpoint.dtypes import FROM_SAFETENSORS, SAFETENSORS_NAMES
from launcher.checkpoint.entries import Entry, FlawError, Index, Readable, check_count, check_entry, check_name, damaged

# The safetensors library takes 100 MB; a LLaMA of 126 layers with optimizer state needs less than one.
_MAX_HEADER_BYTES = 32 << 20
# Headers of up to so many bytes are remembered, and metadata of up to so many at its head told apart from it.
_KEPT_HEADER_BYTES, _MAX_METADATA_BYTES = 2 << 20, 64 << 10
_METADATA = b'{"__metadata__":'
_CRC_DIGITS = 10
# MindSpore holds as many bytes in memory as a counter says, to make a CRC.
_MAX_COUNT = 1 << 32


def read_index(file: Readable) -> Index:
    """Read the index of a safetensors file. Raises CheckpointError when it is damaged."""
    try:
        return _read_index(file)
    except FlawError as flaw:
        raise damaged(file.path, str(flaw)) from flaw


def _read_index(file: Readable) -> Index:
    text, base = _header(file)
    metadata, rest = _without_metadata(text)
    # Hundreds of ranks hold slices of equal shapes at equal offsets, and so have one header but for its metadata.
    read = _read_tensors if len(rest) <= _KEPT_HEADER_BYTES else _read_tensors.__wrapped__
    try:
        entries, inner = read(rest, base, file.size)
    except FlawError:
        # Once more as a whole: places in the message are those in the header.
        entries, inner = _read_tensors.__wrapped__(text, base, file.size)
    metadata = metadata if inner is None else inner
    metadata = metadata or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FlawError("its metadata are not text")
    crc = metadata.get("crc_num", "")
    if len(crc) > _CRC_DIGITS:
        raise FlawError(f"a CRC-32 of {len(crc)} digits")
    return Index(entries=entries, metadata=metadata, crc=int(crc) if crc.isascii() and crc.isdigit() else None)


def _header(file: Readable) -> tuple[bytes, int]:
    """Return the JSON of a header, and where the tensors begin."""
    if file.size < 8:
        raise FlawError(f"it has {file.size} bytes")
    size = int.from_bytes(file.pread(0, 8), "little")
    if size > min(_MAX_HEADER_BYTES, file.size - 8):
        raise FlawError(f"a header of {size} bytes in a file of {file.size}")
    return file.pread(8, size), 8 + size


def _without_metadata(text: bytes) -> tuple[Any, bytes]:
    """Return the metadata that ``text`` begins with, and the header without them; None and all of it elsewhere."""
    if text.startswith(_METADATA):
        try:
            head = text[len(_METADATA) : len(_METADATA) + _MAX_METADATA_BYTES].decode("ascii")
            metadata, end = json.JSONDecoder().raw_decode(head)
        except (ValueError, RecursionError):
            return None, text
        if head[end : end + 2] == ',"':
            return metadata, b"{" + text[len(_METADATA) + end + 1 :]
    return None, text


@functools.lru_cache(maxsize=16)
def _read_tensors(text: bytes, base: int, file_size: int) -> tuple[Mapping[str, Entry], Any]:
    """Return the tensors in the header ``text`` of a file of ``file_size`` bytes, in file order, and its metadata.

    Tensors begin at ``base``. Raises FlawError.
    """
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FlawError(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise FlawError("its header is no mapping")
    metadata = header.pop("__metadata__", None)
    check_count(len(header))
    entries = [_entry(name, item, base, file_size) for name, item in header.items()]
    entries.sort(key=lambda entry: (entry.extents[0], entry.name))
    _check_packed(entries, base, file_size)
    return {entry.name: entry for entry in entries}, metadata


def _entry(name: str, item: Any, base: int, file_size: int) -> Entry:
    name = check_name(name.encode("utf-8", "surrogatepass"))
    try:
        begin, end = map(_whole, item["data_offsets"])
        shape = tuple(map(_whole, item["shape"]))
        dtype = FROM_SAFETENSORS[item["dtype"]]
    except (KeyError, TypeError, ValueError) as error:
        raise FlawError(f"{name}: dtype, shape or place is missing or of no known kind") from error
    if base + end > file_size or begin > end:
        raise FlawError(f"{name} ends at byte {base + end} of {file_size}")
    return check_entry(Entry(name=name, dtype=dtype, shape=shape, extents=((base + begin, end - begin),)))


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def _check_packed(entries: list[Entry], base: int, file_size: int) -> None:
    """Check that tensors lie without gap or overlap up to the end of the file, as the format demands."""
    for entry in entries:
        offset, nbytes = entry.extents[0]
        if offset != base:
            raise FlawError(f"{entry.name} begins at byte {offset}, the tensor before it ends at {base}")
        base += nbytes
    if base != file_size:
        raise FlawError(f"its tensors end at byte {base} of {file_size}")


def computed_crc(file: Readable) -> int:
    """Compute the CRC-32 over names and tensors, sorted by name, that save_checkpoint(crc_check=True) stores.

    For an integer scalar (step_num) mindspore 2.9.0 hashes ``bytes(number)``: that many zero bytes.
    """
    crc = 0
    for name in sorted(file.entries):
        crc = zlib.crc32(name.encode(), crc)
        entry = file.entries[name]
        is_count = not entry.shape and entry.dtype.lstrip("u").startswith("int")
        crc = _crc_of_zeros(file, name, crc) if is_count else _crc_of_bytes(file, entry, crc)
    return crc


def _crc_of_bytes(file: Readable, entry: Entry, crc: int) -> int:
    offset, left = entry.extents[0]
    while left:
        block = file.pread(offset, min(1 << 20, left))
        crc, offset, left = zlib.crc32(block, crc), offset + len(block), left - len(block)
    return crc


def _crc_of_zeros(file: Readable, name: str, crc: int) -> int:
    count = int(file.array(name))
    if not 0 <= count < _MAX_COUNT:
        raise damaged(file.path, f"{name} is {count}, of which mindspore makes no CRC")
    for start in range(0, count, 1 << 20):
        crc = zlib.crc32(bytes(min(1 << 20, count - start)), crc)
    return crc


def header_bytes(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """Return length and header of a file that holds ``tensors`` ((name, dtype, shape, bytes), in this order)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape, nbytes in tensors:
        place = [offset, offset + nbytes]
        header[name] = {"dtype": SAFETENSORS_NAMES[dtype], "shape": list(shape), "data_offsets": place}
        offset += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begin at a multiple of eight, as the library has it
    return len(text).to_bytes(8, "little") + text
