"""The supported part of OpenAI's chat completions: checks requests, formats answers and errors.

platform.openai.com/docs/api-reference/chat; checked with the official client, openai 1.x and 2.x.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launcher.common.http.access import RequestError
from launcher.data.messages import Message
from launcher.inference.prompts import parse_messages
from launcher.inference.sampling import GenerationSpec

# What would change the answer and is not done here: refused unless it has this value, which changes nothing.
_UNSUPPORTED: dict[str, Any] = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "tools": [],
    "functions": [],
    "modalities": ["text"],
}
_FINISH = {"stop": "stop", "length": "length", "cancelled": "length"}


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    include_usage: bool = False


class _Body(BaseModel):
    """The keys that are read. Others are checked by ``_refuse_unsupported`` or have no effect."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)
    model: str
    messages: list[Any]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A request that can be answered."""

    model: str
    messages: tuple[Message, ...]
    spec: GenerationSpec
    stream: bool
    include_usage: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))


def parse_completion(raw: bytes, *, defaults: GenerationSpec, most_tokens: int) -> Completion:
    """Parse the request in ``raw``; missing settings come from ``defaults``. Raises RequestError."""
    try:
        values = json.loads(raw)
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error
    _refuse_unsupported(values)
    try:
        body = _Body.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise RequestError(400, f"{name}: {first['msg']}", param=name) from error
    try:
        messages = parse_messages(body.messages)
    except ValueError as error:
        raise RequestError(400, str(error), param="messages") from error
    return Completion(
        model=body.model,
        messages=messages,
        spec=_spec(body, defaults, most_tokens),
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )


def _refuse_unsupported(values: dict[str, Any]) -> None:
    for name, harmless in _UNSUPPORTED.items():
        if values.get(name) not in (None, harmless):
            raise RequestError(400, f"{name} is not supported here", param=name, code="unsupported_parameter")


def _spec(body: _Body, defaults: GenerationSpec, most_tokens: int) -> GenerationSpec:
    asked = body.max_completion_tokens or body.max_tokens
    if asked is not None and asked > most_tokens:
        raise RequestError(400, f"at most {most_tokens} tokens are answered here, not {asked}", param="max_tokens")
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    if stop and (len(stop) > 4 or any(len(text) > 1000 for text in stop)):
        raise RequestError(400, "stop may hold 4 texts of 1000 characters", param="stop")
    return GenerationSpec(
        max_new_tokens=asked or min(defaults.max_new_tokens, most_tokens),
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_k=defaults.top_k,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        repetition_penalty=defaults.repetition_penalty,
        seed=defaults.seed if body.seed is None else body.seed,
        stop=tuple(stop) if stop else defaults.stop,
    )


# ------------------------------------------------------------------------------------------------ answers


def answered(completion: Completion, text: str, finish: str, usage: dict[str, int]) -> dict[str, Any]:
    """Return a complete answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH[finish]}
    return {**_head(completion, "chat.completion"), "choices": [choice], "usage": usage}


def usage(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    """Return token counts by OpenAI's names."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }


def chunk(completion: Completion, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    """Return a piece of a streamed answer."""
    end = _FINISH[finish] if finish else None
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}
    return {**_head(completion, "chat.completion.chunk"), "choices": [choice]}


def usage_chunk(completion: Completion, counts: dict[str, int]) -> dict[str, Any]:
    """Return the last piece, for requests that ask for token counts."""
    return {**_head(completion, "chat.completion.chunk"), "choices": [], "usage": counts}


def _head(completion: Completion, kind: str) -> dict[str, Any]:
    return {"id": completion.id, "object": kind, "created": completion.created, "model": completion.model}


def models(name: str, created: int) -> dict[str, Any]:
    """Return the list of models, which has one entry."""
    return {"object": "list", "data": [model(name, created)]}


def model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "launcher"}
