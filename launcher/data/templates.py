"""Chat templates, which render a conversation as the text of the model, in training and in inference.

A template is a Jinja2 file, ``templates/chat/NAME.jinja``. Its variables are

messages      the turns except the system's; each has ``role`` ("user" or "assistant") and ``content``
system        the text of the system turn, or none
bos, eos      the tokenizer's own tokens, to be printed where they belong
token(NAME)   a control token by name, such as token("<|im_end|>")

and it encloses the text in the loss in ``{% generation %}`` and ``{% endgeneration %}``. There is no second
template for inference: the prompt is the training text up to the beginning of the answer, so the two cannot
drift apart. Users' contents stay text, even where they spell a control token.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import jinja2
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from launcher.common import resources
from launcher.common.nearest import name_hint
from launcher.data.messages import Message, as_messages
from launcher.data.own_template import own_template
from launcher.data.segments import NONCHARACTERS, Encoded, Generation, Segment, unused_mark
from launcher.data.tokenizer import Tokenizer
from launcher.errors import DataError
from launcher.runspec.folders import OWN_TEMPLATES

DEFAULT = "vicuna"

# Marks in the rendered text: one of Unicode's noncharacters, and what follows it says what the mark means.
_LEARN, _REST, _CONTROL, _SAID = "+", "-", "c", "m"
_MOST_PATTERNS = 1000
_SAID_MARK = NONCHARACTERS[1]
_BOS, _EOS = "<s>", "</s>"


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    """A segment whose text is not known yet: texts, and indexes of the messages to insert between them."""

    parts: tuple[str | int, ...]
    in_loss: bool
    control: bool

    def filled(self, messages: Sequence[Message]) -> Segment:
        text = "".join([part if isinstance(part, str) else messages[part].content for part in self.parts])
        return Segment(text, self.in_loss, self.control)


class Template(Protocol):
    """A chat template for training and inference: one of the launcher's, or a model's own."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str:
        """Return everything that decides what it renders."""

    @property
    def takes_tools(self) -> bool:
        """Return whether it has a place for tools, calls of tools and their results."""

    def prompt(self, question: str | Sequence[Message], system: str | None = None) -> str:
        """Return the prompt for an answer as text."""

    def encode_prompt(
        self, tokenizer: Tokenizer, question: str | Sequence[Message], system: str | None = None
    ) -> list[int]:
        """Return the prompt as token ids, exactly those before the answer in training."""

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> Encoded:
        """Encode a whole conversation as token ids for training."""

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """Return the conversation in order."""

    def encode_segments(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> Encoded:
        """Encode segments of this template as token ids."""


class ChatTemplate:
    """A template of the launcher's own kind. Get one with ``get_template``."""

    takes_tools = False

    def __init__(self, name: str, source: str, template: jinja2.Template) -> None:
        self.name = name
        self.source = source
        self._template = template
        # Rendering takes as long as tokenizing five answers. Where a template prints what was said as it is,
        # its text follows from who speaks when, and only has to be rendered once for each order of roles.
        self._verbatim = prints_verbatim(source)
        self._patterns: dict[tuple[str, ...], list[_Stretch]] = {}

    def prompt(self, question: str | Sequence[Message], system: str | None = None) -> str:
        """Return the prompt for an answer as text, without a bos at its beginning.

        ``question``: one question, or turns that end with the user's. Control tokens appear by their names (bos
        and eos as "<s>" and "</s>"); ``encode_prompt`` gives their ids.
        Raises DataError when the turns do not end with the user's.
        """
        segments = self.prompt_segments(question, system)
        if segments and segments[0].control and segments[0].text in (_BOS, "<|begin_of_text|>"):
            segments = segments[1:]
        return "".join(segment.text for segment in segments)

    def encode_prompt(
        self, tokenizer: Tokenizer, question: str | Sequence[Message], system: str | None = None
    ) -> list[int]:
        """Return the prompt as token ids, bos included: exactly the ids before the answer in training."""
        return encode(self.prompt_segments(question, system), tokenizer).ids

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> Encoded:
        """Encode a whole conversation as token ids for training.

        Raises DataError when the tokenizer lacks a control token of the template.
        """
        return encode(self.segments(messages), tokenizer)

    def prompt_segments(self, question: str | Sequence[Message], system: str | None = None) -> list[Segment]:
        """Return the segments before the next answer."""
        messages = as_messages(question, system)
        if not messages or messages[-1].role != "user":
            raise DataError("a prompt must end with the user's turn")
        segments = self.segments((*messages, Message(role="assistant", content="?")))
        last = max((place for place, segment in enumerate(segments) if segment.in_loss), default=None)
        if last is None:
            raise DataError(f"template {self.name} has no {{% generation %}} around the answer")
        while last > 0 and segments[last - 1].in_loss:
            last -= 1
        return segments[:last]

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """Return the conversation in order; adjacent texts with the same loss mask form one segment."""
        if not self._verbatim:
            mark = unused_mark(messages)
            return list(_joined(_parse(self._render(messages, mark), mark)))
        return [segment for stretch in self._pattern(messages) if (segment := stretch.filled(messages)).text]

    def encode_segments(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> Encoded:
        """Encode segments as token ids, each by itself."""
        return encode(segments, tokenizer)

    def _pattern(self, messages: Sequence[Message]) -> list[_Stretch]:
        roles = tuple([message.role if message.in_loss else f"-{message.role}" for message in messages])
        pattern = self._patterns.get(roles)
        if pattern is None:
            mark = NONCHARACTERS[0]
            names = [message._replace(content=f"{mark}{_SAID}{n}{mark}") for n, message in enumerate(messages)]
            pattern = list(_stretches(self._render(names, mark), mark))
            if len(self._patterns) >= _MOST_PATTERNS:
                self._patterns.clear()
            self._patterns[roles] = pattern
        return pattern

    def _render(self, messages: Sequence[Message], mark: str) -> str:
        def token(name: str) -> str:
            return f"{mark}{_CONTROL}{name}{mark}"

        # Answer by answer: a template has one generation block for each.
        in_loss = [message.in_loss for message in messages if message.role == "assistant"]
        blocks: list[bool] = []

        def learn(caller: Callable[[], str]) -> str:
            blocks.append(len(blocks) >= len(in_loss) or in_loss[len(blocks)])
            if blocks[-1]:
                return f"{mark}{_LEARN}{mark}{caller()}{mark}{_REST}{mark}"
            # Nothing in the loss before and after it: tokenized by itself, as in training and when it is a prompt.
            apart = f"{mark}{_LEARN}{mark}{mark}{_REST}{mark}"
            return f"{apart}{caller()}{apart}"

        system, turns = _without_system(messages)
        try:
            text = self._template.render(
                messages=turns, system=system, bos=token(_BOS), eos=token(_EOS), token=token, generation_block=learn
            )
        except Exception as error:  # a user's template may divide by zero, add a text to a number, never end ...
            what = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
            raise DataError(f"template {self.name} cannot render this conversation: {what}") from error
        if not all(in_loss) and len(blocks) != len(in_loss):
            raise DataError(
                f"template {self.name} has not one {{% generation %}} an answer, and a weight of 0 leaves one out",
                hint="give each answer its own, or leave the weights out",
            )
        return text


def encode(segments: Sequence[Segment], tokenizer: Tokenizer) -> Encoded:
    """Encode segments as token ids. Each is encoded by itself, so the loss mask is exact by construction."""
    ids: list[int] = []
    in_loss = bytearray()
    start = True
    for segment in segments:
        new = [_control_id(segment.text, tokenizer)] if segment.control else tokenizer.encode(segment.text, start=start)
        ids += new
        in_loss += (b"\1" if segment.in_loss else b"\0") * len(new)
        start = segment.control and tokenizer.starts_after_control
    return Encoded(ids, bytes(in_loss))


def get_template(name: str = DEFAULT, tokenizer: Path | None = None) -> Template:
    """Return the template ``name``; one in the working folder (templates/chat/NAME.jinja) takes precedence.

    "own" and "own-no-thinking" are the chat template beside ``tokenizer``.
    Raises DataError when there is none of that name, or when it is not valid Jinja2.
    """
    if name in OWN_TEMPLATES:
        return own_template(name, tokenizer)
    path = resources.find("templates", f"chat/{name}.jinja")
    if path is None:
        names = (*template_names(), *OWN_TEMPLATES)
        raise DataError(f"no chat template {name!r}", hint=name_hint(name, names, f"there are {', '.join(names)}"))
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", hint="a template is UTF-8 text") from error
    return _load(name, path, source)


def template_names() -> list[str]:
    """Return the names that ``get_template`` knows, sorted."""
    files = itertools.chain.from_iterable(
        (folder / "chat").glob("*.jinja") for folder in resources.search_path("templates")
    )
    return sorted({file.stem for file in files})


@lru_cache(maxsize=32)
def _load(name: str, path: Path, source: str) -> ChatTemplate:
    try:
        return ChatTemplate(name, source, _environment().from_string(source))
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"{path}:{error.lineno}: {error.message}") from error


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        extensions=[Generation], undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _without_system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    if messages and messages[0].role == "system":
        return messages[0].content, messages[1:]
    return None, messages


def _parse(text: str, mark: str) -> Iterator[Segment]:
    in_loss = False
    # Marks stand in pairs: text, mark, text, mark, ...
    for place, part in enumerate(text.split(mark)):
        if place % 2 == 0:
            yield Segment(text=part, in_loss=in_loss)
        elif part[0] == _CONTROL:
            yield Segment(text=part[1:], in_loss=in_loss, control=True)
        elif part[0] == _SAID:
            yield Segment(text=f"{_SAID_MARK}{part[1:]}", in_loss=in_loss)
        else:
            in_loss = part == _LEARN


def _joined(segments: Iterator[Segment]) -> Iterator[Segment]:
    for (in_loss, control), group in itertools.groupby(segments, key=lambda part: part[1:]):
        if control:
            yield from group
        elif text := "".join(part.text for part in group):
            yield Segment(text=text, in_loss=in_loss)


def _stretches(text: str, mark: str) -> Iterator[_Stretch]:
    """Join as ``_joined`` does, in a text that was rendered with placeholders instead of contents."""
    for (in_loss, control), group in itertools.groupby(_parse(text, mark), key=lambda part: part[1:]):
        if control:
            yield from (_Stretch(parts=(part.text,), in_loss=in_loss, control=True) for part in group)
        else:
            parts = tuple([_said(part.text) for part in group if part.text])
            yield _Stretch(parts=parts, in_loss=in_loss, control=False)


def _said(text: str) -> str | int:
    return int(text[1:]) if text.startswith(_SAID_MARK) else text


def prints_verbatim(source: str) -> bool:
    """Return whether the template prints contents unchanged and nothing else in it depends on them.

    That is so when ``messages`` is only looped over, of a message only ``role`` and ``content`` are used,
    ``content`` only as the whole of a printed expression, and ``system`` only so or in ``system is none``. In
    doubt, return False.
    """
    tree = _environment().parse(source)
    nodes = [tree, *tree.find_all(jinja2.nodes.Node)]
    parents = {id(child): node for node in nodes for child in node.iter_child_nodes()}
    targets = [node.target for node in tree.find_all(jinja2.nodes.For)]
    loops = {target.name for target in targets if isinstance(target, jinja2.nodes.Name)}
    names = (node for node in tree.find_all(jinja2.nodes.Name) if node.ctx == "load")
    attributes = tree.find_all(jinja2.nodes.Getattr)
    return all(_harmless_name(node, parents[id(node)], loops) for node in names) and all(
        node.attr != "content" or isinstance(parents[id(node)], jinja2.nodes.Output) for node in attributes
    )


def _harmless_name(node: jinja2.nodes.Name, parent: jinja2.nodes.Node, loops: set[str]) -> bool:
    if node.name == "messages":
        return isinstance(parent, jinja2.nodes.For) and parent.iter is node
    if node.name == "system":
        is_test = isinstance(parent, jinja2.nodes.Test) and parent.name == "none"
        return is_test or isinstance(parent, jinja2.nodes.Output)
    if node.name in loops:
        return isinstance(parent, jinja2.nodes.Getattr) and parent.attr in ("role", "content")
    return True


def _control_id(name: str, tokenizer: Tokenizer) -> int:
    named = {_BOS: tokenizer.bos_id, _EOS: tokenizer.eos_id}
    found: int | None = named[name] if name in named else tokenizer.token_id(name)
    if found is None:
        raise DataError(
            f"the template needs the token {name}, which {tokenizer.info.path} does not have",
            hint=f"use the tokenizer that the template was made for, or another template{_fitting(tokenizer)}",
        )
    return found


# A control token that tells which of our templates a tokenizer was made for.
_MADE_FOR = {"<|im_start|>": "chatml", "<|start_header_id|>": "llama3"}


def _fitting(tokenizer: Tokenizer) -> str:
    found = next((template for token, template in _MADE_FOR.items() if tokenizer.token_id(token) is not None), None)
    return f": --set data.template={found} (--template {found} of launcher data preprocess)" if found else ""
