"""The metrics of a jobs folder over HTTP, for Prometheus to scrape. Read-only; one path, GET and HEAD."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from launcher.errors import HostError
from launcher.observe.openmetrics import CONTENT_TYPE


class MetricsServer:
    """A server of ``make()`` at /metrics. Scrapes wait for each other: the folder is read once at a time."""

    def __init__(self, host: str, port: int, make: Callable[[], str]) -> None:
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            server_version, sys_version = "launcher", ""

            def do_GET(self) -> None:
                self._answer(body=True)

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def _answer(self, *, body: bool) -> None:
                if self.path.split("?")[0] not in ("/metrics", "/"):
                    self.send_error(404, "metrics are at /metrics")
                    return
                with lock:
                    text = make().encode()
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if body:
                    self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing of each scrape."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise HostError(f"cannot listen on {host}:{port}: {error.strerror}", hint="give another --serve") from error
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/metrics"

    def run(self) -> None:
        """Answer until ``close`` is called from another thread, or the user interrupts."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
