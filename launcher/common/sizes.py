"""Sizes of files as people write them."""

from __future__ import annotations

import re

_UNITS = {"GB": 10**9, "MB": 10**6, "KB": 10**3, "": 1}
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMG]B|)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes of "5GB", "500MB" or a plain number. Raises ValueError for what is no size, or none at all."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise ValueError(f"{text!r} is no size; write 5GB or 500MB")
    return size


def size_text(size: int) -> str:
    """Return ``size`` bytes in MB or GB."""
    return f"{size / 1e9:.2f} GB" if size >= 10**8 else f"{size / 1e6:.2f} MB"
