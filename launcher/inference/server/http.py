"""HTTP: limits on requests, and responses."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from launcher.common.http.access import CLIENT_LEFT, Gate, RequestError, add_note, json_response, unknown
from launcher.common.openmetrics import CONTENT_TYPE
from launcher.inference.decoding import CANCELLED
from launcher.inference.server import formats, protocol
from launcher.inference.server.figures import ANSWERED, FAILED, LEFT, TIMED_OUT, Figures
from launcher.inference.server.formats import Choice, Format, Piece
from launcher.inference.server.page import chat_page, page_headers
from launcher.inference.server.queue import Task, TaskQueue
from launcher.inference.server.served import Served

Parse = Callable[[Mapping[str, Any], protocol.Settings], protocol.Completion]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits for one client. ``timeout_s``: from the arrival of a request to the end of its answer."""

    body_bytes: int = 1 << 20
    most_tokens: int = 1024
    most_waiting: int = 32
    connections: int = 256
    timeout_s: float = 300.0


@dataclass(frozen=True, kw_only=True)
class Service:
    """The state shared by all connections. ``token``: None only on a loopback address."""

    models: Sequence[Served]
    queue: TaskQueue
    figures: Figures
    limits: Limits
    token: str | None
    created: int

    def find(self, name: Any) -> Served:
        """Return the model that clients call ``name``. Raises RequestError without one."""
        for served in self.models:
            if name in {served.name, served.asked_as} - {""}:
                return served
        names = ", ".join(served.name for served in self.models)
        raise RequestError(
            404, f"there is no model {str(name)[:200]!r}; there is {names}", param="model", code="model_not_found"
        )

    def task(self, raw: bytes, parse: Parse, deliver: Callable[[Piece | None], None]) -> Task:
        """Queue the request in ``raw`` and return its task. Raises RequestError."""
        deadline, values = time.monotonic() + self.limits.timeout_s, protocol.parse_object(raw)
        served = self.find(values["model"]) if isinstance(values.get("model"), str) else self.models[0]
        settings = protocol.Settings(defaults=served.defaults, most_tokens=self.limits.most_tokens)
        try:
            completion = parse(values, settings)
            prepared = served.prepare(completion)
            task = Task(served=served, completion=completion, prepared=prepared, deadline=deadline, deliver=deliver)
            self.queue.put(task)
        except RequestError as error:
            error.about = served.name
            raise
        return task


def application(service: Service, log: Callable[[str], None]) -> Starlette:
    """Return the ASGI application. ``log`` is called with one line per request, without prompts."""
    endpoints = _Endpoints(service)
    app = Starlette(
        routes=[
            Route("/", endpoints.page),
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{name:path}", endpoints.model),
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/v1/completions", endpoints.text, methods=["POST"]),
        ],
        middleware=[Middleware(Gate, token=service.token, log=log, public=("/health", "/"))],
        exception_handlers={HTTPException: unknown},
    )
    app.router.redirect_slashes = False
    return app


# ------------------------------------------------------------------------------------------------ answers


class _Endpoints:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, _: Request) -> Response:
        return json_response({"status": "ok"})

    async def page(self, _: Request) -> Response:
        return Response(chat_page(), headers=page_headers(), media_type="text/html")

    async def metrics(self, _: Request) -> Response:
        queue = self._service.queue
        text = self._service.figures.text(running=queue.running, waiting=queue.waiting)
        return Response(text, media_type=CONTENT_TYPE)

    async def models(self, _: Request) -> Response:
        names = [served.name for served in self._service.models]
        return json_response(formats.models(names, self._service.created))

    async def model(self, request: Request) -> Response:
        found = self._service.find(request.path_params["name"])
        return json_response(formats.model(found.name, self._service.created))

    async def chat(self, request: Request) -> Response:
        return await self._complete(request, protocol.parse_chat)

    async def text(self, request: Request) -> Response:
        return await self._complete(request, protocol.parse_text)

    async def _complete(self, request: Request, parse: Parse) -> Response:
        _check_type(request)
        answer = _Answering(request, self._service, await _body(request, self._service.limits.body_bytes))
        await answer.begin(parse)
        return await (_streamed if answer.task.completion.stream else _whole)(answer)


def _check_type(request: Request) -> None:
    """Accept JSON only: a page of another site can make a browser post text, a form or untyped bytes here, but JSON
    only after a preflight request, which is refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(415, "send the header Content-Type: application/json")


async def _body(request: Request, most: int) -> bytes:
    """Read the body, with a declared length or in chunks. A body that is too long is refused unread."""
    length = request.headers.get("content-length")
    if length is None and "transfer-encoding" not in request.headers:
        raise RequestError(411, "say the length of the body: Content-Length")
    raw = bytearray()
    if int(length or 0) <= most:
        async for part in request.stream():
            raw += part
            if len(raw) > most:
                break
    if max(int(length or 0), len(raw)) > most:
        raise RequestError(413, f"the body is larger than {most} bytes")
    return bytes(raw)


class _Answering:
    """An answer in transit from the thread of the models to one client."""

    def __init__(self, request: Request, service: Service, body: bytes) -> None:
        self._request = request
        self._service = service
        self._body = body
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        self._complete = False  # or as complete as the model makes it
        self._began = time.monotonic()

    async def begin(self, parse: Parse) -> None:
        """Put the request into the queue; in a thread, because long prompts take a while. Raises RequestError."""
        try:
            self.task = await asyncio.to_thread(self._service.task, self._body, parse, self._deliver)
        except RequestError as error:
            self._service.figures.refused(error.about)
            raise

    def format(self) -> Format:
        return self.task.served.format(self.task.completion, list(self.task.prepared))

    def _deliver(self, piece: Piece | None) -> None:
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the answer piece by piece until the client leaves or time is up; the model then stops too."""
        watcher = asyncio.create_task(self._watch())
        is_first = True
        try:
            while piece := await self._next():
                if is_first:
                    self._service.figures.began(self.task.served.name, time.monotonic() - self._began)
                    is_first = False
                yield piece
            self._complete = not self.task.left.is_set()
        finally:
            watcher.cancel()
            self.task.left.set()
            self._count()
            add_note(self._request, self._tokens() + ("" if self._complete else " (the client left)"))

    async def _next(self) -> Piece | None:
        try:
            return await asyncio.wait_for(self._pieces.get(), max(0.0, self.task.deadline - time.monotonic()))
        except asyncio.TimeoutError:
            self.task.timed_out = True
            return None

    async def _watch(self) -> None:
        """Wait until the client disconnects: nothing else comes after a whole request."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.task.left.set()
        self._pieces.put_nowait(None)

    def failure(self) -> RequestError | None:
        """Return the reason why the answer is incomplete; None when it is complete."""
        if not self._complete:
            return RequestError(CLIENT_LEFT, f"{self._tokens()} (the client left)")
        if self.task.timed_out:
            return RequestError(504, f"no answer within {self._service.limits.timeout_s:g} s", code="timeout")
        if self.task.error is not None or any(row.finish in (None, CANCELLED) for row in self.task.rows):
            return RequestError(503, self.task.error or "the server is shutting down")
        return None

    def _count(self) -> None:
        failure, usage = self.failure(), self.usage()
        outcomes = {None: ANSWERED, CLIENT_LEFT: LEFT, 504: TIMED_OUT}
        self._service.figures.ended(
            self.task.served.name,
            outcomes.get(failure.status if failure else None, FAILED),
            prompt_tokens=usage["prompt_tokens"],
            new_tokens=usage["completion_tokens"],
            seconds=time.monotonic() - self._began,
        )

    def raise_failure(self) -> None:
        failure = self.failure()
        if failure is not None:
            raise failure

    def usage(self) -> dict[str, int]:
        """Return the token counts so far; a prompt with several answers counts once."""
        prompts = sum(len(item.ids) for item in self.task.prepared)
        return formats.usage(prompts, sum(len(row.new_tokens) for row in self.task.rows))

    def _tokens(self) -> str:
        usage = self.usage()
        return f"{usage['prompt_tokens']}+{usage['completion_tokens']} tokens"


async def _whole(answer: _Answering) -> Response:
    choices = [Choice() for _ in answer.task.rows]
    async for piece in answer.pieces():
        choices[piece.index].add(piece)
    answer.raise_failure()
    return json_response(answer.format().whole(choices, answer.usage()))


async def _streamed(answer: _Answering) -> Response:
    """Stream server-sent events. A failure before the first token is an HTTP error; later, an event."""
    pieces = answer.pieces()
    first = await anext(pieces, None)
    if first is None or first.finish == CANCELLED:
        async for _ in pieces:
            pass
        answer.raise_failure()
    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(_events(answer, first, pieces), media_type="text/event-stream", headers=headers)


async def _events(answer: _Answering, first: Piece | None, pieces: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
    form = answer.format()
    for chunk in form.chunks(first) if first else ():
        yield _event(chunk)
    async for piece in pieces:
        for chunk in form.chunks(piece):
            yield _event(chunk)
    if failure := answer.failure():
        yield _event(failure.to_dict())
        return
    if answer.task.completion.include_usage:
        yield _event(form.usage_chunk(answer.usage()))
    yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
