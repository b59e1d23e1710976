"""Access to an HTTP server: refused requests, and the gate that every request passes."""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import re
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launcher.errors import DataError, SpecError

_LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d*)?", re.IGNORECASE)
# Of these a second one is an attempt to be understood differently by a proxy; h11 looks after Host and lengths.
_SINGLE_HEADERS = ("authorization", "content-type")
CLIENT_LEFT = 499  # nginx's number for a client that did not wait; nobody is there to read it


def checked_token(host: str, token_file: Path | None, *, flag: str = "--host") -> str | None:
    """Return the token in ``token_file``, else that of $LAUNCHER_TOKEN, for a server on ``host``, which ``flag`` gave.

    Raises SpecError when others could reach it without one, DataError when the file cannot be read.
    """
    token = _read_token(token_file)
    check_address(host, token, flag=flag)
    return token


def check_address(host: str, token: str | None, *, flag: str = "--host") -> None:
    """Raise SpecError when others could reach ``host`` and there is no ``token``."""
    if token is None and not is_loopback(host):
        raise SpecError(
            f"{flag} {host} can be reached from other machines, and there is no token",
            hint="put one into LAUNCHER_TOKEN (openssl rand -hex 32 makes one), or stay on 127.0.0.1",
        )
    if token is not None and len(token) < 16:
        raise SpecError("the token is shorter than 16 characters", hint="openssl rand -hex 32 makes a good one")


def _read_token(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("LAUNCHER_TOKEN") or None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the token in {path}: {error}", hint="give another --token-file") from error


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class RequestError(Exception):
    """A refused request: ``status`` is HTTP's, ``param`` the key at fault. about: what it was for, if that is known."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.about = ""

    def to_dict(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class AmbiguousRequest(RequestError):
    """A request that a proxy may read differently: nothing after it on this connection is read."""


def refusal_headers(error: RequestError) -> dict[str, str]:
    """Return the headers that go with a refusal."""
    headers = {"Connection": "close"} if isinstance(error, AmbiguousRequest) else {}
    if error.status in (429, 503):
        headers["Retry-After"] = "5"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(value, ensure_ascii=False).encode()
    return Response(body, status, headers, media_type="application/json")


def refusal(error: RequestError) -> Response:
    """Return a refusal as JSON."""
    return json_response(error.to_dict(), error.status, refusal_headers(error))


def unknown_path(request: Request, error: Exception) -> RequestError:
    """Return the refusal of an unknown path or method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    known = f"there is no {request.method} for" if status == 405 else "there is no"
    return RequestError(status, f"{known} {request.url.path[:200]}")


def unknown(request: Request, error: Exception) -> Response:
    """Handle an unknown path or method; for starlette's exception_handlers."""
    return refusal(unknown_path(request, error))


def bearer(request: Request) -> str:
    """Return the token in the Authorization header, "" without one."""
    return request.headers.get("authorization", "").removeprefix("Bearer ")


def add_note(request: Request, text: str) -> None:
    """Add ``text`` to the request's line in the log."""
    request.scope.setdefault("state", {})["note"] = f" {text}"


class Gate:
    """Middleware around every request: checks the caller, responds to failures, and logs a line.

    ``given`` returns the token that a request brings. Paths in ``public`` need none; where there is no token they are
    for this machine too. ``refuse`` makes the response of a refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str | None,
        log: Callable[[str], None],
        given: Callable[[Request], str] = bearer,
        public: Collection[str] = (),
        refuse: Callable[[RequestError], Response] = refusal,
    ) -> None:
        self._app = app
        self._token = token
        self._log = log
        self._given = given
        self._public = public
        self._response = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, seen, request = time.monotonic(), _Seen(send), Request(scope)
        try:
            _check_framing(request)
            self._check_caller(request)
            await self._app(scope, receive, seen.send)
        except RequestError as error:
            await self._refuse(request, error, receive, seen)
        except ClientDisconnect:
            await self._refuse(request, RequestError(CLIENT_LEFT, "the client left"), receive, seen)
        except Exception as error:
            self._log(f"error: {type(error).__name__}: {error}")
            await self._refuse(request, RequestError(500, "the server failed; its log says more"), receive, seen)
        finally:
            host, note = scope["client"][0] if scope["client"] else "-", scope.get("state", {}).get("note", "")
            seconds = time.monotonic() - began
            self._log(f"{host} {request.method} {scope['path'][:200]!r} {seen.status} {seconds:.2f} s{note}")

    async def _refuse(self, request: Request, error: RequestError, receive: Receive, seen: _Seen) -> None:
        add_note(request, error.message)
        if not seen.status:
            await self._response(error)(request.scope, receive, seen.send)

    def _check_caller(self, request: Request) -> None:
        """Require the token if there is one; otherwise accept only host names of this machine, because a page in the
        user's browser must not reach the server by a name of its own that resolves to this address (DNS rebinding)."""
        if self._token is not None:
            if request.url.path in self._public:
                return
            if not hmac.compare_digest(self._given(request).encode(), self._token.encode()):
                raise RequestError(401, "the token is missing or wrong", code="invalid_api_key")
        elif not _LOCAL_HOST.fullmatch(request.headers.get("host", "")):
            raise RequestError(403, "this server answers to localhost only")


class _Seen:
    """``send`` that remembers the status of the answer; 0 while there is none."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        await self._send(message)


def _check_framing(request: Request) -> None:
    """Raise RequestError for bytes that a proxy in front might take for two requests, or for another caller's."""
    if "content-length" in request.headers and "transfer-encoding" in request.headers:
        raise AmbiguousRequest(400, "both Content-Length and Transfer-Encoding say where the body ends")
    for name in _SINGLE_HEADERS:
        if len(request.headers.getlist(name)) > 1:
            raise AmbiguousRequest(400, f"there are several {name} headers")
