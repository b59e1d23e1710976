"""Limits on the number of connections and on the time that each may keep the server waiting.

uvicorn reads HTTP/1.1 with h11 and has no time limit for a request that trickles in, nor for a client that does not
read its answer. Here each connection has one timer: first for the whole request to arrive, then for its answer to be
read. When there are too many connections, the one that has waited longest without a whole request is closed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True, kw_only=True)
class Patience:
    """most: connections at once. request_s: for a whole request to arrive. answer_s: for an answer to be read."""

    most: int
    request_s: float
    answer_s: float


class Connection(H11Protocol):
    """One client's connection."""

    def __init__(self, patience: Patience, **options: Any) -> None:
        super().__init__(**options)
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        self.waits_since = self.loop.time()

    @property
    def waits(self) -> bool:
        """Return whether the server waits for the client: it has no request, or only a part of one."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer; make room when this is one connection too many."""
        super().connection_made(transport)
        self._start_timer()
        others = [other for other in self.connections if isinstance(other, Connection) and other.is_open()]
        if len(others) > self._patience.most:
            waiting = (other for other in others if other is not self and other.waits)
            min(waiting, key=lambda other: other.waits_since, default=self).transport.abort()

    def is_open(self) -> bool:
        return not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        waited = self.waits
        super().data_received(data)
        if waited and not self.waits:
            self._start_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self.waits_since = self.loop.time()
        seconds = self._patience.request_s if self.waits else self._patience.answer_s
        self._timer = self.loop.call_later(seconds, self.transport.abort)
