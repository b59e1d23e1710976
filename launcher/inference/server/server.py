"""Serve from a socket until a signal: uvicorn in a thread of its own, the model in the main thread."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn

from launcher import __version__
from launcher.common.signals import handled
from launcher.errors import DataError, HostError, SpecError
from launcher.inference.sampling import GenerationSpec
from launcher.inference.server.connections import Connection, Patience
from launcher.inference.server.http import Limits, Service, application
from launcher.inference.server.queue import TaskQueue
from launcher.inference.session import Session
from launcher.upstream.quiet import quiet

# How long a request may take to arrive, and an answer to be taken once it is complete.
_SLOW_CLIENT_S = 30.0
# How long connections that are being answered get when the server ends.
_FAREWELL_S = 2


def check_address(host: str, token: str | None) -> None:
    """Raise SpecError when others could reach ``host`` and there is no ``token``."""
    if token is None and not is_loopback(host):
        raise SpecError(
            f"--host {host} can be reached from other machines, and there is no token",
            hint="put one into LAUNCHER_TOKEN (openssl rand -hex 32 makes one), or stay on 127.0.0.1",
        )
    if token is not None and len(token) < 16:
        raise SpecError("the token is shorter than 16 characters", hint="openssl rand -hex 32 makes a good one")


def read_token(path: Path | None) -> str | None:
    """Return the token in ``path``, else that of $LAUNCHER_TOKEN. Raises DataError when the file cannot be read."""
    if path is None:
        return os.environ.get("LAUNCHER_TOKEN") or None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the token in {path}: {error}", hint="give another --token-file") from error


def opened(session: Session, limits: Limits, *, defaults: GenerationSpec, token: str | None) -> Service:
    """Load the model and return the service around it. Raises DataError for a model without a template."""
    _ = session.template
    with quiet():
        session.load()
    queue = TaskQueue(session, most_waiting=limits.most_waiting)
    created = int(time.time())
    return Service(session=session, queue=queue, limits=limits, defaults=defaults, token=token, created=created)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(service: Service, host: str, port: int) -> None:
    """Answer until SIGTERM or SIGINT. Raises HostError when the port is taken."""
    listener = _listener(host, port)
    server = uvicorn.Server(_config(service))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    with _stopped_by_signals(service.queue):
        print(f"{service.name} answers on {_url(listener)}/v1, until Ctrl-C", file=sys.stderr, flush=True)
        thread.start()
        service.queue.run()
        server.should_exit = True
        thread.join(_FAREWELL_S + 2)
    print("stopped", file=sys.stderr, flush=True)


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise HostError(f"cannot listen on {host}:{port}: {error.strerror}", hint="give another --port") from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _config(service: Service) -> uvicorn.Config:
    limits = service.limits
    patience = Patience(most=limits.connections, request_s=_SLOW_CLIENT_S, answer_s=limits.timeout_s + _SLOW_CLIENT_S)
    return uvicorn.Config(
        application(service, _logger()),
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


def _logger() -> Any:
    """Return a function that writes one line to the present stderr: while the model answers, MindFormers' stderr is
    redirected (``launcher.upstream.quiet``)."""
    stream = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")

    def log(line: str) -> None:
        stream.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        stream.flush()

    return log


@contextmanager
def _stopped_by_signals(tasks: TaskQueue) -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        tasks.stopping.set()

    with handled((signal.SIGTERM, signal.SIGINT), stop):
        yield
