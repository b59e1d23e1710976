"""The turns of a conversation, in the forms of ShareGPT and OpenAI, calls of tools included.

Tools, calls and results become messages too: one of the role "tools" before all others, whose content is the JSON list
of the tools; ``calls`` of an answer, the JSON list of what it calls; and results, of the role "tool".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from launcher.data.messages import ROLES, Message

TOOL_ROLES = {"function_call": "call", "tool_call": "call", "observation": "tool", "tool": "tool", "function": "tool"}
TOOL_KEYS = ("tools", "functions", "tool_calls", "function_call")
_EXPECTED = {"user": ("assistant",), "assistant": ("user",), "tool": ("tool", "assistant"), "": ("user",)}


class RecordError(Exception):
    """The reason why a record cannot be used, and what to do. It never leaves this package."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


def turns_of(value: dict[str, Any], key: str, no_tools: str) -> tuple[Message, ...]:
    """Return the turns in ``value[key]`` with the system's text and the tools beside them. Raises RecordError."""
    turns = _from_json(value[key])
    if not isinstance(turns, list) or not turns:
        raise RecordError(f"{key}: the conversation holds no list of turns")
    first = turns[0]
    role_key, text_key = ("role", "content") if isinstance(first, dict) and "role" in first else ("from", "value")
    messages = tuple([_turn(turn, key, role_key, text_key) for turn in turns])
    messages = with_beside(value, messages)
    check_order(messages, no_tools)
    return messages


def _turn(turn: Any, key: str, role_key: str, text_key: str) -> Message:
    if not isinstance(turn, dict):
        raise RecordError(f"{key}: a turn is {type_name(turn)}, not an object")
    role = turn.get(role_key)
    if role is None:
        raise RecordError(f"{key}: a turn has neither role nor from: keys {', '.join(map(str, turn)) or 'none'}")
    if not isinstance(role, str) or (role not in ROLES and role not in TOOL_ROLES):
        raise RecordError(f"{key}: {role_key} is {short(role)}; known are {', '.join((*ROLES, *TOOL_ROLES))}")
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise RecordError(f"{key}: weight is {short(weight)}; known are 0 and 1")
    message = _message(role, turn, turn.get(text_key), f"{key}: {text_key}")
    return message._replace(in_loss=False) if weight == 0 else message


def _message(role: str, turn: dict[str, Any], content: Any, where: str) -> Message:
    calls = _calls(turn)
    if isinstance(content, list):
        content = _joined_parts(content, where)
    content = as_text(content)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise RecordError(f"{where} is {type_name(content)}, not a string")
    if role in ROLES:
        return Message(ROLES[role], content, calls=calls)
    if TOOL_ROLES[role] == "call":
        return Message("assistant", "", calls=_written(_listed(content, role), role))
    return Message("tool", content)


def _joined_parts(parts: list[Any], where: str) -> str:
    """Join OpenAI's content parts, which must all be text."""
    for part in parts:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        raise RecordError(f"{where} holds parts that are not text{f': {short(kind)}' if kind else ''}")
    return "".join(part["text"] for part in parts)


# ---------------------------------------------------------------------------------------------- system, tools


def with_beside(value: dict[str, Any], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return ``messages`` preceded by the record's tools and system text, if any. Raises RecordError."""
    messages = _with_system(value, messages)
    tools = _tools(value)
    return (Message("tools", tools), *messages) if tools else messages


def _with_system(value: dict[str, Any], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    system = value.get("system")
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise RecordError(f"system is {type_name(system)}, not a string")
    if messages[0].role != "system":
        return (Message("system", system), *messages)
    if messages[0].content != system:
        raise RecordError("there is a system beside the turns and another one among them")
    return messages


def _tools(value: dict[str, Any]) -> str:
    """Return the JSON list of a record's tools, "" without any. Raises RecordError."""
    found = value.get("tools") or value.get("functions")
    if not found:
        return ""
    tools = _from_json(found)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RecordError(f"tools is {type_name(tools)}, not a list of objects")
    if not tools:
        return ""
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    if not all(
        isinstance(tool["function"], dict) and isinstance(tool["function"].get("name"), str) for tool in wrapped
    ):
        raise RecordError("tools: a tool has no name")
    return orjson.dumps(without_nulls(wrapped)).decode()


def without_nulls(value: Any) -> Any:
    """Return ``value`` without keys that are null: a table gives every key of any record to all of them."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _calls(turn: dict[str, Any]) -> str:
    """Return the JSON list of the calls of a turn in OpenAI's forms, "" without any. Raises RecordError."""
    found = turn.get("tool_calls") or turn.get("function_call")
    return _written(_listed(found, "tool_calls"), "tool_calls") if found else ""


def _listed(found: Any, key: str) -> list[Any]:
    value = _from_json(found)
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list) or not value:
        raise RecordError(f"{key} is {type_name(value)}, not a call {{name, arguments}} or a list of them")
    return value


def _written(calls: list[Any], key: str) -> str:
    return orjson.dumps([_call(call, key) for call in calls]).decode()


def _call(call: Any, key: str) -> dict[str, Any]:
    """Return one call as chat templates expect it: arguments as an object. Raises RecordError."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RecordError(f"{key}: a call is no object with the name of a function")
    arguments = _from_json(function.get("arguments") or {})
    if not isinstance(arguments, dict):
        raise RecordError(f"{key}: arguments of {function['name']} are {type_name(arguments)}, not a JSON object")
    beside = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**beside, "type": "function", "function": {"name": function["name"], "arguments": without_nulls(arguments)}}


def _from_json(value: Any) -> Any:
    """Return what a text spells in JSON, as a csv holds it; all else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def listed_json(value: Any) -> Any:
    """Return the list that ``value`` is or spells; all else as it is."""
    found = _from_json(value)
    return found if isinstance(found, list) else value


# ------------------------------------------------------------------------------------------------------ order


def check_order(messages: Sequence[Message], no_tools: str) -> None:
    """Raise RecordError unless the turns alternate, each with a text, and one of them is an answer."""
    if no_tools and (what := next(_tool_parts(messages), None)):
        raise RecordError(f"{what}: {no_tools}", hint="--template own takes them, where the model's own template does")
    turns = [message for message in messages if message.role != "tools"]
    turns = turns[1:] if turns[0].role == "system" else turns
    before = ""
    for place, message in enumerate(turns, 1):
        expected = _EXPECTED[before]
        if message.role not in expected:
            raise RecordError(f"turn {place} is the {message.role}'s, but it is the {expected[0]}'s turn")
        if not message.calls and message.role != "tool" and (not message.content or message.content.isspace()):
            what = "an answer" if message.role == "assistant" else "a question"
            raise RecordError(f"turn {place}: {what} is empty")
        before = "tool" if message.calls else message.role
    if len(turns) < 2:
        raise RecordError("no answer to learn")


def _tool_parts(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        if message.role in ("tools", "tool"):
            yield message.role
        if message.calls:
            yield "tool_calls"


# ------------------------------------------------------------------------------------------------------ words


def as_text(value: Any) -> Any:
    """Return a number as its text, as csv gives it; everything else, truth values too, as it is."""
    return repr(value) if is_number(value) else value


def is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def type_name(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"of type {type(value).__name__}")


def short(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."
