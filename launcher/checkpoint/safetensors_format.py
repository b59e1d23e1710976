"""safetensors: eight bytes of header length, a JSON header, the tensors. Read here to know byte offsets.

The format: github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from launcher.checkpoint.dtypes import FROM_SAFETENSORS, SAFETENSORS_NAMES
from launcher.checkpoint.entries import Entry, Index, Readable, check_count, check_entry, check_name, damaged

# The safetensors library takes 100 MB; a LLaMA of 126 layers with optimizer state needs less than one.
_MAX_HEADER_BYTES = 32 << 20
_CRC_DIGITS = 10
# MindSpore holds as many bytes in memory as a counter says, to make a CRC.
_MAX_COUNT = 1 << 32


def read_index(file: Readable) -> Index:
    """Read the index of a safetensors file. Raises CheckpointError when it is damaged."""
    header, base = _header(file)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(file.path, "its metadata are not text")
    check_count(file.path, len(header))
    entries = [_entry(file, name, item, base) for name, item in header.items()]
    entries.sort(key=lambda entry: (entry.extents[0], entry.name))
    _check_packed(file, entries, base)
    crc = metadata.get("crc_num", "")
    if len(crc) > _CRC_DIGITS:
        raise damaged(file.path, f"a CRC-32 of {len(crc)} digits")
    return Index(
        entries={entry.name: entry for entry in entries},
        metadata=metadata,
        crc=int(crc) if crc.isascii() and crc.isdigit() else None,
    )


def _header(file: Readable) -> tuple[dict[str, Any], int]:
    if file.size < 8:
        raise damaged(file.path, f"it has {file.size} bytes")
    size = int.from_bytes(file.pread(0, 8), "little")
    if size > min(_MAX_HEADER_BYTES, file.size - 8):
        raise damaged(file.path, f"a header of {size} bytes in a file of {file.size}")
    try:
        header = json.loads(file.pread(8, size))
    except (ValueError, RecursionError) as error:
        raise damaged(file.path, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise damaged(file.path, "its header is no mapping")
    return header, 8 + size


def _entry(file: Readable, name: str, item: Any, base: int) -> Entry:
    name = check_name(file.path, name.encode("utf-8", "surrogatepass"))
    try:
        begin, end = (_whole(number) for number in item["data_offsets"])
        shape = tuple(_whole(dim) for dim in item["shape"])
        dtype = FROM_SAFETENSORS[item["dtype"]]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(file.path, f"{name}: dtype, shape or place is missing or of no known kind") from error
    if base + end > file.size or begin > end:
        raise damaged(file.path, f"{name} ends at byte {base + end} of {file.size}")
    entry = Entry(name=name, dtype=dtype, shape=shape, extents=((base + begin, end - begin),))
    return check_entry(file.path, entry)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def _check_packed(file: Readable, entries: list[Entry], base: int) -> None:
    """Check that tensors lie without gap or overlap up to the end of the file, as the format demands."""
    for entry in entries:
        offset, nbytes = entry.extents[0]
        if offset != base:
            raise damaged(file.path, f"{entry.name} begins at byte {offset}, the tensor before it ends at {base}")
        base += nbytes
    if base != file.size:
        raise damaged(file.path, f"its tensors end at byte {base} of {file.size}")


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
