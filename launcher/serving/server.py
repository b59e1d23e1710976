"""HTTP: who may ask, how much, and what goes back. The model runs in the main thread, connections in their own."""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Any

from launcher import __version__
from launcher.errors import HostError, LauncherError, SpecError
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Question, Session
from launcher.serving import protocol
from launcher.serving.protocol import Completion, RequestError
from launcher.serving.queue import Task, TaskQueue

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
# How long a connection may keep silent: a slow sender, or a kept-alive one.
_SILENCE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may ask of the server. ``timeout_s``: from the arrival of a request to the end of its answer."""

    body_bytes: int = 1 << 20
    most_tokens: int = 1024
    most_waiting: int = 32
    connections: int = 64
    timeout_s: float = 300.0


@dataclass(frozen=True, kw_only=True)
class Service:
    """What all connections share. ``token``: None only on a loopback address."""

    session: Session
    queue: TaskQueue
    limits: Limits
    defaults: GenerationSpec
    token: str | None
    created: int

    @property
    def name(self) -> str:
        return self.session.model.name

    def task(self, raw: bytes) -> Task:
        """The request in ``raw``, waiting for its answer. Raises RequestError."""
        completion = protocol.parse_completion(raw, defaults=self.defaults, most_tokens=self.limits.most_tokens)
        if completion.model != self.name:
            raise RequestError(
                404,
                f"there is no model {completion.model!r}, only {self.name!r}",
                param="model",
                code="model_not_found",
            )
        try:
            (prepared,) = self.session.prepare([Question(id=completion.id, messages=completion.messages)])
        except LauncherError as error:
            raise RequestError(400, error.message, param="messages", code="context_length_exceeded") from error
        task = Task(completion=completion, prepared=prepared, deadline=time.monotonic() + self.limits.timeout_s)
        self.queue.put(task)
        return task


def check_address(host: str, token: str | None) -> None:
    """Raises SpecError when others could reach ``host`` and there is no ``token``."""
    if token is None and not is_loopback(host):
        raise SpecError(
            f"--host {host} can be reached from other machines, and there is no token",
            hint="put one into LAUNCHER_TOKEN (openssl rand -hex 32 makes one), or stay on 127.0.0.1",
        )
    if token is not None and len(token) < 16:
        raise SpecError("the token is shorter than 16 characters", hint="openssl rand -hex 32 makes a good one")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(service: Service, host: str, port: int) -> None:
    """Answer until SIGTERM or SIGINT. Raises HostError when the port is taken."""
    try:
        server = _Server((host, port), service)
    except OSError as error:
        raise HostError(f"cannot listen on {host}:{port}: {error.strerror}", hint="give another --port") from error
    with server, _stopped_by_signals(service.queue):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        print(f"{service.name} answers on {server.url}/v1, until Ctrl-C", file=sys.stderr, flush=True)
        service.queue.run()
        server.shutdown()
        thread.join()
        server.finish()
    print("stopped", file=sys.stderr, flush=True)


@contextmanager
def _stopped_by_signals(tasks: TaskQueue) -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        tasks.stopping.set()

    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], service: Service) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.service = service
        self._free = threading.BoundedSemaphore(service.limits.connections)
        self._busy: set[threading.Thread] = set()
        # While the model answers, MindFormers has stderr to itself: see launcher.quiet.
        self._log = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """A connection, in its own thread; one too many is closed without a word."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self._busy.add(threading.current_thread())
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._busy.discard(threading.current_thread())
            self._free.release()

    def finish(self, seconds: float = 2.0) -> None:
        """Wait a little for connections that are being answered."""
        until = time.monotonic() + seconds
        for thread in [*self._busy]:
            thread.join(max(0.0, until - time.monotonic()))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is no matter; anything else is worth a line."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            self.log(f"error: {type(error).__name__}: {error}")

    def log(self, line: str) -> None:
        """One line on what stderr was when the server began."""
        self._log.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        self._log.flush()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = f"launcher/{__version__}"
    sys_version = ""
    timeout = _SILENCE_S
    server: _Server

    @property
    def service(self) -> Service:
        return self.server.service

    def do_GET(self) -> None:
        self._reply(self._get)

    def do_POST(self) -> None:
        self._reply(self._post)

    def _reply(self, answer: Any) -> None:
        began = time.monotonic()
        self._status, self._note = 0, ""
        try:
            self._check_caller()
            answer()
        except RequestError as error:
            self._send_error(error)
        seconds = time.monotonic() - began
        self.server.log(
            f"{self.client_address[0]} {self.command} {self.path[:200]!r} {self._status} {seconds:.2f} s{self._note}"
        )

    def _check_caller(self) -> None:
        """A token where there is one. Without one, only names of this machine: a page in the user's browser must not
        reach the server by a name of its own that points here."""
        token = self.service.token
        if token is not None:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), token.encode()):
                raise RequestError(401, "the token is missing or wrong", code="invalid_api_key")
        elif _host_name(self.headers.get("Host", "")) not in _LOCAL_NAMES:
            raise RequestError(403, "this server answers to localhost only")

    def _get(self) -> None:
        known = {
            "/health": {"status": "ok"},
            "/v1/models": protocol.models(self.service.name, self.service.created),
            f"/v1/models/{self.service.name}": protocol.model(self.service.name, self.service.created),
        }
        if self.path not in known:
            raise RequestError(404, f"there is no {self.path[:200]}")
        self._send(200, known[self.path])

    def _post(self) -> None:
        if self.path != "/v1/chat/completions":
            self.close_connection = True
            raise RequestError(404, f"there is no {self.path[:200]}")
        task = self.service.task(self._body())
        if task.completion.stream:
            self._stream(task)
        else:
            self._whole(task)

    def _body(self) -> bytes:
        """The body, of a length that was said. What is refused unread ends the connection."""
        self.close_connection = True
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise RequestError(411, "say the length of the body: Content-Length")
        if int(length) > self.service.limits.body_bytes:
            raise RequestError(413, f"the body is larger than {self.service.limits.body_bytes} bytes")
        raw = self.rfile.read(int(length))
        if len(raw) < int(length):
            raise RequestError(400, "the body is shorter than it said")
        self.close_connection = self.headers.get("Connection", "").lower() == "close"
        return raw

    # ------------------------------------------------------------------------------------------------ answers

    def _whole(self, task: Task) -> None:
        text = "".join(piece for piece in self._watched(task) if piece)
        self._raise_failure(task)
        row = task.row
        if row is None:
            raise RequestError(500, "there is no answer")
        counts = self._counts(task)
        self._send(200, protocol.answered(task.completion, text, str(row.finish), counts))

    def _stream(self, task: Task) -> None:
        """Server-sent events. What fails before the first token is an error of its own; later, an event."""
        pieces = self._watched(task)
        first = next((piece for piece in pieces if piece), None)
        if first is None:
            self._raise_failure(task)
        self._status = 200
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        completion = task.completion
        try:
            self._event(protocol.chunk(completion, {"role": "assistant", "content": first or ""}))
            for piece in pieces:
                if piece:
                    self._event(protocol.chunk(completion, {"content": piece}))
            self._end_of_stream(task, completion)
        except OSError:
            task.left.set()
            self._note = " (the client left)"

    def _end_of_stream(self, task: Task, completion: Completion) -> None:
        failure = self._failure(task)
        if failure is not None:
            self._event(failure.to_dict())
            return
        counts = self._counts(task)
        self._event(protocol.chunk(completion, {}, str(task.row.finish if task.row else "length")))
        if completion.include_usage:
            self._event(protocol.usage_chunk(completion, counts))
        self.wfile.write(b"data: [DONE]\n\n")

    def _watched(self, task: Task) -> Iterator[str | None]:
        """The pieces of an answer; meanwhile, whether the client is still there."""
        for piece in task.texts():
            if piece is None and self._client_left():
                task.left.set()
            yield piece

    def _client_left(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _failure(self, task: Task) -> RequestError | None:
        if task.timed_out:
            return RequestError(504, f"no answer within {self.service.limits.timeout_s:g} s", code="timeout")
        if task.error is not None:
            return RequestError(503, task.error)
        if task.row is not None and task.row.finish == "cancelled":
            return RequestError(503, "the server is shutting down")
        return None

    def _raise_failure(self, task: Task) -> None:
        failure = self._failure(task)
        if failure is not None:
            raise failure

    def _counts(self, task: Task) -> dict[str, int]:
        new = len(task.row.new_tokens) if task.row else 0
        counts = protocol.usage(len(task.prepared.ids), new)
        self._note = f" {counts['prompt_tokens']}+{new} tokens"
        return counts

    def _event(self, value: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode())

    def _send(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value, ensure_ascii=False).encode()
        self._status = status
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            if status in (429, 503):
                self.send_header("Retry-After", "5")
            if status == 401:
                self.send_header("WWW-Authenticate", "Bearer")
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True
            self._note = " (the client left)"

    def _send_error(self, error: RequestError) -> None:
        if self.command == "POST" and error.status in (401, 403):
            self.close_connection = True  # its body was not read
        self._note = f" {error.message}"
        self._send(error.status, error.to_dict())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: ``_reply`` writes a line of its own."""


def _host_name(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    name = header.rsplit(":", 1)[0] if not header.endswith("]") else header
    return name.strip("[]").lower()
