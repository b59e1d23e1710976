"""Probes from one host to others, run by the agent of each: TCP connections, and pings from card to card."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from launcher.cluster.discover.hccn import Ping, ping
from launcher.doctor.system import hccl_ports

CONNECT_S = 3.0
PING_S = 10.0
# The pings of one host together take no longer; those for which no time is left are counted as not made.
ALL_PINGS_S = 60.0
_AT_A_TIME = 4
_CONNECTIONS_AT_A_TIME = 32


@dataclass(frozen=True, kw_only=True)
class Reached:
    """The outcome of a TCP connection to ``port`` of ``address``. ``fault``: the reason why there was none, or ""."""

    address: str
    port: int
    fault: str = ""


@contextmanager
def listening(port: int | None, *, ascend: bool) -> Iterator[list[int]]:
    """Listen on the ports that a job will use, and yield those that are ours; others are taken and not tested.

    These are MindSpore's scheduler port (any free one if None) and, on Ascend, the ends and the middle of HCCL's range.
    """
    wanted = [port or 0, *_some(hccl_ports(os.environ) if ascend else None)]
    with contextlib.ExitStack() as stack:
        servers = [server for number in wanted if (server := _listen(number)) is not None]
        for server in servers:
            stack.callback(_close, server)
            threading.Thread(target=_accept, args=(server,), daemon=True).start()
        yield [server.getsockname()[1] for server in servers]


def _some(ports: range | None) -> tuple[int, ...]:
    return (ports[0], ports[len(ports) // 2], ports[-1]) if ports else ()


def _listen(port: int) -> socket.socket | None:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError:
        return None


def _close(server: socket.socket) -> None:
    """Close ``server`` so that a thread in accept() wakes up: until then the port stays open."""
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
    server.close()


def _accept(server: socket.socket) -> None:
    """Take connections and drop them, until the server is closed."""
    with contextlib.suppress(OSError):
        while True:
            server.accept()[0].close()


def reach(targets: Sequence[tuple[str, int]]) -> list[Reached]:
    """Connect to all ``targets``, each an address and a port."""
    if not targets:
        return []
    with ThreadPoolExecutor(max_workers=_CONNECTIONS_AT_A_TIME) as pool:
        return list(pool.map(_connect, targets))


def _connect(target: tuple[str, int]) -> Reached:
    address, port = target
    try:
        socket.create_connection((address, port), timeout=CONNECT_S).close()
    except TimeoutError:
        return Reached(address=address, port=port, fault=f"no answer within {CONNECT_S:g} s")
    except OSError as error:
        return Reached(address=address, port=port, fault=error.strerror or str(error))
    return Reached(address=address, port=port)


def ping_all(pairs: Sequence[tuple[int, str]], *, limit_s: float = ALL_PINGS_S) -> list[Ping]:
    """Ping each pair's address from its card, until ``limit_s`` is over."""
    deadline = time.monotonic() + limit_s

    def one(pair: tuple[int, str]) -> Ping:
        left = deadline - time.monotonic()
        if left < 1:
            return Ping(device_id=pair[0], address=pair[1], fault="no time was left for it")
        return ping(*pair, timeout_s=min(PING_S, left))

    if not pairs:
        return []
    with ThreadPoolExecutor(max_workers=_AT_A_TIME) as pool:
        return list(pool.map(one, pairs))
