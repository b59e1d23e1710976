"""What a request may say, and who may ask. No MindSpore; the server itself is in integration/test_serve.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.errors import SpecError
from launcher.inference.sampling import GenerationSpec
from launcher.serving import protocol
from launcher.serving.protocol import RequestError, parse_completion
from launcher.serving.server import check_address, is_loopback

DEFAULTS = GenerationSpec(max_new_tokens=64, temperature=0.3, top_k=5, stop=("##",))
HELLO = [{"role": "user", "content": "hello"}]


def parse(**values: Any) -> protocol.Completion:
    body = json.dumps({"model": "m", "messages": HELLO, **values}).encode()
    return parse_completion(body, defaults=DEFAULTS, most_tokens=100)


def test_what_a_request_leaves_out_is_the_servers_default() -> None:
    assert parse().spec == DEFAULTS
    assert parse(n=1, tools=None, logit_bias={}, user="x", unknown=1).spec == DEFAULTS


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
        ({"n": 2}, "n is not supported", "n"),
        ({"tools": [{}]}, "tools is not supported", "tools"),
        ({"temperature": 3}, "temperature: Input should be less than", "temperature"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number", "temperature"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater", "max_tokens"),
        ({"max_tokens": 101}, "at most 100 tokens are answered here, not 101", "max_tokens"),
        ({"messages": []}, "the last message must be the user's", "messages"),
        ({"messages": "hello"}, "messages: Input should be a valid list", "messages"),
        ({"model": None}, "model: Input should be a valid string", "model"),
        ({"stop": ["a"] * 5}, "stop may hold 4 texts", "stop"),
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


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError, match="the body is not JSON"):
        parse_completion(raw, defaults=DEFAULTS, most_tokens=100)


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
