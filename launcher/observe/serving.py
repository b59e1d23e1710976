"""The metrics of a jobs folder over HTTP, for Prometheus to scrape: one path, and nothing but GET."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from launcher.common.http.access import Gate, unknown
from launcher.common.openmetrics import CONTENT_TYPE


def application(make: Callable[[], str], token: str | None, log: Callable[[str], None]) -> Starlette:
    """Return the ASGI application that answers /metrics with ``make()``. ``log`` is called with a line per request."""
    app = Starlette(
        routes=[Route("/metrics", _Metrics(make).answer)],
        middleware=[Middleware(Gate, token=token, log=log)],
        exception_handlers={HTTPException: unknown},
    )
    app.router.redirect_slashes = False
    return app


class _Metrics:
    """Scrapes wait for each other: the folder is read once at a time."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self._lock = threading.Lock()

    async def answer(self, _: Request) -> Response:
        return Response(await asyncio.to_thread(self._text), media_type=CONTENT_TYPE)

    def _text(self) -> bytes:
        with self._lock:
            return self._make().encode()
