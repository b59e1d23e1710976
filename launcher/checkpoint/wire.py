"""Protobuf's wire format (protobuf.dev/programming-guides/encoding), the part that checkpoints and strategies need."""

from __future__ import annotations

from collections.abc import Iterator

VARINT = 0
FIXED64 = 1
BYTES = 2
FIXED32 = 5


class WireError(ValueError):
    """Bytes that are not a protobuf message."""


def tag(number: int, kind: int) -> int:
    """Return the key of field ``number`` with wire type ``kind``."""
    return number << 3 | kind


def varint(value: int) -> bytes:
    """Encode ``value`` as a varint; a negative one as its 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the unsigned varint at ``at`` and the position after it. Raises WireError."""
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise WireError(f"no whole number at byte {at} of a message")


def field(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the length-delimited field at ``at`` and the position after it. Raises WireError."""
    size, at = read_varint(data, at)
    if at + size > len(data):
        raise WireError(f"a field of {size} bytes that is not whole")
    return data[at : at + size], at + size


def skip(data: bytes, at: int, key: int) -> int:
    """Return the position after the value of the field ``key`` at ``at``. Raises WireError."""
    kind = key & 7
    if kind == VARINT:
        return read_varint(data, at)[1]
    if kind == BYTES:
        return field(data, at)[1]
    if kind in (FIXED32, FIXED64):
        return at + (4 if kind == FIXED32 else 8)
    raise WireError(f"wire type {kind}")


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of every field of a message in memory. Raises WireError."""
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        if key & 7 == VARINT:
            value, at = read_varint(data, at)
            yield key >> 3, value
        elif key & 7 == BYTES:
            content, at = field(data, at)
            yield key >> 3, content
        else:
            at = skip(data, at, key)


def signed(value: int) -> int:
    """Return the signed value of an int32 or int64 that was read as an unsigned varint."""
    return value - (1 << 64) if value >> 63 else value
