"""What a request may say, who may ask, and how long a connection lasts. No MindSpore; the server itself is in
integration/test_serve.py."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from launcher.common.http.access import RequestError, check_address, is_loopback
from launcher.common.http.connections import Connection, Patience
from launcher.errors import SpecError
from launcher.inference.sampling import GenerationSpec
from launcher.inference.server.protocol import Completion, Settings, parse_chat, parse_object, parse_text

DEFAULTS = GenerationSpec(max_new_tokens=64, temperature=0.3, top_k=5, stop=("##",))
HELLO = [{"role": "user", "content": "hello"}]


SETTINGS = Settings(defaults=DEFAULTS, most_tokens=100)


def parse(**values: Any) -> Completion:
    return parse_chat({"model": "m", "messages": HELLO, **values}, SETTINGS)


def parse_plain(**values: Any) -> Completion:
    return parse_text({"model": "m", "prompt": "hello", **values}, SETTINGS)


def test_what_a_request_leaves_out_is_the_servers_default() -> None:
    assert parse().spec == DEFAULTS
    assert parse(n=1, tools=None, logit_bias={}, user="x", unknown=1).spec == DEFAULTS
    assert parse_plain(best_of=1, suffix=None, user="x").spec == DEFAULTS


def test_what_a_request_says_wins() -> None:
    found = parse(
        max_completion_tokens=7, temperature=0, top_p=0.5, seed=9, stop="x", stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip

    assert (found.stream, found.include_usage) == (True, True)
    assert found.spec == GenerationSpec(max_new_tokens=7, temperature=0, top_k=5, top_p=0.5, seed=9, stop=("x",))


@pytest.mark.parametrize(
    ("values", "expected", "param"),
    [
        ({"n": 129}, "n: Input should be less than or equal to 128", "n"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: Input should be less", "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs", "top_logprobs"),
        ({"logprobs": 3}, "logprobs: Input should be a valid boolean", "logprobs"),
        ({"presence_penalty": 1}, "presence_penalty is not supported", "presence_penalty"),
        ({"tools": [{}]}, "tools is not supported", "tools"),
        ({"temperature": 3}, "temperature: Input should be less than", "temperature"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number", "temperature"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater", "max_tokens"),
        ({"max_tokens": 101}, "at most 100 tokens are answered here, not 101", "max_tokens"),
        ({"messages": []}, "the last message must be the user's", "messages"),
        ({"messages": "hello"}, "messages: Input should be a valid list", "messages"),
        ({"model": None}, "model: Input should be a valid string", "model"),
        ({"stop": ["a"] * 17}, "stop may hold 16 texts", "stop"),
        ({"response_format": {"type": "json_object"}}, "response_format", "response_format.type"),
    ],
)
def test_a_request_that_cannot_be_answered_names_the_key(values: dict[str, Any], expected: str, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**values)
    error = caught.value.to_dict()["error"]
    assert caught.value.status == 400
    assert expected in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize(
    ("values", "expected", "param"),
    [
        ({"prompt": None}, "prompt must be a text, token ids, or a list of these", "prompt"),
        ({"prompt": []}, "and not empty", "prompt"),
        ({"prompt": ["a", ""]}, "prompt 1: it is no text", "prompt"),
        ({"prompt": ["a", [1, True]]}, "prompt 1: it is no text", "prompt"),
        ({"prompt": "a \ud800"}, "not valid Unicode at character 3", "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "gets 128 answers at most, not 65 prompts with 2 answers each", "prompt"),
        ({"max_tokens": 0}, "max_tokens 0 needs echo", "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens: Input should be greater", "max_tokens"),
        ({"logprobs": 21}, "logprobs: Input should be less than or equal to 20", "logprobs"),
        ({"best_of": 3}, "best_of is not supported", "best_of"),
        ({"suffix": "b"}, "suffix is not supported", "suffix"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported", "frequency_penalty"),
    ],
)
def test_a_prompt_that_cannot_be_continued_names_the_key(values: dict[str, Any], expected: str, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_plain(**values)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert expected in caught.value.message


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError, match="the body is not JSON"):
        parse_object(raw)


def test_other_machines_need_a_token() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert is_loopback(host)
        check_address(host, None)
    for host in ("192.0.2.1", "example.org", "", "::"):
        with pytest.raises(SpecError, match="there is no token"):
            check_address(host, None)
        check_address(host, "a-token-of-some-length")
    with pytest.raises(SpecError, match="shorter than 16"):
        check_address("127.0.0.1", "short")


# ------------------------------------------------------------------------------------------------ connections


@contextlib.contextmanager
def listening(patience: Patience, pieces: int = 1) -> Iterator[int]:
    """The port of a server that gives so many MiB to "/now", and to nothing else any."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            if scope["path"] == "/now":
                await send({"type": "http.response.start", "status": 200})
                for number in range(pieces):
                    more = number < pieces - 1
                    await send({"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": more})
                return

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    http: Any = partial(Connection, patience)
    options: dict[str, Any] = {"log_config": None, "log_level": "critical", "lifespan": "off", "ws": "none"}
    server = uvicorn.Server(uvicorn.Config(app, http=http, timeout_graceful_shutdown=1, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()


def connect(port: int, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(sent)
    return connection


def ask(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has ended it; nothing else must have come."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_request_must_arrive_in_time_however_often_a_drop_of_it_comes() -> None:
    with listening(Patience(most=9, request_s=0.5, answer_s=60)) as port:
        drop, silent, half, asking = (
            connect(port, sent)
            for sent in (b"G", b"", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1", ask("/"))
        )
        until = time.monotonic() + 10
        while not (is_closed(drop) and is_closed(silent) and is_closed(half)):
            assert time.monotonic() < until
            with contextlib.suppress(OSError):
                drop.send(b"E")
            time.sleep(0.1)
        assert not is_closed(asking)
        for connection in (drop, silent, half, asking):
            connection.close()


@pytest.mark.parametrize(("pieces", "request_s", "answer_s"), [(64, 60, 0.5), (32, 0.2, 0.5)])
def test_an_answer_must_be_taken_in_time(pieces: int, request_s: float, answer_s: float) -> None:
    """No socket's buffer holds it, and the client reads nothing."""
    patience = Patience(most=9, request_s=request_s, answer_s=answer_s)
    with listening(patience, pieces) as port, connect(port, ask("/now")) as client:
        time.sleep(2.0)
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := client.recv(1 << 20):
                received += len(part)
        assert 0 < received < pieces << 20


def test_one_connection_too_many_ends_the_one_that_waited_longest_without_a_request() -> None:
    with listening(Patience(most=3, request_s=60, answer_s=60)) as port:
        asking, oldest = connect(port, ask("/")), connect(port, b"G")
        time.sleep(0.1)
        younger = connect(port, b"G")
        with connect(port, ask("/now")) as client:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            assert (is_closed(oldest), is_closed(younger), is_closed(asking)) == (True, False, False)
        for connection in (asking, oldest, younger):
            connection.close()
