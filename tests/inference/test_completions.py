"""Completions, log probabilities and several answers, asked of a server in this process by OpenAI's own client.

The model is computed in numpy; its logits of whole rows are the oracle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from support.data_tools import CONTROLS, make_hugging_face
from support.model_servers import Running, quick_model, running, served

from launcher.data.tokenizer import load_tokenizer
from launcher.inference.sampling import GenerationSpec
from launcher.inference.server.served import Served
from launcher.inference.session import Question, Session
from launcher.inference.transcript import Transcript

TEXT = "I love Beijing, 苹果"
HELLO: Any = [{"role": "user", "content": "苹果"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("completions")
    plain, other = quick_model(root / "model"), quick_model(root / "other", template="", rms_norm_eps=0.5)
    with running([served("model", plain, asked_as="last"), served("other", other)]) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)


def ids_of(server: Running, text: str) -> list[int]:
    return server.session.encode(Question(id="-", text=text))


def name_of(server: Running, token: int) -> str:
    """The name of a token in log probabilities."""
    raw = server.session.tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def log_softmax(server: Running, ids: Sequence[int]) -> Any:
    """(tokens, vocab): row i is about the token after ids[i]."""
    logits = server.session.all_logits(np.array([ids], np.int32))[0].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_an_echo_has_the_log_probability_of_each_token_of_the_prompt(server: Running, client: openai.OpenAI) -> None:
    found = client.completions.create(model="model", prompt=TEXT, echo=True, max_tokens=0, logprobs=2)
    (choice,), ids = found.choices, ids_of(server, TEXT)
    expected = log_softmax(server, ids)
    logprobs = choice.logprobs

    assert (choice.text, choice.finish_reason) == (TEXT, "length")
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(ids), 0)
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.text_offset is not None
    assert logprobs.token_logprobs[0] is None
    assert np.allclose(logprobs.token_logprobs[1:], expected[np.arange(len(ids) - 1), ids[1:]], atol=1e-5)
    for place, top in enumerate(logprobs.top_logprobs[1:]):
        likeliest = sorted(expected[place])[-2:]
        assert {*np.round(likeliest, 4)} <= {*np.round([*top.values()], 4)}
        assert top[logprobs.tokens[place + 1]] == logprobs.token_logprobs[place + 1]
    for token, offset in zip(logprobs.tokens[1:], logprobs.text_offset[1:], strict=True):
        assert token.startswith("bytes:") or TEXT.startswith(token, offset)
    assert "".join(logprobs.tokens[1:]).replace("bytes:", "").startswith("I love Beijing")


def test_new_tokens_have_log_probabilities_whatever_the_temperature(server: Running, client: openai.OpenAI) -> None:
    ids = ids_of(server, TEXT)
    found = client.completions.create(model="model", prompt=ids, max_tokens=6, logprobs=0, temperature=0.7, seed=4)
    (choice,) = found.choices
    logprobs, names = choice.logprobs, {name_of(server, token): token for token in range(700)}
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.top_logprobs is not None
    new = [names[token] for token in logprobs.tokens]
    expected = log_softmax(server, [*ids, *new])[len(ids) - 1 : -1]

    assert np.allclose(logprobs.token_logprobs or (), expected[np.arange(len(new)), new], atol=1e-5)
    assert [len(top) for top in logprobs.top_logprobs] == [1] * len(new)
    assert (logprobs.text_offset or [0])[0] == len(TEXT)
    tokenizer = server.session.tokenizer
    assert tokenizer.decode([*ids, *new]) == TEXT + choice.text


def test_answers_to_one_prompt_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "model", "prompt": TEXT, "max_tokens": 6, "temperature": 1.5}
    several = client.completions.create(**ask, n=5, seed=10)
    alone = [client.completions.create(**ask, seed=10 + number).choices[0].text for number in range(5)]

    assert [choice.text for choice in several.choices] == alone
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3, 4]
    assert len(set(alone)) == 5
    chat = client.chat.completions.create(model="model", messages=HELLO, max_tokens=6, temperature=1.5, n=4, seed=3)
    assert len({choice.message.content for choice in chat.choices}) == 4


def test_a_list_of_prompts_is_answered_in_its_order_in_batches(client: openai.OpenAI, server: Running) -> None:
    prompts = ["苹果", TEXT, "3", "共有多少元", "I", "梨 和 苹果", "a"]
    found = client.completions.create(model="model", prompt=prompts, max_tokens=5, n=2, echo=True)
    alone = [client.completions.create(model="model", prompt=text, max_tokens=5).choices[0].text for text in prompts]

    assert [choice.text for choice in found.choices] == [
        prompt + answer for prompt, answer in zip(prompts, alone, strict=True) for _ in range(2)
    ]
    by_ids = client.completions.create(model="model", prompt=[ids_of(server, text) for text in prompts], max_tokens=5)
    assert [choice.text for choice in by_ids.choices] == alone
    assert by_ids.usage is not None
    assert by_ids.usage.prompt_tokens == sum(len(ids_of(server, text)) for text in prompts)


def test_a_continuation_is_that_of_the_same_tokens_in_one_go(server: Running, client: openai.OpenAI) -> None:
    """With echo and log probabilities a single token is computed with the prompt; it is the one that comes else."""
    ask: dict[str, Any] = {"model": "model", "prompt": TEXT, "max_tokens": 1}
    scored = client.completions.create(**ask, echo=True, logprobs=1).choices[0]
    assert scored.text == TEXT + client.completions.create(**ask).choices[0].text
    assert scored.logprobs is not None
    assert scored.logprobs.token_logprobs is not None
    assert len(scored.logprobs.token_logprobs) == len(ids_of(server, TEXT)) + 1
    assert max((scored.logprobs.top_logprobs or [])[-1].values()) == scored.logprobs.token_logprobs[-1]


def test_the_token_that_ends_a_completion_has_a_log_probability(server: Running, client: openai.OpenAI) -> None:
    """lm-eval takes the last one for that of a token after the prompt, whatever it is."""
    ids = ids_of(server, TEXT)
    likeliest = int(log_softmax(server, ids)[-1].argmax())
    ending = Session(replace(server.session.model, ends=(likeliest,)), batch_size=1)
    with running([Served(name="ending", session=ending, defaults=GenerationSpec())]) as other:
        ask: dict[str, Any] = {"prompt": TEXT, "max_tokens": 1, "logprobs": 1}
        (choice,) = other.post("/v1/completions", **ask, echo=True)["choices"]
        (alone,) = other.post("/v1/completions", **ask)["choices"]

    assert (choice["text"], choice["finish_reason"], alone["text"]) == (TEXT, "stop", "")
    assert len(choice["logprobs"]["token_logprobs"]) == len(ids) + 1
    assert choice["logprobs"]["tokens"][-1] == alone["logprobs"]["tokens"][0] == name_of(server, likeliest)


@pytest.mark.parametrize("echo", [True, False])
def test_streamed_pieces_add_up_to_the_whole(client: openai.OpenAI, echo: bool) -> None:
    ask: dict[str, Any] = {"model": "model", "prompt": TEXT, "max_tokens": 7, "n": 2, "logprobs": 1, "echo": echo}
    ask |= {"temperature": 1.0, "seed": 1}
    whole = client.completions.create(**ask)
    texts, tokens, ends, offsets, usage = ["", ""], [[], []], ["", ""], [[], []], None  # type: ignore[var-annotated]
    for chunk in client.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens
            offsets[choice.index] += choice.logprobs.text_offset
            ends[choice.index] += choice.finish_reason or ""

    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices if choice.logprobs]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices if choice.logprobs]
    assert ends == ["length", "length"]
    assert usage == whole.usage


def test_a_stop_text_ends_a_completion_and_white_space_stays(client: openai.OpenAI, server: Running) -> None:
    ask: dict[str, Any] = {"model": "model", "prompt": TEXT, "max_tokens": 20, "temperature": 1.5, "seed": 2}
    text = client.completions.create(**ask).choices[0].text
    stop = text[5:7]
    ended = client.completions.create(**ask, stop=["nowhere", stop]).choices[0]
    assert (ended.text, ended.finish_reason) == (text[: text.index(stop)], "stop")
    tokenizer = server.session.tokenizer
    ids = tokenizer.encode("one two  three\n", start=True)
    for cut in range(1, len(ids)):
        transcript, shown = Transcript(tokenizer, after=ids[:cut]), tokenizer.decode(ids[:cut])
        for token in ids[cut:]:
            transcript.add(token)
            shown += transcript.news()
        assert shown + transcript.news(final=True) == "one two  three\n"


def test_chat_has_log_probabilities_in_its_own_format(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "model", "messages": HELLO, "max_tokens": 5, "logprobs": True, "top_logprobs": 3}
    choice = client.chat.completions.create(**ask).choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content or []

    assert b"".join(bytes(token.bytes or []) for token in content).decode().strip() == choice.message.content
    for token in content:
        assert len(token.top_logprobs) == 3
        # Greedy: the likeliest is the one that was taken.
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)
    streamed = [
        token
        for chunk in client.chat.completions.create(**ask, stream=True)
        for choice_ in chunk.choices
        if choice_.logprobs
        for token in choice_.logprobs.content or []
    ]
    assert streamed == content
    silent = client.chat.completions.create(model="model", messages=HELLO, max_tokens=2)
    assert silent.choices[0].logprobs is None


def test_each_model_answers_under_its_name(server: Running, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["model", "other"]
    answers = {
        name: client.completions.create(model=name, prompt=TEXT, max_tokens=12).choices[0].text
        for name in ("model", "last", "other")
    }
    assert answers["model"] == answers["last"] != answers["other"]
    with pytest.raises(openai.NotFoundError, match="there is no model 'third'; there is model, other"):
        client.completions.create(model="third", prompt=TEXT)
    with pytest.raises(openai.BadRequestError, match="other has no chat template"):
        client.chat.completions.create(model="other", messages=HELLO)


def test_what_a_model_cannot_read_is_refused(server: Running, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="700 is no token id of"):
        client.completions.create(model="model", prompt=[1, 700])
    with pytest.raises(openai.BadRequestError, match="longer than the context of 96 tokens"):
        client.completions.create(model="model", prompt=[[5] * 96])
    assert client.completions.create(model="model", prompt=[5] * 96, max_tokens=0, echo=True).choices


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "prepend"])
def test_the_bytes_of_tokens_add_up_to_the_text(tmp_path: Path, kind: str) -> None:
    tokenizer = load_tokenizer(make_hugging_face(tmp_path / "tokenizer.json", kind))
    ids = tokenizer.encode(TEXT, start=True)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode().removeprefix(" ") == TEXT
    control = tokenizer.token_id(CONTROLS[0])
    assert control is not None
    assert tokenizer.token_bytes(control) == b""
