"""The address by which other hosts reach this one."""

from __future__ import annotations

import socket

# TEST-NET-1 (RFC 5737): routed like any far address; connecting a datagram socket sends nothing.
_FAR_AWAY = ("192.0.2.1", 9)


def own_address() -> str | None:
    """Return the address of the default route's interface, else the first that is not loopback, else None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_FAR_AWAY)
            address = str(probe.getsockname()[0])
        except OSError:
            address = "127.0.0.1"
    if not address.startswith("127."):
        return address
    return next(iter(_interface_addresses()), None)


def _interface_addresses() -> list[str]:
    import psutil

    return [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
