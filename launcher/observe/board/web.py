"""The board over HTTP: pages, server-sent events, and who may look. Every route is a GET, and none writes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import html
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launcher import __version__
from launcher.common.http.access import (
    Gate,
    RequestError,
    add_note,
    bearer,
    refusal_headers,
    unknown_path,
)
from launcher.errors import JobError
from launcher.jobs import STATES, UNREADABLE, JobPaths, JobRecord
from launcher.observe.board.listing import Listing, Row
from launcher.observe.board.live import PARTS, LiveJob, LivePage, LogView, log_end, log_names, log_stamp
from launcher.observe.history import FOLDER_DAMAGES, read_history
from launcher.observe.report import asset, html_lang, make_report, page_environment, script_json
from launcher.observe.words import words

# How often files are looked at, how long a stream says nothing at most, and how long it lasts: the page then opens
# another, so that one whose other end vanished without a word does not stay.
_LOOK_S, _SILENT_S, STREAM_S = 1.0, 15.0, 600.0
MOST_COMPARED = 16
_KEPT_JOBS = 64
_COOKIE = "launcher_board"

_ASSETS = {
    "report.css": "text/css",
    "board.css": "text/css",
    "charts.js": "text/javascript",
    "board.js": "text/javascript",
}
# Parts of pages place bars by style attributes. Scripts come from this server's own files alone.
_POLICY = (
    "default-src 'none'; script-src {script}; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_OWN_SCRIPTS, _INLINE_SCRIPTS = _POLICY.format(script="'self'"), _POLICY.format(script="'unsafe-inline'")


class Sweeps(Protocol):
    """The pages of sweeps, which are made above this room."""

    def exist(self) -> bool:
        """Return whether there is a sweep."""

    def listed(self) -> str:
        """Return the page of all."""

    def one(self, sweep_id: str) -> str | None:
        """Return the page of one; None without one of that id. Raises JobError when it cannot be read."""


@dataclass(kw_only=True)
class Board:
    """What all viewers share. ``token``: None only on a loopback address. ``look_s``: seconds between two looks."""

    listing: Listing
    lang: str
    token: str | None = None
    sweeps: Sweeps | None = None
    look_s: float = _LOOK_S
    stopping: threading.Event = field(default_factory=threading.Event)
    _live: dict[str, LiveJob] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def over(
        cls, root: Path, lang: str, token: str | None = None, look_s: float = _LOOK_S, sweeps: Sweeps | None = None
    ) -> Board:
        """Return the board of a jobs folder."""
        return cls(listing=Listing(root), lang=lang, token=token, look_s=look_s, sweeps=sweeps)

    def job(self, job_id: str) -> tuple[JobPaths, JobRecord]:
        """Return a job. Raises RequestError without one of that id, and for one that cannot be read."""
        found = self.listing.find(job_id)
        if found is None:
            raise RequestError(404, f"there is no job {job_id[:100]!r} in {self.listing.root}")
        if found[1].state == UNREADABLE:
            raise RequestError(404, f"{found[0].record} cannot be read: {found[1].note}")
        return found

    def page(self, job_id: str) -> LivePage:
        """Return the parts of a job's page. Raises RequestError where its folder is damaged."""
        paths, record = self.job(job_id)
        with self._lock:
            live = self._live.pop(job_id, None) or LiveJob(self.lang)
            self._live[job_id] = live  # the newest last
            while len(self._live) > _KEPT_JOBS:
                del self._live[next(iter(self._live))]
        with _damage_said(paths):
            return live.page(paths, record)

    def report(self, job_ids: list[str]) -> str:
        """Return the report of a job, or the comparison of several. Raises RequestError."""
        if not 1 <= len(job_ids) <= MOST_COMPARED:
            raise RequestError(400, f"1 to {MOST_COMPARED} jobs can be compared, not {len(job_ids)}")
        found = [self.job(job_id) for job_id in dict.fromkeys(job_ids)]
        with _damage_said(found[0][0]):
            return make_report([read_history(*job) for job in found], self.lang, board="/")

    def has_sweeps(self) -> bool:
        return self.sweeps is not None and self.sweeps.exist()

    def sweep(self, sweep_id: str | None) -> str:
        """Return the page of a sweep, or of all. Raises RequestError without one of that id."""
        if self.sweeps is None:
            raise RequestError(404, "this board shows no sweeps")
        try:
            found = self.sweeps.listed() if sweep_id is None else self.sweeps.one(sweep_id)
        except JobError as error:
            raise RequestError(500, error.message) from error
        if found is None:
            raise RequestError(404, f"there is no sweep {str(sweep_id)[:100]!r} in {self.listing.root}")
        return found


@contextmanager
def _damage_said(paths: JobPaths) -> Iterator[None]:
    """Raise RequestError, with the folder, for whatever reading a damaged folder raises inside the block."""
    try:
        yield
    except FOLDER_DAMAGES as error:
        raise RequestError(500, f"{paths.root} is damaged: {type(error).__name__}: {error}") from error


def application(board: Board, log: Callable[[str], None]) -> Starlette:
    """Return the ASGI application. ``log`` is called with one line per request, without queries."""
    pages = _Pages(board)
    app = Starlette(
        routes=[
            Route("/", pages.jobs),
            Route("/events", pages.list_events),
            Route("/jobs/{job_id}", pages.job),
            Route("/jobs/{job_id}/events", pages.job_events),
            Route("/report", pages.report),
            Route("/sweeps", pages.sweep),
            Route("/sweeps/{sweep_id}", pages.sweep),
            Route("/static/{name}", pages.static),
        ],
        middleware=[
            Middleware(_Headers),
            Middleware(Gate, token=board.token, log=log, given=partial(_given, board.token), refuse=_refusal),
            Middleware(_SignIn, token=board.token),
        ],
        exception_handlers={HTTPException: _unknown},
    )
    app.router.redirect_slashes = False
    return app


# --------------------------------------------------------------------------------------------------- who may look


def _given(token: str | None, request: Request) -> str:
    """Return the token that a request brings: in a header, or a browser in the address once, then as a cookie."""
    if token is not None and hmac.compare_digest(_cookie(request).encode(), _ticket(token).encode()):
        return token
    return bearer(request) or request.query_params.get("token", "")


def _ticket(token: str) -> str:
    """Return what a browser keeps in place of the token."""
    return hashlib.sha256(b"launcher board " + token.encode("utf-8", "surrogateescape")).hexdigest()


def _cookie(request: Request) -> str:
    try:
        found = SimpleCookie(request.headers.get("cookie", "")).get(_cookie_name(request))
    except CookieError:
        return ""
    return found.value if found else ""


def _cookie_name(request: Request) -> str:
    """Cookies know no ports: two boards of one host keep theirs apart by name."""
    _, port = request.scope.get("server") or ("", 0)
    return f"{_COOKIE}_{port}"


class _SignIn:
    """Middleware behind the gate: takes the token out of the address, which is shown and kept, for a cookie."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if self._token is None or "token" not in request.query_params:
            await self._app(scope, receive, send)
            return
        rest = urlencode([(key, value) for key, value in request.query_params.multi_items() if key != "token"])
        # One slash: a path that begins with two would name another host.
        path = "/" + request.url.path.lstrip("/\\")
        response = RedirectResponse(f"{path}?{rest}" if rest else path, 303)
        response.set_cookie(_cookie_name(request), _ticket(self._token), httponly=True, samesite="strict")
        await response(scope, receive, send)


class _Headers:
    """Middleware around everything: no page is kept, framed, or said to others; a page's own policy wins."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with)


_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _OWN_SCRIPTS,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def _refusal(error: RequestError) -> Response:
    """Return a refusal as a page; where the token is missing, with a field for it."""
    ask_for = '<input name="token" type="password" autofocus required>'
    ask = f"<form><label>Token {ask_for}</label> <button>Look</button></form>"
    below = ask if error.status == 401 else '<p><a href="/">All jobs</a></p>'
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>launcher board</title>'
        f"<p>{html.escape(error.message)}</p>{below}</html>"
    )
    return Response(page.encode("utf-8", "replace"), error.status, refusal_headers(error), media_type="text/html")


def _unknown(request: Request, error: Exception) -> Response:
    return _refusal(unknown_path(request, error))


# --------------------------------------------------------------------------------------------------- pages


class _Pages:
    def __init__(self, board: Board) -> None:
        self._board = board
        self._say = words(board.lang)

    async def jobs(self, _: Request) -> Response:
        has_sweeps = await asyncio.to_thread(self._board.has_sweeps)
        return self._html("jobs", title=self._say("Jobs"), folder=str(self._board.listing.root), sweeps=has_sweeps)

    async def job(self, request: Request) -> Response:
        job_id = request.path_params["job_id"]
        page = await asyncio.to_thread(self._board.page, job_id)
        paths, record = await asyncio.to_thread(self._board.job, job_id)
        logs = await asyncio.to_thread(log_names, paths, record)
        parts = {name: Markup(part) for name, part in page.html.items()}  # noqa: S704 - templates escaped their texts
        return self._html(
            "job", title=job_id, job_id=job_id, parts=parts, part_names=PARTS, logs=logs,
            data=Markup(script_json({"number": page.number, "charts": page.data})),  # noqa: S704
        )  # fmt: skip

    async def report(self, request: Request) -> Response:
        text = await asyncio.to_thread(self._board.report, request.query_params.getlist("job"))
        headers = {"Content-Security-Policy": _INLINE_SCRIPTS}
        return Response(text.encode("utf-8", "replace"), headers=headers, media_type="text/html")

    async def sweep(self, request: Request) -> Response:
        text = await asyncio.to_thread(self._board.sweep, request.path_params.get("sweep_id"))
        return Response(text.encode("utf-8", "replace"), media_type="text/html")

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _ASSETS:
            raise RequestError(404, f"there is no {request.url.path[:200]}")
        # Pages name a file with its digest, so that a newer version of launcher is never mixed with an older file.
        return Response(asset(name), headers={"Cache-Control": "max-age=86400"}, media_type=_ASSETS[name])

    async def list_events(self, request: Request) -> Response:
        return _stream(request, self._board, _ListChanges(self._board))

    async def job_events(self, request: Request) -> Response:
        job_id, query = request.path_params["job_id"], request.query_params
        await asyncio.to_thread(self._board.job, job_id)
        view = LogView(name=query.get("log", ""), contains=query.get("contains", ""), errors="errors" in query)
        seen = int(number) if (number := query.get("number", "")).isdecimal() and len(number) < 16 else 0
        return _stream(request, self._board, _JobChanges(self._board, job_id, view, seen))

    def _html(self, view: str, **values: Any) -> Response:
        text = page_environment().get_template("board.html.j2").render(
            view=view, say=self._say, lang=html_lang(self._board.lang), version=__version__, states=STATES,
            marks={name: _mark(name) for name in _ASSETS}, most=MOST_COMPARED,
            texts=Markup(script_json(_texts(self._say))), **values,  # noqa: S704
        )  # fmt: skip
        return Response(text.encode("utf-8", "replace"), media_type="text/html")


def _mark(name: str) -> str:
    return hashlib.sha256(asset(name).encode()).hexdigest()[:12]


def _texts(say: Callable[..., str]) -> dict[str, str]:
    """Return the texts of board.js in the board's language, by their English."""
    spoken = {
        "of": say("of"), "attempt": say("attempt"), "Compare {job}": say("Compare {job}"), "jobs": say("jobs"),
        "No jobs fit.": say("No jobs fit."), "No jobs yet.": say("No jobs yet."), "live": say("live"),
        "not connected; trying again": say("not connected; trying again"), "No lines.": say("No lines."),
        "Compare": say("Compare"), "Show report": say("Show report"),
    }  # fmt: skip
    return spoken | {state: say(state) for state in STATES}


# --------------------------------------------------------------------------------------------------- streams


class _ListChanges:
    """Rows that have changed since the last call."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._sent: dict[str, Row] | None = None

    def __call__(self) -> list[tuple[str, Any]]:
        rows, sent = self._board.listing.rows(), self._sent
        changed = [row.to_json() for job_id, row in rows.items() if sent is None or sent.get(job_id) != row]
        gone = [job_id for job_id in sent or () if job_id not in rows]
        self._sent = rows
        whole = sent is None
        return [("rows", {"rows": changed, "gone": gone, "whole": whole, "now": time.time()})] if (
            changed or gone or whole) else []  # fmt: skip


class _JobChanges:
    """Parts of a job's page, and the end of a log, when they have changed since the last call."""

    def __init__(self, board: Board, job_id: str, view: LogView, seen: int) -> None:
        self._board, self._job_id, self._view = board, job_id, view
        self._seen: int = seen
        self._sent: dict[str, str] = {}
        self._log: object = None

    def __call__(self) -> list[tuple[str, Any]]:
        try:
            paths, record = self._board.job(self._job_id)
            return [*self._page(), *self._lines(paths, record)]
        except RequestError as error:
            return [("gone", {"message": error.message})]

    def _page(self) -> list[tuple[str, Any]]:
        page = self._board.page(self._job_id)
        if page.number == self._seen:
            return []
        self._seen = page.number
        parts = {name: part for name, part in page.html.items() if self._sent.get(name) != part}
        self._sent = page.html
        state = {"number": page.number, "state": page.state, "final": page.is_final}
        return [("job", {**state, "parts": parts, "charts": page.data})]

    def _lines(self, paths: JobPaths, record: JobRecord) -> list[tuple[str, Any]]:
        mark = log_stamp(paths, record, self._view)
        if mark == self._log:
            return []
        self._log = mark
        return [("log", {"lines": log_end(paths, record, self._view)})]


def _stream(request: Request, board: Board, changes: Callable[[], list[tuple[str, Any]]]) -> Response:
    add_note(request, "(a stream)")
    return StreamingResponse(_events(board, changes), media_type="text/event-stream")


async def _events(board: Board, changes: Callable[[], list[tuple[str, Any]]]) -> AsyncIterator[bytes]:
    began = spoke = time.monotonic()
    yield b"retry: 2000\n\n"
    while not board.stopping.is_set() and time.monotonic() - began < STREAM_S:
        found = await asyncio.to_thread(changes)
        for kind, value in found:
            yield f"event: {kind}\ndata: {json.dumps(value)}\n\n".encode()
        if found:
            spoke = time.monotonic()
        elif time.monotonic() - spoke > _SILENT_S:
            spoke = time.monotonic()
            yield b": still here\n\n"
        await asyncio.sleep(board.look_s)
