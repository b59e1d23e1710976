"""HTTP: limits on requests, and responses."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from launcher.common.http.access import CLIENT_LEFT, Gate, RequestError, add_note, json_response, unknown
from launcher.errors import LauncherError
from launcher.inference.decoding import CANCELLED
from launcher.inference.sampling import GenerationSpec
from launcher.inference.server import protocol
from launcher.inference.server.queue import Task, TaskQueue
from launcher.inference.session import Question, Session


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
    """The state shared by all connections. ``token``: None only on a loopback address.

    ``asked_as``: the words by which the user named the model, such as "last"; clients may use them too.
    """

    session: Session
    queue: TaskQueue
    limits: Limits
    defaults: GenerationSpec
    token: str | None
    created: int
    asked_as: str = ""

    @property
    def name(self) -> str:
        """Return the job's id, or the base name of a folder or file: clients put it into a URL."""
        parts = self.session.model.name.split(" + ")  # a model and its adapter
        return "+".join(Path(part).resolve().name for part in parts)

    @property
    def names(self) -> set[str]:
        """Return the names that clients may use."""
        return {self.name, self.asked_as} - {""}

    def task(self, raw: bytes, deliver: Callable[[str | None], None]) -> Task:
        """Queue the request in ``raw`` and return its task. Raises RequestError."""
        completion = protocol.parse_completion(raw, defaults=self.defaults, most_tokens=self.limits.most_tokens)
        if completion.model not in self.names:
            raise _no_model(completion.model, self.name)
        try:
            (prepared,) = self.session.prepare([Question(id=completion.id, messages=completion.messages)])
        except LauncherError as error:
            raise RequestError(400, error.message, param="messages", code="context_length_exceeded") from error
        deadline = time.monotonic() + self.limits.timeout_s
        task = Task(completion=completion, prepared=prepared, deadline=deadline, deliver=deliver)
        self.queue.put(task)
        return task


def application(service: Service, log: Callable[[str], None]) -> Starlette:
    """Return the ASGI application. ``log`` is called with one line per request, without prompts."""
    endpoints = _Endpoints(service)
    app = Starlette(
        routes=[
            Route("/health", endpoints.health),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{name:path}", endpoints.model),
            Route("/v1/chat/completions", endpoints.complete, methods=["POST"]),
        ],
        middleware=[Middleware(Gate, token=service.token, log=log, public=("/health",))],
        exception_handlers={HTTPException: unknown},
    )
    app.router.redirect_slashes = False
    return app


def _no_model(asked: str, name: str) -> RequestError:
    return RequestError(404, f"there is no model {asked[:200]!r}, only {name!r}", param="model", code="model_not_found")


# ------------------------------------------------------------------------------------------------ answers


class _Endpoints:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, _: Request) -> Response:
        return json_response({"status": "ok"})

    async def models(self, _: Request) -> Response:
        return json_response(protocol.models(self._service.name, self._service.created))

    async def model(self, request: Request) -> Response:
        asked = request.path_params["name"]
        if asked not in self._service.names:
            raise _no_model(asked, self._service.name)
        return json_response(protocol.model(self._service.name, self._service.created))

    async def complete(self, request: Request) -> Response:
        _check_type(request)
        answer = _Answering(request, self._service, await _body(request, self._service.limits.body_bytes))
        await answer.begin()
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
    """An answer in transit from the thread of the model to one client."""

    def __init__(self, request: Request, service: Service, body: bytes) -> None:
        self._request = request
        self._service = service
        self._body = body
        self._loop = asyncio.get_running_loop()
        self._texts: asyncio.Queue[str | None] = asyncio.Queue()
        self._complete = False  # or as complete as the model makes it

    async def begin(self) -> None:
        """Put the request into the queue; in a thread, because long prompts take a while. Raises RequestError."""
        self.task = await asyncio.to_thread(self._service.task, self._body, self._deliver)

    def _deliver(self, text: str | None) -> None:
        self._loop.call_soon_threadsafe(self._texts.put_nowait, text)

    async def texts(self) -> AsyncIterator[str]:
        """Yield the answer piece by piece until the client leaves or time is up; the model then stops too."""
        watcher = asyncio.create_task(self._watch())
        try:
            while text := await self._next():
                yield text
            self._complete = not self.task.left.is_set()
        finally:
            watcher.cancel()
            self.task.left.set()
            add_note(self._request, self._tokens() + ("" if self._complete else " (the client left)"))

    async def _next(self) -> str | None:
        try:
            return await asyncio.wait_for(self._texts.get(), max(0.0, self.task.deadline - time.monotonic()))
        except asyncio.TimeoutError:
            self.task.timed_out = True
            return None

    async def _watch(self) -> None:
        """Wait until the client disconnects: nothing else comes after a whole request."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.task.left.set()
        self._texts.put_nowait(None)

    def failure(self) -> RequestError | None:
        """Return the reason why the answer is incomplete; None when it is complete."""
        if not self._complete:
            return RequestError(CLIENT_LEFT, f"{self._tokens()} (the client left)")
        if self.task.timed_out:
            return RequestError(504, f"no answer within {self._service.limits.timeout_s:g} s", code="timeout")
        if self.task.error is not None or self.task.row is None or self.task.row.finish == CANCELLED:
            return RequestError(503, self.task.error or "the server is shutting down")
        return None

    def raise_failure(self) -> None:
        failure = self.failure()
        if failure is not None:
            raise failure

    @property
    def finish(self) -> str:
        return str(self.task.row.finish if self.task.row else CANCELLED)

    def usage(self) -> dict[str, int]:
        """Return the token counts so far."""
        return protocol.usage(len(self.task.prepared.ids), len(self.task.row.new_tokens) if self.task.row else 0)

    def _tokens(self) -> str:
        usage = self.usage()
        return f"{usage['prompt_tokens']}+{usage['completion_tokens']} tokens"


async def _whole(answer: _Answering) -> Response:
    text = "".join([piece async for piece in answer.texts()])
    answer.raise_failure()
    return json_response(protocol.answered(answer.task.completion, text, answer.finish, answer.usage()))


async def _streamed(answer: _Answering) -> Response:
    """Stream server-sent events. A failure before the first token is an HTTP error; later, an event."""
    texts = answer.texts()
    first = await anext(texts, "")
    if not first:
        answer.raise_failure()
    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(_events(answer, first, texts), media_type="text/event-stream", headers=headers)


async def _events(answer: _Answering, first: str, texts: AsyncIterator[str]) -> AsyncIterator[bytes]:
    completion = answer.task.completion
    yield _event(protocol.chunk(completion, {"role": "assistant", "content": first}))
    async for text in texts:
        yield _event(protocol.chunk(completion, {"content": text}))
    if failure := answer.failure():
        yield _event(failure.to_dict())
        return
    yield _event(protocol.chunk(completion, {}, answer.finish))
    if completion.include_usage:
        yield _event(protocol.usage_chunk(completion, answer.usage()))
    yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
