"""Serve from a socket until a signal: uvicorn in a thread of its own, the model in the main thread."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from launcher.common.http.connections import Patience
from launcher.common.http.listening import listen, serving, stderr_log, url_of
from launcher.common.signals import handled
from launcher.inference.sampling import GenerationSpec
from launcher.inference.server.http import Limits, Service, application
from launcher.inference.server.queue import TaskQueue
from launcher.inference.session import Session
from launcher.upstream.quiet import quiet

# How long a request may take to arrive, and an answer to be taken once it is complete.
_SLOW_CLIENT_S = 30.0


def opened(
    session: Session, limits: Limits, *, defaults: GenerationSpec, token: str | None, asked_as: str = ""
) -> Service:
    """Load the model and return the service around it. Raises DataError for a model without a template."""
    _ = session.template
    with quiet():
        session.load()
    queue = TaskQueue(session, most_waiting=limits.most_waiting)
    created = int(time.time())
    return Service(
        session=session, queue=queue, limits=limits, defaults=defaults, token=token, created=created, asked_as=asked_as
    )


def serve(service: Service, host: str, port: int) -> None:
    """Answer until SIGTERM or SIGINT. Raises HostError when the port is taken."""
    listener, limits = listen(host, port), service.limits
    patience = Patience(most=limits.connections, request_s=_SLOW_CLIENT_S, answer_s=limits.timeout_s + _SLOW_CLIENT_S)
    # MindFormers' stderr is redirected while the model answers (``launcher.upstream.quiet``); the log's is not.
    app = application(service, stderr_log())
    with _stopped_by_signals(service.queue), serving(app, listener, patience):
        print(f"{service.name} answers on {url_of(listener)}/v1, until Ctrl-C", file=sys.stderr, flush=True)
        service.queue.run()
    print("stopped", file=sys.stderr, flush=True)


@contextmanager
def _stopped_by_signals(tasks: TaskQueue) -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        tasks.stopping.set()

    with handled((signal.SIGTERM, signal.SIGINT), stop):
        yield
