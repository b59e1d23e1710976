"""Serve from a socket until a signal: uvicorn in a thread of its own, the model in the main thread."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from launcher.common.http.connections import Patience
from launcher.common.http.listening import listen, serving, stderr_log, url_of
from launcher.common.signals import handled
from launcher.inference.server.figures import Figures
from launcher.inference.server.http import Limits, Service, application
from launcher.inference.server.queue import TaskQueue
from launcher.inference.server.served import Served, check_names
from launcher.inference.session import OnPhase, unheard
from launcher.inference.slots import cache_bytes
from launcher.upstream.quiet import quiet

# How long a request may take to arrive, and an answer to be taken once it is complete.
_SLOW_CLIENT_S = 30.0


def opened(models: Sequence[Served], limits: Limits, *, token: str | None, on_phase: OnPhase = unheard) -> Service:
    """Load the models and return the service around them. Raises SpecError when two have one name."""
    check_names(list(models))
    for served in models:
        if served.session.model.template is None:
            print(f"note: {served.name} has no chat template: /v1/completions alone", file=sys.stderr, flush=True)
        served.session.on_phase = on_phase
        with quiet():
            served.session.load()
    queue = TaskQueue(most_waiting=limits.most_waiting)
    figures = Figures(served.name for served in models)
    return Service(models=models, queue=queue, figures=figures, limits=limits, token=token, created=int(time.time()))


def serve(service: Service, host: str, port: int) -> None:
    """Answer until SIGTERM or SIGINT. Raises HostError when the port is taken."""
    listener, limits = listen(host, port), service.limits
    patience = Patience(most=limits.connections, request_s=_SLOW_CLIENT_S, answer_s=limits.timeout_s + _SLOW_CLIENT_S)
    # MindFormers' stderr is redirected while the model answers (``launcher.upstream.quiet``); the log's is not.
    app = application(service, stderr_log())
    with _stopped_by_signals(service.queue), serving(app, listener, patience):
        for served in service.models:
            print(_slots(served), file=sys.stderr)
        answers = "answers" if len(service.models) == 1 else "answer"
        names = ", ".join(served.name for served in service.models)
        print(f"{names} {answers} on {url_of(listener)}/v1, until Ctrl-C", file=sys.stderr, flush=True)
        service.queue.run()
    print("stopped", file=sys.stderr, flush=True)


def _slots(served: Served) -> str:
    session = served.session
    rows, context = session.batch_size, session.model.context
    mib = rows * cache_bytes(session.model, on_cpu=session.on_cpu) / (1 << 20)
    return f"{served.name}: {rows} slots of {context} tokens each; {mib:.3g} MiB of keys and values when all are full"


@contextmanager
def _stopped_by_signals(tasks: TaskQueue) -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        tasks.stopping.set()

    with handled((signal.SIGTERM, signal.SIGINT), stop):
        yield
