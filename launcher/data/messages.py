"""Conversations, independent of the format of their file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

# What the formats in use call the three parties. "from" of FastChat and "role" of OpenAI use different words.
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


# Named tuples, because millions are made and a frozen dataclass takes four times as long to make.
class Message(NamedTuple):
    """One turn. ``role`` is "system", "user" or "assistant". ``in_loss``: whether an answer is in the loss.

    Conversations with tools have roles "tools" and "tool" too, and ``calls``: see ``launcher.data.turns``.
    """

    role: str
    content: str
    in_loss: bool = True
    calls: str = ""


class Conversation(NamedTuple):
    """Turns in order, under an id that is unique in its file."""

    id: str
    messages: tuple[Message, ...]

    def record(self) -> dict[str, Any]:
        """Return the conversation in the form of the reference recipe: id, conversations of from and value.

        An answer that is not in the loss also has OpenAI's weight, one that calls tools their tool_calls.
        """
        first = self.messages[0]
        tools = {"tools": first.content} if first.role == "tools" else {}
        turns = [_turn(message) for message in self.messages if message.role != "tools"]
        return {"id": self.id, **tools, "conversations": turns}


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"from": _NAMES[message.role], "value": message.content}
    if message.calls:
        turn["tool_calls"] = message.calls
    if not message.in_loss:
        turn["weight"] = 0
    return turn


_NAMES = {"user": "human", "assistant": "assistant", "system": "system", "tool": "observation"}


def as_messages(question: str | Sequence[Message], system: str | None = None) -> tuple[Message, ...]:
    """Return a question, or turns, as turns; ``system`` goes first and replaces an existing system turn."""
    turns = (Message(role="user", content=question),) if isinstance(question, str) else tuple(question)
    if system is None:
        return turns
    rest = turns[1:] if turns and turns[0].role == "system" else turns
    return (Message(role="system", content=system), *rest)
