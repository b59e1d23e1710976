"""A model's own chat template, from the files beside its tokenizer, rendered as transformers renders it.

A row is what ``apply_chat_template`` gives, token for token. The template does not say which text is an answer (unless
it has ``{% generation %}``), so that is found by rendering it again: once up to the question, and once with a mark in
place of the answer. A conversation for which these renderings do not agree is refused.

Two differences from transformers are meant: a message that spells a control token stays text, and ``strftime_now`` is
undefined, so that rows do not depend on the day (Llama 3.2's template has a date for that case).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from launcher.common.json_files import json_or_empty
from launcher.data.messages import Message, as_messages
from launcher.data.segments import Encoded, Generation, Segment, unused_mark
from launcher.data.tokenizer import Tokenizer, load_tokenizer
from launcher.errors import DataError
from launcher.runspec.folders import (
    CHAT_TEMPLATE,
    OWN_WITHOUT_THINKING,
    chat_template_file,
    chat_template_of,
)

_CONFIG, _MAP = "tokenizer_config.json", "special_tokens_map.json"
_Span = tuple[int, int]


def own_template(name: str, tokenizer: Path | None) -> OwnTemplate:
    """Return the chat template beside ``tokenizer``, with the thinking of Qwen3 and its kind switched by ``name``.

    Raises DataError when there is none, or when it is not valid Jinja2.
    """
    file = chat_template_file(tokenizer.parent) if tokenizer else None
    if tokenizer is None or file is None:
        raise DataError(
            f"template {name}: no chat template beside the tokenizer {tokenizer or ''}".rstrip(),
            hint=f"it is in the model's {CHAT_TEMPLATE} or {_CONFIG}; launcher data templates lists the launcher's own",
        )
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    source = text if file.name == CHAT_TEMPLATE else str(chat_template_of(json_or_empty(file)))
    try:
        return OwnTemplate(name, file, source, load_tokenizer(tokenizer))
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"{file}: line {error.lineno} of the chat template: {error.message}") from error


class OwnTemplate:
    """A template for training and inference, with the interface of ``ChatTemplate``."""

    def __init__(self, name: str, file: Path, source: str, tokenizer: Tokenizer) -> None:
        self.name = name
        self._file = file
        self._template = _environment().from_string(source)
        self._tokenizer = tokenizer
        self._variables = {**_special_tokens(file.parent), **_switches(name)}
        # Whatever rows depend on: special tokens are printed, too.
        self.source = json.dumps([source, self._variables], sort_keys=True)
        named = sorted(tokenizer.control_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, named)) or r"(?!)")
        self.takes_tools = re.search(r"\btool(_call)?s\b", source) is not None
        self._marks_answers = re.search(r"\{%[-+]?\s*generation\b", source) is not None

    def prompt(self, question: str | Sequence[Message], system: str | None = None) -> str:
        """Return the prompt for an answer as text. Raises DataError when the turns do not end with the user's."""
        return self._render(_asked(question, system), ask=True)

    def encode_prompt(
        self, tokenizer: Tokenizer, question: str | Sequence[Message], system: str | None = None
    ) -> list[int]:
        """Return the prompt as token ids. Raises DataError when the turns do not end with the user's."""
        turns = _asked(question, system)
        text = self._render(turns, ask=True)
        return self.encode_segments(list(self._cut(text, [], self._spelled(turns, text, ask=True))), tokenizer).ids

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> Encoded:
        """Encode a whole conversation for training. Raises DataError when its answers cannot be told apart."""
        return self.encode_segments(self.segments(messages), tokenizer)

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """Return the conversation in order. Raises DataError when its answers cannot be told apart."""
        text = self._render(messages)
        self._check_tools(messages, text)
        answers = [(place, message) for place, message in enumerate(messages) if message.role == "assistant"]
        marked = self._marked(messages, len(answers)) if self._marks_answers else None
        spans = marked or [self._answer(messages, place, text) for place, _ in answers]
        kept = [span for span, (_, message) in zip(spans, answers, strict=True) if message.in_loss]
        return list(self._cut(text, kept, self._spelled(messages, text)))

    def encode_segments(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> Encoded:
        """Encode segments: text between two control tokens as a whole, as transformers does, whatever is in the loss.

        A token on the border of prompt and answer counts to where it begins.
        """
        ids: list[int] = []
        in_loss = bytearray()
        start = True
        for run in _runs(segments):
            new, mask = _control(run[0], tokenizer) if run[0].control else _text(run, tokenizer, start)
            ids += new
            in_loss += mask
            start = run[0].control and tokenizer.starts_after_control
        return Encoded(ids, bytes(in_loss))

    # ------------------------------------------------------------------------------------------------ rendering

    def _render(self, messages: Sequence[Message], *, ask: bool = False, **globals_: Any) -> str:
        tools, turns = _with_tools(messages)
        values = {"generation_block": lambda caller: caller(), **self._variables, **globals_}
        try:
            return self._template.render(messages=turns, tools=tools, add_generation_prompt=ask, **values)
        except Exception as error:  # raise_exception of the template, or whatever it stumbles over
            what = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
            raise DataError(
                f"the chat template in {self._file} cannot render this conversation: {what}",
                hint="--template NAME, or data.template in a run spec, takes another (launcher data templates)",
            ) from error

    def _around(self, messages: Sequence[Message], place: int, *, ask: bool = False) -> tuple[str, str]:
        """Return the text before and after the content of one message."""
        mark = unused_mark(messages)
        marked = [*messages]
        marked[place] = messages[place]._replace(content=mark)
        before, *after = self._render(marked, ask=ask).split(mark)
        if len(after) != 1:
            raise self._unclear(messages, place)
        return before, after[0]

    def _marked(self, messages: Sequence[Message], answers: int) -> list[_Span]:
        """Return the spans that the template itself marks as generated."""
        mark = unused_mark(messages)
        parts = self._render(messages, generation_block=lambda caller: f"{mark}{caller()}{mark}").split(mark)
        ends = list(itertools.accumulate(map(len, parts)))
        spans = [(ends[n - 1], ends[n]) for n in range(1, len(parts), 2)]
        if len(spans) != answers:
            raise DataError(
                f"the chat template in {self._file} marks {len(spans)} texts as generated, for {answers} answers",
                hint="--template NAME takes another (launcher data templates)",
            )
        return spans

    def _answer(self, messages: Sequence[Message], place: int, text: str) -> _Span:
        """Return the span of an answer: from the prompt's end to its control token, which ends an answer."""
        if messages[place].calls:
            return self._calls(messages, place, text)
        before, after = self._around(messages, place)
        prompt = self._render(messages[:place], ask=True) if place else ""
        # A prompt may hold what the template leaves out of former turns, such as Qwen3's empty thinking.
        begin = next((len(head) for head in (prompt, before) if head and text.startswith(head)), None)
        end = len(text) - len(after)
        if begin is None or end < begin or not text.endswith(after):
            raise self._unclear(messages, place)
        closing = self._closing.match(text, end)
        return begin, closing.end() if closing else end

    def _calls(self, messages: Sequence[Message], place: int, text: str) -> _Span:
        """Return the span of an answer that calls tools, which templates write in ways of their own."""
        prompt = self._render(messages[:place], ask=True)
        closing = self._closing.search(text, len(prompt))
        spelled = self._control.search(messages[place].content + messages[place].calls)
        if not text.startswith(prompt) or closing is None or spelled:
            raise self._unclear(messages, place)
        said = text[len(prompt) : closing.start()]
        names = [call["function"]["name"] for call in json.loads(messages[place].calls)]
        if messages[place].content.strip() not in said or not all(name in said for name in names):
            raise DataError(
                f"the chat template in {self._file} leaves out what message {place + 1} of {len(messages)} says"
                " beside its calls, or a call",
                hint="--template NAME takes another (launcher data templates)",
            )
        return len(prompt), closing.end()

    def _check_tools(self, messages: Sequence[Message], text: str) -> None:
        """Raise DataError when the template leaves out a tool, or the result of one."""
        if not any(message.role in ("tools", "tool") for message in messages):
            return
        tools, _ = _with_tools(messages)
        names = [tool["function"]["name"] for tool in tools or ()]
        results = [message.content.strip() for message in messages if message.role == "tool"]
        missing = [part for part in (*names, *results) if part not in text and json.dumps(part)[1:-1] not in text]
        if missing:
            raise DataError(
                f"the chat template in {self._file} leaves out {missing[0][:40]!r}, a tool or what one answered",
                hint="take the conversations with tools out, or use a model whose template has tools",
            )

    @cached_property
    def _closing(self) -> re.Pattern[str]:
        """Return a pattern for the control token after an answer. Raises DataError when there is none."""
        _, after = self._around((Message("user", "?"), Message("assistant", "?")), 1)
        token = self._control.search(after)
        if token is None:
            raise DataError(
                f"the chat template in {self._file} ends an answer with no control token: "
                "a model trained with it would not learn to stop",
                hint="--template NAME takes another (launcher data templates)",
            )
        return re.compile(rf"\s*{re.escape(token[0])}")

    def _unclear(self, messages: Sequence[Message], place: int) -> DataError:
        return DataError(
            f"the chat template in {self._file} changes message {place + 1} of {len(messages)}, so that its text cannot"
            " be told from the rest",
            hint="thinking in an answer needs --template own; --template NAME takes another (launcher data templates)",
        )

    def _spelled(self, messages: Sequence[Message], text: str, *, ask: bool = False) -> list[_Span]:
        """Return the spans of contents that spell a control token."""
        found = []
        for place, message in enumerate(messages):
            if self._control.search(message.content):
                before, after = self._around(messages, place, ask=ask)
                if not (text.startswith(before) and text.endswith(after)):
                    raise self._unclear(messages, place)
                found.append((len(before), len(text) - len(after)))
        return found

    def _cut(self, text: str, in_loss: Sequence[_Span], literal: Sequence[_Span]) -> Iterator[Segment]:
        """Cut ``text`` at its control tokens, but for those in ``literal``, and at the borders of ``in_loss``."""
        done = 0
        for match in self._control.finditer(text):
            if any(start <= match.start() < end for start, end in literal):
                continue
            before, after = self._tokenizer.swallows(self._tokenizer.token_id(match[0]) or 0)
            head = text[done : match.start()]
            yield from _text_segments(head.rstrip() if before else head, done, in_loss)
            yield Segment(match[0], _is_in(match.start(), in_loss), control=True)
            done = match.end()
            if after:
                done += len(text[done:]) - len(text[done:].lstrip())
        yield from _text_segments(text[done:], done, in_loss)


def _with_tools(messages: Sequence[Message]) -> tuple[list[Any] | None, list[dict[str, Any]]]:
    """Return the tools of a conversation, None without any, and its turns, in the form that transformers takes."""
    tools = json.loads(messages[0].content) if messages and messages[0].role == "tools" else None
    turns: list[dict[str, Any]] = []
    for message in messages if tools is None else messages[1:]:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        turns.append({**turn, "tool_calls": json.loads(message.calls)} if message.calls else turn)
    return tools, turns


def _text_segments(text: str, offset: int, in_loss: Sequence[_Span]) -> Iterator[Segment]:
    """Yield ``text``, which begins at ``offset`` of the whole, in segments that are in the loss or not."""
    borders = (border - offset for border in itertools.chain.from_iterable(in_loss))
    cuts = sorted({0, len(text), *(border for border in borders if 0 < border < len(text))})
    for start, end in itertools.pairwise(cuts):
        yield Segment(text[start:end], _is_in(offset + start, in_loss))


def _is_in(place: int, spans: Sequence[_Span]) -> bool:
    return any(start <= place < end for start, end in spans)


def _asked(question: str | Sequence[Message], system: str | None) -> Sequence[Message]:
    messages = as_messages(question, system)
    if not messages or messages[-1].role != "user":
        raise DataError("a prompt must end with the user's turn")
    return messages


def _runs(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Yield control tokens one by one, and the texts between two of them together."""
    for control, group in itertools.groupby(segments, key=lambda segment: segment.control):
        run = list(group)
        yield from ([one] for one in run) if control else [run]


def _control(segment: Segment, tokenizer: Tokenizer) -> tuple[list[int], bytes]:
    token = tokenizer.token_id(segment.text)
    if token is None:  # the pattern has only what the template's tokenizer knows
        raise DataError(f"{tokenizer.info.path} lacks {segment.text}", hint="give the tokenizer of the chat template")
    return [token], bytes([segment.in_loss])


def _text(run: Sequence[Segment], tokenizer: Tokenizer, start: bool) -> tuple[list[int], bytes]:
    text = "".join(segment.text for segment in run)
    if len({segment.in_loss for segment in run}) == 1:
        ids = tokenizer.encode(text, start=start)
        return ids, bytes([run[0].in_loss]) * len(ids)
    of_character = b"".join(bytes([segment.in_loss]) * len(segment.text) for segment in run)
    ids, places = tokenizer.encode_with_places(text, start=start)
    return ids, bytes(of_character[place] for place in places)


# ---------------------------------------------------------------------------------------------------- environment


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """Return the environment of transformers 4.57 (utils/chat_template_utils.py), without today's date."""
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    found.filters["tojson"] = _to_json
    found.globals["raise_exception"] = _raise_exception
    return found


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _switches(name: str) -> dict[str, bool]:
    return {"enable_thinking": False} if name == OWN_WITHOUT_THINKING else {}


def _special_tokens(folder: Path) -> dict[str, str]:
    """Return the variables bos_token, eos_token, ... that transformers gives to a template."""
    found = {**json_or_empty(folder / _MAP), **json_or_empty(folder / _CONFIG)}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in found.items()}
    return {key: value for key, value in texts.items() if key.endswith("_token") and isinstance(value, str)}
