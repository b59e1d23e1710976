"""Answers in OpenAI's formats: of chat completions and of completions, whole and in streamed chunks."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from launcher.data.tokenizer import Tokenizer
from launcher.inference.decoding import CANCELLED
from launcher.inference.logprobs import TokenScore
from launcher.inference.server.protocol import Completion

_FINISH = {"stop": "stop", "length": "length", CANCELLED: "length"}


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of answer ``index``. scores: of the tokens since the last piece. finish: set in the last one."""

    index: int
    text: str
    scores: tuple[TokenScore, ...] = ()
    finish: str | None = None


@dataclass(kw_only=True)
class Choice:
    """One of the answers to a request, as far as it has come."""

    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    finish: str = CANCELLED

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.scores += piece.scores
        self.finish = piece.finish or self.finish


class Format(Protocol):
    """Formats the answers to one request."""

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """Return a complete answer."""
        ...

    def chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """Yield the events for a piece of a streamed answer."""
        ...

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """Return the last event, for requests that ask for token counts."""
        ...


def usage(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    """Return token counts by OpenAI's names."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }


def model(name: str, created: int) -> dict[str, Any]:
    """Return the description of a model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "launcher"}


def models(names: Iterable[str], created: int) -> dict[str, Any]:
    """Return the list of models."""
    return {"object": "list", "data": [model(name, created) for name in names]}


def _head(completion: Completion, kind: str) -> dict[str, Any]:
    return {"id": completion.id, "object": kind, "created": completion.created, "model": completion.model}


class _TokenTexts:
    """The texts of the tokens of one answer, and where in it each begins.

    Decoders drop the space that a vocabulary puts before the first token of a text (``at_start``).
    """

    def __init__(self, tokenizer: Tokenizer, *, at_start: bool, offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._at_start = at_start
        self._complete = codecs.getincrementaldecoder("utf-8")("replace")
        self.offset = offset

    def raw(self, token: int) -> bytes:
        """Return the bytes of ``token``; b"" for a control token."""
        found = self._tokenizer.token_bytes(token)
        begins_text = self._at_start and found.startswith(b" ")
        return self._tokenizer.decode([token]).encode() if begins_text else found

    def text(self, token: int) -> str:
        """Return the text of ``token``: the name of a control token, "bytes:\\xe8" for a part of a character."""
        raw = self.raw(token)
        if not raw and self._tokenizer.is_control(token):
            return self._tokenizer.piece(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def pass_by(self, token: int) -> None:
        """Move on behind ``token``."""
        raw = self.raw(token)
        self.offset += len(self._complete.decode(raw))
        self._at_start = self._at_start and not raw


class ChatFormat:
    """Chat completions."""

    def __init__(self, completion: Completion, tokenizer: Tokenizer) -> None:
        self._completion = completion
        self._texts = [_TokenTexts(tokenizer, at_start=True) for _ in range(completion.n)]
        self._begun: set[int] = set()

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        found = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs(index, choice.scores),
                "finish_reason": _FINISH[choice.finish],
            }
            for index, choice in enumerate(choices)
        ]
        return {**_head(self._completion, "chat.completion"), "choices": found, "usage": usage}

    def chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        role = {} if piece.index in self._begun else {"role": "assistant"}
        self._begun.add(piece.index)
        if role or piece.text or piece.scores:
            yield self._chunk(piece.index, {**role, "content": piece.text}, self._logprobs(piece.index, piece.scores))
        if piece.finish not in (None, CANCELLED):
            yield self._chunk(piece.index, {}, None, piece.finish)

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**_head(self._completion, "chat.completion.chunk"), "choices": [], "usage": usage}

    def _chunk(self, index: int, delta: dict[str, str], logprobs: Any, finish: str | None = None) -> dict[str, Any]:
        end = _FINISH[finish] if finish else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": end}
        return {**_head(self._completion, "chat.completion.chunk"), "choices": [choice]}

    def _logprobs(self, index: int, scores: Iterable[TokenScore]) -> dict[str, Any] | None:
        if self._completion.logprobs is None:
            return None
        texts, found = self._texts[index], []
        for score in scores:
            if not texts.raw(score.token):
                continue  # a control token, such as the end, is no part of the content
            top = [_chat_token(texts, token, logprob) for token, logprob in score.top]
            found.append({**_chat_token(texts, score.token, score.logprob), "top_logprobs": top})
            texts.pass_by(score.token)
        return {"content": found, "refusal": None}


def _chat_token(texts: _TokenTexts, token: int, logprob: float | None) -> dict[str, Any]:
    raw = texts.raw(token)
    return {"token": texts.text(token), "logprob": logprob, "bytes": list(raw)}


class TextFormat:
    """Completions."""

    def __init__(self, completion: Completion, tokenizer: Tokenizer, prompts: Sequence[str]) -> None:
        """``prompts``: the texts of the prompts, also of those that were given as token ids."""
        self._completion = completion
        self._texts = [
            _TokenTexts(tokenizer, at_start=completion.echo or not prompt, offset=0 if completion.echo else len(prompt))
            for prompt in prompts
            for _ in range(completion.n)
        ]

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        found = [self._choice(index, choice.text, choice.scores, choice.finish) for index, choice in enumerate(choices)]
        return {**_head(self._completion, "text_completion"), "choices": found, "usage": usage}

    def chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        finish = None if piece.finish == CANCELLED else piece.finish
        if piece.text or piece.scores or finish:
            choice = self._choice(piece.index, piece.text, piece.scores, finish)
            yield {**_head(self._completion, "text_completion"), "choices": [choice]}

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**_head(self._completion, "text_completion"), "choices": [], "usage": usage}

    def _choice(self, index: int, text: str, scores: Iterable[TokenScore], finish: str | None) -> dict[str, Any]:
        end, logprobs = _FINISH[finish] if finish else None, self._logprobs(index, scores)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": end}

    def _logprobs(self, index: int, scores: Iterable[TokenScore]) -> dict[str, list[Any]] | None:
        if self._completion.logprobs is None:
            return None
        texts = self._texts[index]
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for score in scores:
            found["tokens"].append(texts.text(score.token))
            found["token_logprobs"].append(score.logprob)
            found["top_logprobs"].append(_alternatives(texts, score))
            found["text_offset"].append(texts.offset)
            texts.pass_by(score.token)
        return found


def _alternatives(texts: _TokenTexts, score: TokenScore) -> dict[str, float] | None:
    """Return the alternatives by their texts, the token itself among them; of two with one text the likelier."""
    if score.logprob is None:
        return None
    found: dict[str, float] = {}
    for token, logprob in (*score.top, (score.token, score.logprob)):
        name = texts.text(token)
        found[name] = max(logprob, found.get(name, logprob))
    return found
