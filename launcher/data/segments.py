"""Segments of a rendered conversation, and what two kinds of chat templates share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from launcher.data.messages import Message
from launcher.errors import DataError

# Unicode's noncharacters, of which one that no message holds marks places in a rendered text.
NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


# Named tuples, because millions are made.
class Segment(NamedTuple):
    """A segment of a conversation: text or the name of one control token, and whether it is in the loss."""

    text: str
    in_loss: bool
    control: bool = False


class Encoded(NamedTuple):
    """Token ids, and for each a byte: 1 if it is in the loss, else 0; both of the same length."""

    ids: list[int]
    in_loss: bytes


class Generation(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``, Hugging Face's tag: calls ``generation_block`` with the text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = jinja2.nodes.Call(jinja2.nodes.Name("generation_block", "load"), [], [], None, None)
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)


def unused_mark(messages: Sequence[Message]) -> str:
    """Return a character that no message holds. Raises DataError when they hold all noncharacters of Unicode."""
    for character in NONCHARACTERS:
        if not any(character in message.content for message in messages):
            return character
    raise DataError("the conversation holds all of Unicode's noncharacters U+FDD0 to U+FDEF")
