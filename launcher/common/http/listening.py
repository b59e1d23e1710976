"""A server that listens in a thread of its own."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from launcher import __version__
from launcher.common.http.connections import Connection, Patience
from launcher.errors import HostError

# How long connections that are being answered get when the server ends.
_FAREWELL_S = 2


def listen(host: str, port: int, *, flag: str = "--port") -> socket.socket:
    """Return a socket that listens; ``flag`` is how the user gave the port. Raises HostError when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise HostError(f"cannot listen on {host}:{port}: {error.strerror}", hint=f"give another {flag}") from error


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def serving(app: ASGIApp, listener: socket.socket, patience: Patience) -> Iterator[None]:
    """Answer on ``listener`` inside the block."""
    server = uvicorn.Server(_config(app, patience))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(_FAREWELL_S + 2)


def _config(app: ASGIApp, patience: Patience) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=cast(Any, partial(Connection, patience)),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        headers=[("server", f"launcher/{__version__}")],
        timeout_graceful_shutdown=_FAREWELL_S,
    )


def stderr_log() -> Callable[[str], None]:
    """Return a function that writes one line, with its time, to what stderr is now, wherever stderr leads later."""
    stream = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")

    def log(line: str) -> None:
        stream.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        stream.flush()

    return log
