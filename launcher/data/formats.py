"""Convert records of common dataset formats to conversations.

belle      BELLE School Math: {"instruction": "题目：...", "input": "", "output": "..."}
alpaca     Stanford Alpaca: {"instruction": ..., "input": ..., "output": ...}; "system", "history": [[q, a], ...]
sharegpt   ShareGPT and FastChat: {"id": ..., "conversations": [{"from": "human", "value": ...}, ...]}; "system"
openai     OpenAI: {"messages": [{"role": "user", "content": ...}, ...]}; "weight": 0: not in the loss

Each record is examined by itself, so a file may mix formats. A record with parts that cannot be kept, such as tool
calls, is rejected: without them it would train something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
_SHOWN_KEYS = 6
_TOOLS = ("tools", "functions", "tool_calls", "function_call")


class RecordError(Exception):
    """The reason why a record cannot be used. It never leaves this package."""


def to_conversation(value: Any, number: int) -> tuple[str, Conversation]:
    """Return the kind of the record ``value`` and its conversation; ``number`` becomes its id where it has none.

    Raises RecordError.
    """
    if not isinstance(value, dict):
        raise RecordError(f"a JSON object is expected, this is {_type_name(value)}")
    _refuse_tools(value)
    if "conversations" in value:
        kind, messages = "sharegpt", _with_system(value, _turns(value["conversations"], "from", "value"))
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


# Of each kind: the key of the turns, the keys of a record that are read, and those of a turn.
_INSTRUCTION = ("", {"id", "instruction", "input", "output", "history", "system"}, set[str]())
_READ = {
    "belle": _INSTRUCTION,
    "alpaca": _INSTRUCTION,
    "sharegpt": ("conversations", {"id", "conversations", "system"}, {"from", "value", "weight"}),
    "openai": ("messages", {"id", "messages"}, {"role", "content", "weight"}),
}
_EMPTY: tuple[Any, ...] = (None, "", [], {})


def unread_keys(kind: str, value: dict[str, Any]) -> set[str]:
    """Return the keys of a good record that say something and become no part of its conversation."""
    turns, known, known_in_turn = _READ[kind]
    found = {key for key, item in value.items() if key not in known and item not in _EMPTY}
    for turn in value[turns] if turns else ():
        if not turn.keys() <= known_in_turn:
            found |= {f"{turns}[].{key}" for key in turn.keys() - known_in_turn if turn[key] not in _EMPTY}
    return found


def unread_text(unread: Mapping[str, int]) -> str:
    """Return what was not read, the commonest keys first."""
    keys = sorted(unread, key=lambda key: -unread[key])
    shown = ", ".join(f"{key} (in {unread[key]:,} records)" for key in keys[:_SHOWN_KEYS])
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return f"not read: {shown}{more}. A system text is read from system, or from a turn of that role"


def to_text(value: Any) -> str:
    """Return the text of the record {"text": ...}. Raises RecordError."""
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
    messages: tuple[Message, ...] = (Message("user", question), Message("assistant", answer))
    if value.get("history") or value.get("system"):
        messages = _with_system(value, (*_history(value.get("history") or []), *messages))
        _check(messages)
    return kind, messages


def _history(pairs: Any) -> Iterator[Message]:
    """Yield the turns before the question, in LLaMA-Factory's form: pairs of question and answer."""
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RecordError("history is no list of pairs of question and answer")
        yield from (Message("user", pair[0]), Message("assistant", pair[1]))


def _with_system(value: dict[str, Any], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return ``messages`` preceded by the record's "system" text, if any."""
    system = value.get("system")
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise RecordError(f"system is {_type_name(system)}, not a string")
    if messages[0].role != "system":
        return (Message("system", system), *messages)
    if messages[0].content != system:
        raise RecordError("there is a system beside the turns and another one among them")
    return messages


def _refuse_tools(value: dict[str, Any]) -> None:
    found = [key for key in _TOOLS if value.get(key)]
    if found:
        raise RecordError(f"{found[0]}: calls of tools cannot be kept in a template")


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
    _refuse_tools(turn)
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise RecordError(f"weight is {_short(weight)}; known are 0 and 1")
    content = turn.get(text_key)
    if isinstance(content, list):
        content = _joined_parts(content)
    if not isinstance(content, str):
        raise RecordError(f"{text_key} is {_type_name(content)}, not a string")
    return Message(ROLES[role], content, weight is None or weight == 1)


def _joined_parts(parts: list[Any]) -> str:
    """Join OpenAI's content parts, which must all be text."""
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise RecordError("content holds parts that are not text")
    return "".join(part["text"] for part in parts)


def _check(messages: tuple[Message, ...]) -> None:
    turns = messages[1:] if messages[0].role == "system" else messages
    for place, (role, content, _) in enumerate(turns):
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
