"""IP addresses, compared as bytes: two spellings of one address are equal."""

from __future__ import annotations

import socket


def packed_ip(text: str) -> bytes | None:
    """``text`` as 4 or 16 bytes, so that two spellings of one address are equal; None when it is no address."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return socket.inet_pton(family, text)
    except (OSError, ValueError):  # no address; a NUL or a lone surrogate in it
        return None
