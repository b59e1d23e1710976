"""The server as a process, asked by plain HTTP and by OpenAI's own client."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from inference_tools import child, make_model

pytestmark = pytest.mark.mindspore

TOKEN = "0123456789abcdef-token"
START_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server process. ``log``: what it wrote to stderr."""

    process: subprocess.Popen[bytes]
    port: int
    name: str
    log: Path

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        connection.request(method, path, raw, {"Authorization": f"Bearer {TOKEN}", **(headers or {})})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, json.loads(content)

    def complete(self, **values: Any) -> tuple[int, Any]:
        messages = [{"role": "user", "content": "苹果"}]
        return self.ask("POST", "/v1/chat/completions", {"model": self.name, "messages": messages, **values})


def start(folder: Path, log: Path, *options: str, token: str | None = TOKEN) -> Server:
    env = {**os.environ, "LAUNCHER_CACHE": str(folder.parent / "cache")}
    env.pop("LAUNCHER_TOKEN", None)
    if token:
        env["LAUNCHER_TOKEN"] = token
    argv = [sys.executable, "-m", "launcher", "serve", str(folder), "--port", "0", *options]
    with log.open("wb") as stderr:
        process = subprocess.Popen(argv, stderr=stderr, stdout=subprocess.DEVNULL, env=env, cwd=log.parent)
    until = time.monotonic() + START_S
    while not (match := re.search(r"(\S+) answers on http://127\.0\.0\.1:(\d+)/v1", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until
        time.sleep(0.1)
    return Server(process=process, port=int(match[2]), name=match[1], log=log)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("serve")
    folder = make_model(root / "model", seq_length=2048)
    options = ("--max-body", "20000", "--max-tokens", "1500", "--max-waiting", "2", "--batch-size", "2")
    found = start(folder, root / "log", *options)
    yield found
    if found.process.poll() is None:
        found.process.kill()
    found.process.wait()


def test_models_and_health(server: Server) -> None:
    status, found = server.ask("GET", "/v1/models")

    assert (status, [model["id"] for model in found["data"]]) == (200, [server.name])
    assert server.ask("GET", f"/v1/models/{server.name}")[1]["object"] == "model"
    assert server.ask("GET", "/health") == (200, {"status": "ok"})
    assert server.ask("GET", "/nonsense")[0] == 404
    assert server.ask("POST", "/v1/nonsense", {})[0] == 404


def test_an_answer_with_its_counts(server: Server) -> None:
    status, found = server.complete(max_tokens=5)
    choice = found["choices"][0]

    assert status == 200
    assert choice["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 5
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + 5
    assert server.complete(max_tokens=5)[1]["choices"] == found["choices"]
    stop = choice["message"]["content"][1:2]
    assert server.complete(max_tokens=5, stop=stop)[1]["choices"][0]["finish_reason"] == "stop"


def test_limits(server: Server) -> None:
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}):
        assert server.ask("GET", "/v1/models", headers=headers)[0] == 401
    assert server.ask("POST", "/v1/chat/completions", b"x" * 30000)[0] == 413
    assert server.ask("POST", "/v1/chat/completions", b"x")[0] == 400
    assert server.complete(max_tokens=1501)[0] == 400
    assert server.complete(model="other")[1]["error"]["code"] == "model_not_found"
    long = [{"role": "user", "content": "苹果" * 1500}]
    assert server.complete(messages=long)[1]["error"]["code"] == "context_length_exceeded"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        raw.sendall(head.encode())
        assert b"411" in raw.recv(1000)


def test_one_request_too_many_is_told_to_come_again(server: Server) -> None:
    """Two run, two wait; a client that leaves makes room."""
    codes: list[int] = []

    def ask() -> None:
        codes.append(server.complete(max_tokens=1400, temperature=1.0)[0])

    threads = [threading.Thread(target=ask) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 429 in codes
    assert codes.count(200) >= 2
    assert set(codes) <= {200, 429}


_CLIENT = """
import json, sys
from openai import OpenAI, AuthenticationError, BadRequestError, NotFoundError
client = OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)
name = client.models.list().data[0].id
ask = {"model": name, "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "苹果"}]}
whole = client.chat.completions.create(**ask, max_tokens=8)
pieces, usage, ends = [], None, []
for chunk in client.chat.completions.create(**ask, max_tokens=8, stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        pieces.append(choice.delta.content or "")
        ends.append(choice.finish_reason)
errors = []
for change, key in (({"n": 3}, sys.argv[2]), ({"model": "x"}, sys.argv[2]), ({}, "wrong")):
    try:
        OpenAI(base_url=sys.argv[1], api_key=key, max_retries=0).chat.completions.create(**{**ask, **change})
    except (AuthenticationError, BadRequestError, NotFoundError) as error:
        errors.append(type(error).__name__)
print(json.dumps([whole.choices[0].message.content, "".join(pieces), ends, usage.completion_tokens, errors]))
"""


def test_openais_client_asks_and_streams(server: Server) -> None:
    if importlib.util.find_spec("openai") is None:
        pytest.skip("no openai: pip install '.[test]'")
    whole, streamed, ends, count, errors = child(_CLIENT, f"http://127.0.0.1:{server.port}/v1", TOKEN)

    assert whole == streamed != ""
    assert ends[-1] == "length"
    assert count == 8
    assert errors == ["BadRequestError", "NotFoundError", "AuthenticationError"]


def test_a_term_ends_a_streaming_server_cleanly(server: Server) -> None:
    """The last test of this server: a stream is cut short, with an event that says so."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = {"model": server.name, "messages": [{"role": "user", "content": "梨"}], "stream": True, "max_tokens": 1500}
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), {"Authorization": f"Bearer {TOKEN}"})
    answer = connection.getresponse()
    first = answer.readline()
    server.process.send_signal(signal.SIGTERM)
    rest = answer.read().decode()
    connection.close()

    assert first.startswith(b"data: ")
    assert "the server is shutting down" in rest
    assert server.process.wait(30) == 0
    log = server.log.read_text()
    assert log.endswith("stopped\n")
    assert "Traceback" not in log
    assert TOKEN not in log


def test_without_a_token_only_this_machine_is_answered_and_time_runs_out(server: Server, tmp_path: Path) -> None:
    folder = Path(server.log).parent / "model"
    local = start(folder, tmp_path / "log", "--timeout", "0.3", token=None)
    try:
        assert local.ask("GET", "/v1/models", headers={"Host": "evil.example:80"})[0] == 403
        assert local.ask("GET", "/v1/models", headers={"Host": f"localhost:{local.port}"})[0] == 200
        status, found = local.complete(max_tokens=1000)
        assert (status, found["error"]["code"]) == (504, "timeout")
        local.process.send_signal(signal.SIGINT)
        assert local.process.wait(30) == 0
    finally:
        if local.process.poll() is None:
            local.process.kill()
        local.process.wait()
