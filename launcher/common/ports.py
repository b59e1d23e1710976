"""Free ports on this host."""

from __future__ import annotations

import socket

from launcher.errors import HostError


def _socket(address: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)


def is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Return True if a server could listen on ``port`` of ``address`` now."""
    with _socket(address) as probe:
        # Connections that linger after a job (TIME_WAIT) do not make its port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port that is free now, picked by the system."""
    with _socket(address) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def scheduler_port(named: int | None, address: str = "127.0.0.1") -> int:
    """Return the port for MindSpore's scheduler: ``named`` if the user named one, else a free one.

    Raises HostError when the named one is taken: msrun would find out after 37 s to 10 min.
    """
    if named is None:
        return free_port(address)
    if not is_free(named, address):
        raise HostError(
            f"--port {named} is in use on {address}",
            hint="leave --port out to have a free one picked, or name another",
        )
    return named
