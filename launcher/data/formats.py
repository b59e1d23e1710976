"""Records of the datasets in use, to conversations.

belle      BELLE School Math: {"instruction": "题目：...", "input": "", "output": "..."}
alpaca     Stanford Alpaca: {"instruction": ..., "input": ..., "output": ...}
sharegpt   ShareGPT and FastChat: {"id": ..., "conversations": [{"from": "human", "value": ...}, ...]}
openai     OpenAI: {"messages": [{"role": "user", "content": ...}, ...]}

Every record is looked at by itself, so that a file may mix them.
"""

from __future__ import annotations

from typing import Any

from launcher.data.messages import ROLES, Conversation, Message

TITLES = {
    "belle": "BELLE School Math",
    "alpaca": "Alpaca",
    "sharegpt": "ShareGPT",
    "openai": "OpenAI messages",
    "text": "text",
}
_BELLE_START = "题目："


class RecordError(Exception):
    """Why a record cannot be used. It never leaves this package."""


def to_conversation(value: Any, number: int) -> tuple[str, Conversation]:
    """The kind of the record ``value`` and its conversation; ``number`` becomes its id where it has none.

    Raises RecordError.
    """
    if not isinstance(value, dict):
        raise RecordError(f"a JSON object is expected, this is {_type_name(value)}")
    if "conversations" in value:
        kind, messages = "sharegpt", _turns(value["conversations"], "from", "value")
    elif "messages" in value:
        kind, messages = "openai", _turns(value["messages"], "role", "content")
    elif "instruction" in value and "output" in value:
        kind, messages = _instruction(value)
    else:
        raise RecordError(f"neither a question with its answer nor a conversation: keys {_keys(value)}")
    found = value.get("id")
    if found is None or found == "" or not isinstance(found, (str, int)):
        found = f"bellemath{number}" if kind == "belle" else f"{kind}{number}"
    return kind, Conversation(str(found), messages)


def to_text(value: Any) -> str:
    """The text of the record {"text": ...}. Raises RecordError."""
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise RecordError('no {"text": "..."}')
    text: str = value["text"]
    if not text.strip():
        raise RecordError("the text is empty")
    return text


def _instruction(value: dict[str, Any]) -> tuple[str, tuple[Message, ...]]:
    question, given, answer = value["instruction"], value.get("input") or "", value["output"]
    if not (isinstance(question, str) and isinstance(given, str) and isinstance(answer, str)):
        raise RecordError("instruction, input and output are not all strings")
    if not question or question.isspace():
        raise RecordError("the question is empty")
    if not answer or answer.isspace():
        raise RecordError("the answer is empty")
    kind = "belle" if question.startswith(_BELLE_START) and not given else "alpaca"
    if given and not given.isspace():
        # As FastChat's fastchat/data/convert_alpaca.py joins them.
        question = f"{question}\nInput:\n{given}"
    return kind, (Message("user", question), Message("assistant", answer))


def _turns(turns: Any, role_key: str, text_key: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise RecordError("the conversation holds no list of turns")
    messages = tuple([_turn(turn, role_key, text_key) for turn in turns])
    _check(messages)
    return messages


def _turn(turn: Any, role_key: str, text_key: str) -> Message:
    if not isinstance(turn, dict):
        raise RecordError(f"a turn is {_type_name(turn)}, not an object")
    role = turn.get(role_key)
    if not isinstance(role, str) or role not in ROLES:
        raise RecordError(f"{role_key} is {_short(role)}; known are {', '.join(ROLES)}")
    content = turn.get(text_key)
    if isinstance(content, list):
        content = _joined_parts(content)
    if not isinstance(content, str):
        raise RecordError(f"{text_key} is {_type_name(content)}, not a string")
    return Message(ROLES[role], content)


def _joined_parts(parts: list[Any]) -> str:
    """OpenAI's content in parts, where all of them are text."""
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise RecordError("content holds parts that are not text")
    return "".join(part["text"] for part in parts)


def _check(messages: tuple[Message, ...]) -> None:
    turns = messages[1:] if messages[0].role == "system" else messages
    for place, (role, content) in enumerate(turns):
        expected = "assistant" if place % 2 else "user"
        if role != expected:
            raise RecordError(f"turn {place + 1} is the {role}'s, but it is the {expected}'s turn")
        if not content or content.isspace():
            raise RecordError("an answer is empty" if place % 2 else "a question is empty")
    if len(turns) < 2:
        raise RecordError("no answer to learn")


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."


def _keys(value: dict[str, Any]) -> str:
    return ", ".join(list(value)[:6]) or "none"
