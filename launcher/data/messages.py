"""A conversation, whatever file it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# What the formats in use call the three parties. "from" of FastChat and "role" of OpenAI use different words.
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn. ``role`` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns in order, under an id that is unique in its file."""

    id: str
    messages: tuple[Message, ...]

    def record(self) -> dict[str, Any]:
        """The conversation as the reference recipe writes it: id, conversations of from and value."""
        return {"id": self.id, "conversations": [_turn(message) for message in self.messages]}


def _turn(message: Message) -> dict[str, str]:
    return {"from": "human" if message.role == "user" else message.role, "value": message.content}


def as_messages(question: str | Sequence[Message], system: str | None = None) -> tuple[Message, ...]:
    """A question, or turns, as turns; ``system`` goes first and replaces a system turn that is there."""
    turns = (Message(role="user", content=question),) if isinstance(question, str) else tuple(question)
    if system is None:
        return turns
    rest = turns[1:] if turns and turns[0].role == "system" else turns
    return (Message(role="system", content=system), *rest)
