"""The supported part of OpenAI's chat completions and completions: checks requests.

platform.openai.com/docs/api-reference/chat and /completions; checked with the official client.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launcher.common.http.access import RequestError
from launcher.inference.prompts import check_text, parse_messages
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Question

# Answers per request, and alternatives per token.
MOST_CHOICES, MOST_ALTERNATIVES = 128, 20
_MOST_STOPS, _LONGEST_STOP = 16, 1000
# What would change the answer and is not done here: refused unless it has one of these values, which change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
}
_UNSUPPORTED_IN_CHAT = {**_UNSUPPORTED, "tools": ([],), "functions": ([],), "modalities": (["text"],)}
_UNSUPPORTED_IN_TEXT = {**_UNSUPPORTED, "suffix": ("",)}


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    include_usage: bool = False


class _Body(BaseModel):
    """The keys that are read in both. Others are checked by ``_refuse_unsupported`` or have no effect."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)
    model: str
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _ChatBody(_Body):
    messages: list[Any]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None


class _TextBody(_Body):
    prompt: Any = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    echo: bool | None = None
    best_of: int | None = None


_AnyBody = TypeVar("_AnyBody", bound=_Body)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A request that can be answered.

    prompts: each is answered ``n`` times. text: completions, not chat. logprobs: the number of alternatives that each
    token comes with; None: no log probabilities. echo: the prompt is part of the answer. id: of the answer.
    """

    model: str
    prompts: tuple[Question, ...]
    spec: GenerationSpec
    stream: bool
    include_usage: bool
    n: int = 1
    text: bool = False
    logprobs: int | None = None
    echo: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def scores_prompts(self) -> bool:
        """Return whether the tokens of the prompts need log probabilities too."""
        return self.echo and self.logprobs is not None

    def seeded(self, choice: int) -> GenerationSpec:
        """Return the settings of answer ``choice`` to a prompt."""
        return replace(self.spec, seed=self.spec.seed + choice)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's part in an answer: what a request leaves out, and the most tokens it may ask for."""

    defaults: GenerationSpec
    most_tokens: int


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse a body. Raises RequestError when it is no JSON object."""
    try:
        values = json.loads(raw)
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error
    return values


def parse_chat(values: Mapping[str, Any], settings: Settings) -> Completion:
    """Parse a request for chat completions. Raises RequestError."""
    body = _validated(_ChatBody, values, _UNSUPPORTED_IN_CHAT)
    if body.top_logprobs and not body.logprobs:
        raise RequestError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    try:
        messages = parse_messages(body.messages)
    except ValueError as error:
        raise RequestError(400, str(error), param="messages") from error
    return Completion(
        **_common(body, body.max_completion_tokens or body.max_tokens, settings),
        prompts=(Question(id="0", messages=messages),),
        logprobs=body.top_logprobs or 0 if body.logprobs else None,
        id=f"chatcmpl-{secrets.token_hex(12)}",
    )


def parse_text(values: Mapping[str, Any], settings: Settings) -> Completion:
    """Parse a request for completions. Raises RequestError."""
    body = _validated(_TextBody, values, _UNSUPPORTED_IN_TEXT)
    prompts = _prompts(body.prompt)
    if body.best_of not in (None, body.n or 1):
        raise RequestError(400, "best_of is not supported here", param="best_of", code="unsupported_parameter")
    if len(prompts) * (body.n or 1) > MOST_CHOICES:
        asked = f"{len(prompts)} prompts with {body.n or 1} answers each"
        raise RequestError(400, f"one request gets {MOST_CHOICES} answers at most, not {asked}", param="prompt")
    if body.max_tokens == 0 and not body.echo:
        raise RequestError(400, "max_tokens 0 needs echo: true; nothing else is answered", param="max_tokens")
    return Completion(
        **_common(body, body.max_tokens, settings),
        prompts=prompts,
        text=True,
        logprobs=body.logprobs,
        echo=bool(body.echo),
        id=f"cmpl-{secrets.token_hex(12)}",
    )


def _validated(kind: type[_AnyBody], values: Mapping[str, Any], unsupported: Mapping[str, tuple[Any, ...]]) -> _AnyBody:
    for name, harmless in unsupported.items():
        if values.get(name) not in (None, *harmless):
            raise RequestError(400, f"{name} is not supported here", param=name, code="unsupported_parameter")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise RequestError(400, f"{name}: {first['msg']}", param=name) from error


def _common(body: _Body, max_tokens: int | None, settings: Settings) -> dict[str, Any]:
    return {
        "model": body.model,
        "spec": _spec(body, max_tokens, settings),
        "n": body.n or 1,
        "stream": bool(body.stream),
        "include_usage": bool(body.stream_options and body.stream_options.include_usage),
    }


def _spec(body: _Body, asked: int | None, settings: Settings) -> GenerationSpec:
    defaults, most = settings.defaults, settings.most_tokens
    if asked is not None and asked > most:
        raise RequestError(400, f"at most {most} tokens are answered here, not {asked}", param="max_tokens")
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    if stop and (len(stop) > _MOST_STOPS or any(len(text) > _LONGEST_STOP for text in stop)):
        raise RequestError(400, f"stop may hold {_MOST_STOPS} texts of {_LONGEST_STOP} characters", param="stop")
    return GenerationSpec(
        max_new_tokens=min(defaults.max_new_tokens, most) if asked is None else asked,
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_k=defaults.top_k,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        repetition_penalty=defaults.repetition_penalty,
        seed=defaults.seed if body.seed is None else body.seed,
        stop=tuple(stop) if stop else defaults.stop,
    )


def _prompts(value: Any) -> tuple[Question, ...]:
    """Parse a text, a list of texts, token ids, or a list of lists of token ids."""
    items = [value] if isinstance(value, str) or _are_ids(value) else value
    if not isinstance(items, list) or not items:
        raise RequestError(400, "prompt must be a text, token ids, or a list of these, and not empty", param="prompt")
    return tuple(_prompt(number, item) for number, item in enumerate(items))


def _prompt(number: int, item: Any) -> Question:
    if _are_ids(item):
        return Question(id=str(number), ids=tuple(item))
    try:
        if not isinstance(item, str) or not item:
            raise ValueError("it is no text, and no list of token ids, or empty")
        check_text(item)
    except ValueError as error:
        raise RequestError(400, f"prompt {number}: {error}", param="prompt") from error
    return Question(id=str(number), text=item)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)
