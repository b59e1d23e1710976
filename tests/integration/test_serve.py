"""The server as a process, asked by plain HTTP and by OpenAI's own client."""

from __future__ import annotations

import contextlib
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
from safetensors.numpy import load_file, save_file
from support.inference_tools import MODEL, alike, child, make_model

pytestmark = pytest.mark.mindspore

TOKEN = "0123456789abcdef-token"
START_S = 120.0
AUTHORIZATION = f"Authorization: Bearer {TOKEN}"
POST = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost"
JSON = "Content-Type: application/json"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server process. ``log``: what it wrote to stderr."""

    process: subprocess.Popen[bytes]
    port: int
    name: str
    log: Path
    asked_as: str

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", **(headers or {})}
        connection.request(method, path, raw, {name: value for name, value in sent.items() if value})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, json.loads(content)

    def complete(self, **values: Any) -> tuple[int, Any]:
        messages = [{"role": "user", "content": "苹果"}]
        return self.ask("POST", "/v1/chat/completions", {"model": self.name, "messages": messages, **values})

    def send(self, head: str, body: str = "") -> socket.socket:
        """A connection on which these bytes, and a token, were sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(f"{head}\r\n{AUTHORIZATION}\r\n\r\n{body}".encode())
        return connection

    def post(self, **values: Any) -> socket.socket:
        """The same with a question."""
        asked = {"model": self.name, "messages": [{"role": "user", "content": "苹果"}], **values}
        body = json.dumps(asked)
        return self.send(f"{POST}\r\n{JSON}\r\nContent-Length: {len(body)}", body)

    def has_waiting(self, count: int) -> None:
        """Wait until so many requests wait for a slot."""
        until = time.monotonic() + 60
        head = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close"
        while f"launcher_serve_waiting_requests {count}\n" not in everything(self.send(head)):
            assert time.monotonic() < until
            time.sleep(0.05)

    def logs(self, pattern: str, times: int = 1) -> list[str]:
        """Wait until ``pattern`` stands so often in the log."""
        until = time.monotonic() + 60
        while len(found := re.findall(pattern, self.log.read_text())) < times:
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)
        return found


def everything(connection: socket.socket) -> str:
    """All that comes until the server closes the connection, or a moment passes after what came last."""
    connection.settimeout(60.0)
    received = b""
    with connection, contextlib.suppress(TimeoutError):
        while part := connection.recv(65536):
            received += part
            connection.settimeout(1.0)
    return received.decode()


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
    return Server(process=process, port=int(match[2]), name=match[1], log=log, asked_as=str(folder))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("serve")
    folder = make_model(root / "model", seq_length=2048)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][MODEL.eos_token_id] = 0  # no answer ends by itself
    save_file(weights, folder / "model.safetensors")
    options = ("--max-body", "20000", "--max-tokens", "1500", "--max-waiting", "2", "--batch-size", "2")
    found = start(folder, root / "log", *options)
    yield found
    if found.process.poll() is None:
        found.process.kill()
    found.process.wait()


def test_models_and_health(server: Server) -> None:
    status, found = server.ask("GET", "/v1/models")

    assert (status, [model["id"] for model in found["data"]]) == (200, ["model"])
    assert server.ask("GET", "/v1/models/model")[1]["object"] == "model"
    assert server.ask("GET", "/v1/models/other")[1]["error"]["code"] == "model_not_found"
    assert server.ask("GET", "/health", headers={"Authorization": ""}) == (200, {"status": "ok"})
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
    # By the word that the user typed, as with: launcher serve last
    assert server.complete(max_tokens=5, model=server.asked_as)[0] == 200
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
    assert " 411 " in everything(server.send(f"{POST}\r\n{JSON}"))


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": ["user"], "content": "a"}],
        [{"role": {"user": 1}, "content": "a"}],
        [{"role": "user", "content": "a \ud800"}],
        [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}],
    ],
)
def test_messages_that_are_none_are_the_clients_mistake(server: Server, messages: Any) -> None:
    status, found = server.complete(messages=messages)
    assert (status, found["error"]["param"]) == (400, "messages")


BODY = json.dumps({"model": "model", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1})
HIDDEN = "GET /v1/hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (f"{POST}\r\n{JSON}\r\nContent-Length: {len(BODY)}", BODY, 200),
        (f"{POST}\r\n{JSON}\r\nTransfer-Encoding: chunked", f"{len(BODY):x}\r\n{BODY}\r\n0\r\n\r\n", 200),
        (f"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(HIDDEN)}", HIDDEN, 200),
        (f"{POST}\r\n{JSON}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", f"0\r\n\r\n{HIDDEN}", 400),
        (f"{POST}\r\n{JSON}\r\nContent-Length: 3\r\nContent-Length: {len(BODY)}", BODY, 400),
        (f"{POST}\r\n{JSON}\r\nContent-Length: 3, {len(BODY)}", BODY, 400),
        (f"{POST}\r\n{JSON}\r\nContent-Length: {'9' * 5000}", "", 400),
        (f"{POST}\r\n{JSON}\r\nContent-Length: -1", "", 400),
        (f"{POST}\r\n{JSON}\r\nContent-Length: ٣", "abc", 400),
        (f"{POST}\r\nHost: evil.example\r\n{JSON}\r\nContent-Length: {len(BODY)}", BODY, 400),
        (f"{POST}\r\n{JSON}\r\nAuthorization: x\r\nContent-Length: {len(BODY)}", BODY, 400),
        (f"{POST}\r\n{JSON}\r\nTransfer-Encoding: chunked", f"7530\r\n{'x' * 30000}\r\n0\r\n\r\n", 413),
    ],
)
def test_what_two_readers_may_read_differently_is_refused_and_no_body_is_a_request(
    server: Server, head: str, body: str, status: int
) -> None:
    answers = everything(server.send(head, body))

    assert re.findall(r"HTTP/1\.1 (\d+) ", answers) == [str(status)]
    assert "hidden" not in server.log.read_text()
    assert server.ask("GET", "/health")[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_page_of_another_site_can_send_is_not_read(server: Server, kind: str) -> None:
    """A browser sends these anywhere without asking; JSON only after a question that gets no consent."""
    headers = {"Content-Type": kind, "Origin": "https://evil.example"}
    assert server.ask("POST", "/v1/chat/completions", BODY.encode(), headers)[0] == 415
    asked = everything(server.send("OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost"))
    assert " 405 " in asked
    assert "access-control" not in asked.lower()


def test_slow_connections_lock_nobody_out(server: Server) -> None:
    """More than there may be: half of them in the middle of their head, half in the middle of a body."""
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(300)]
    try:
        for number, connection in enumerate(slow):
            length = f"\r\n{JSON}\r\n{AUTHORIZATION}\r\nContent-Length: 100\r\n\r\n{{" if number % 2 else ""
            with contextlib.suppress(ConnectionError):
                connection.sendall(f"{POST}{length}".encode())
        assert server.complete(max_tokens=1)[0] == 200
    finally:
        for connection in slow:
            connection.close()


def test_the_answer_of_a_client_that_left_is_not_computed_and_its_place_is_free(server: Server) -> None:
    """Two run, two wait, one is too many; then all leave."""
    running = [server.post(max_tokens=1500, stream=True) for _ in range(2)]
    assert all(b"200 OK" in connection.recv(1000) for connection in running)
    waiting = [server.post(max_tokens=1500) for _ in range(2)]
    server.has_waiting(2)
    assert server.complete(max_tokens=1)[0] == 429
    for connection in waiting:
        connection.close()
    server.logs(r"499 .* 5\+0 tokens \(the client left\)", times=2)
    late = server.post(max_tokens=1)
    running[0].close()
    assert "HTTP/1.1 200 OK" in everything(late)
    running[1].close()
    streamed = server.logs(r" 200 .* 5\+(\d+) tokens \(the client left\)", times=2)
    whole = server.post(max_tokens=1500)
    time.sleep(0.5)
    whole.close()
    count = server.logs(r"499 .* 5\+(\d+) tokens \(the client left\)", times=3)[-1]
    assert server.complete(max_tokens=1)[0] == 200
    assert max(int(streamed[0]), int(count)) < 1400


def test_an_answer_in_company_that_comes_and_goes_is_the_one_alone(server: Server) -> None:
    """Real MindSpore: while one is answered, two others join and leave in turn."""
    asks: list[dict[str, Any]] = [
        {"max_tokens": 20, "temperature": temperature, "seed": 3, "logprobs": True, "top_logprobs": 2,
         "messages": [{"role": "user", "content": text}]}
        for text, temperature in (("苹果" * 9, 0), ("梨", 1.0), ("3", 0), ("共有多少元", 1.3))
    ]  # fmt: skip
    alone = [server.complete(**asked)[1]["choices"] for asked in asks]
    found: list[Any] = [None] * len(asks)

    def ask(place: int) -> None:
        found[place] = server.complete(**asks[place])[1]["choices"]

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(asks))]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert alike(found, alone)


def test_one_request_too_many_is_told_to_come_again(server: Server) -> None:
    """Two run, two wait; a client that leaves makes room."""
    codes: list[int] = []

    def ask() -> None:
        codes.append(server.complete(max_tokens=200, temperature=1.0)[0])

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
assert client.models.retrieve(name).id == name
ask = {"model": name, "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "苹果"}]}
whole = client.chat.completions.create(**ask, max_tokens=8)
pieces, usage, ends = [], None, []
for chunk in client.chat.completions.create(**ask, max_tokens=8, stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        pieces.append(choice.delta.content or "")
        ends.append(choice.finish_reason)
errors = []
for change, key in (({"tools": [{}]}, sys.argv[2]), ({"model": "x"}, sys.argv[2]), ({}, "wrong")):
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
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
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
        assert local.ask("GET", "/health", headers={"Host": "evil.example"})[0] == 403
        assert local.ask("GET", "/v1/models", headers={"Host": f"localhost:{local.port}"})[0] == 200
        status, found = local.complete(max_tokens=1000)
        assert (status, found["error"]["code"]) == (504, "timeout")
        local.process.send_signal(signal.SIGINT)
        assert local.process.wait(30) == 0
    finally:
        if local.process.poll() is None:
            local.process.kill()
        local.process.wait()
