"""IP addresses, compared as bytes: two spellings of one address are equal."""

from __future__ import annotations

import socket


def packed_ip(text: str) -> bytes | None:
    """Return the address ``text`` as 4 or 16 bytes, the same for all its spellings; None when it is not an address."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return socket.inet_pton(family, text)
    except (OSError, ValueError):  # no address; a NUL or a lone surrogate in it
        return None
