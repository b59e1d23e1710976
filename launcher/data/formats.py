"""Tell the shape of a record from its keys, and make a conversation of it.

belle      BELLE School Math: {"instruction": "题目：...", "input": "", "output": "..."}
alpaca     Stanford Alpaca: {"instruction": ..., "input": ..., "output": ...}; "system", "history": [[q, a], ...]
sharegpt   ShareGPT, FastChat: {"id": ..., "conversations": [{"from": "human", "value": ...}, ...]}; "system", "tools"
openai     OpenAI: {"messages": [{"role": "user", "content": ...}, ...]}; "weight": 0: not in the loss; "tools"
pairs      question/answer, prompt/completion, query/response and others; "system", "history"
columns    whatever --columns says

Each record is examined by itself, so a file may mix shapes. Every text of a record becomes part of its conversation, or
is named: ``unread`` tells those that do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from launcher.data.messages import Conversation, Message
from launcher.data.reading import Reading
from launcher.data.turns import (
    RecordError,
    as_text,
    check_order,
    listed_json,
    turns_of,
    type_name,
    with_beside,
)

PLAIN = Reading()
# Of shapes of one question and one answer: the keys of both. The first that a record has both of counts.
_PAIRS = {
    "question/answer": ("question", "answer"),
    "prompt/completion": ("prompt", "completion"),
    "prompt/response": ("prompt", "response"),
    "query/response": ("query", "response"),
    "instruction/response": ("instruction", "response"),
    "input/output": ("input", "output"),
}
TITLES = {
    "belle": "BELLE School Math",
    "alpaca": "Alpaca",
    "sharegpt": "ShareGPT",
    "openai": "OpenAI messages",
    "text": "text",
    "columns": "by --columns",
    **{name: name for name in _PAIRS},
}
_BELLE_START = "题目："
_PREFERENCE = ("chosen", "rejected")
_MEDIA = ("image", "images", "pixel_values", "video", "videos", "audio", "audios")
_REFUSED = frozenset((*_PREFERENCE, *_MEDIA))
_SHOWN_KEYS = 6


def to_conversation(value: Any, number: int | str, reading: Reading = PLAIN) -> tuple[str, Conversation]:
    """Return the shape of the record ``value`` and its conversation; ``number`` becomes its id where it has none.

    Raises RecordError.
    """
    if not isinstance(value, dict):
        raise RecordError(f"a JSON object is expected, this is {type_name(value)}")
    if reading.columns:
        value = _by_columns(value, reading)
    elif not _REFUSED.isdisjoint(value):
        _refuse(value, reading)
    kind, messages = _messages(value, reading)
    found = value.get("id")
    if found is None or found == "" or not isinstance(found, (str, int)):
        found = f"bellemath{number}" if kind == "belle" else f"{kind}{number}"
    return "columns" if reading.columns else kind, Conversation(str(found), messages)


def _messages(value: dict[str, Any], reading: Reading) -> tuple[str, tuple[Message, ...]]:
    if "conversations" in value:
        return "sharegpt", turns_of(value, "conversations", reading.no_tools)
    if "messages" in value:
        return "openai", turns_of(value, "messages", reading.no_tools)
    if "instruction" in value and "output" in value:
        return _instruction(value, reading)
    for kind, (asked, answered) in _PAIRS.items():
        if asked in value and answered in value:
            question, answer = _text(value, asked, "question", reading), _text(value, answered, "answer", reading)
            return kind, _pair(value, question, answer, reading)
    raise _unknown(value)


def _unknown(value: dict[str, Any]) -> RecordError:
    if isinstance(value.get("text"), str):
        return RecordError(
            "this is a text: keys " + _keys(value),
            hint="launcher data preprocess --type text makes rows of texts, data.type: text in a run spec",
        )
    if wrapped := [key for key, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)]:
        return RecordError(
            f"neither a question with its answer nor a conversation: keys {_keys(value)}",
            hint=f"if its records are in the array {wrapped[0]!r}: jq '.\"{wrapped[0]}\"' FILE > records.json takes "
            f"them out; if these are the turns of a conversation: --columns messages={wrapped[0]}",
        )
    return RecordError(
        f"neither a question with its answer nor a conversation: keys {_keys(value)}",
        hint="say which field is what: --columns question=FIELD,answer=FIELD (system, history, input, messages, text)",
    )


def _by_columns(value: dict[str, Any], reading: Reading) -> dict[str, Any]:
    """Return the fields that --columns names, by the names of the parts. Raises RecordError for one that lacks."""
    for part in ("question", "answer", "messages", "text"):
        column = reading.columns.get(part)
        if column is not None and column not in value:
            raise RecordError(f"no field {column}: keys {_keys(value)}", hint="look at --columns")
    found = {part: value[column] for part, column in {"id": "id", **reading.columns}.items() if column in value}
    if {"question", "input"} <= found.keys():
        # As of Alpaca, whose question it belongs to.
        found |= {"instruction": found.pop("question", None), "output": found.pop("answer", None)}
    return found


def _refuse(value: dict[str, Any], reading: Reading) -> None:
    """Raise RecordError for preference data, and for pictures, sounds and films, unless they are ignored."""
    found = [key for key in value if key in _REFUSED and not is_empty(value[key]) and not reading.ignores(key)]
    if not found:
        return
    if found[0] in _PREFERENCE:
        raise RecordError(
            f"{', '.join(found)}: preference data, and training here takes one answer to a question",
            hint="to train on the chosen ones: --columns question=FIELD,answer=chosen --ignore rejected",
        )
    raise RecordError(
        f"{', '.join(found)}: models of text read no images, films or sounds",
        hint=f"--ignore {','.join(found)} keeps the text alone",
    )


# -------------------------------------------------------------------------------------------------- text, pairs


def to_text(value: Any, reading: Reading = PLAIN) -> str:
    """Return the text of the record {"text": ...}. Raises RecordError."""
    key = reading.columns.get("text", "text")
    found = as_text(value.get(key)) if isinstance(value, dict) else None
    if not isinstance(found, str):
        hint = "" if reading.columns else "--columns text=FIELD says which field is the text"
        raise RecordError(f'no {{"{key}": "..."}}', hint=hint)
    if not found.strip():
        raise RecordError(f"{key}: the text is empty")
    return found


def _text(value: dict[str, Any], key: str, what: str, reading: Reading) -> str:
    text = as_text(value[key])
    if isinstance(text, str) and text and not text.isspace():
        return text
    column = reading.columns.get(what, key)
    if not isinstance(text, str):
        raise RecordError(f"{column}: the {what} is {type_name(text)}, not a string")
    raise RecordError(f"{column}: the {what} is empty")


def _instruction(value: dict[str, Any], reading: Reading) -> tuple[str, tuple[Message, ...]]:
    given = as_text(value.get("input"))
    given = "" if given is None else given
    question, answer = _text(value, "instruction", "question", reading), _text(value, "output", "answer", reading)
    if not isinstance(given, str):
        raise RecordError(f"input is {type_name(given)}, not a string")
    kind = "belle" if question.startswith(_BELLE_START) and not given else "alpaca"
    if given and not given.isspace():
        # As FastChat's fastchat/data/convert_alpaca.py joins them.
        question = f"{question}\nInput:\n{given}"
    return kind, _pair(value, question, answer, reading)


def _pair(value: dict[str, Any], question: str, answer: str, reading: Reading) -> tuple[Message, ...]:
    messages: tuple[Message, ...] = (Message("user", question), Message("assistant", answer))
    if value.get("history") or value.get("system") or value.get("tools"):
        messages = with_beside(value, (*_history(value.get("history") or []), *messages))
        check_order(messages, reading.no_tools)
    return messages


def _history(given: Any) -> Iterator[Message]:
    """Yield the turns before the question, in LLaMA-Factory's form: pairs of question and answer."""
    pairs = listed_json(given)
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RecordError("history is no list of pairs of question and answer")
        yield from (Message("user", pair[0]), Message("assistant", pair[1]))


# ------------------------------------------------------------------------------------------------ what is not read


class _Shape(NamedTuple):
    """The key of the turns of a shape, the keys of a record that are read, and those of a turn."""

    turns: str
    known: frozenset[str]
    known_in_turn: frozenset[str] = frozenset()


_BESIDE = ("id", "system", "history", "tools")
_IN_TURN = frozenset(("from", "value", "role", "content", "weight", "tool_calls", "function_call"))
# Of an OpenAI turn of role tool: which call it answers. The order of turns says it too.
_LINKS = frozenset(("tool_call_id",))
_SHAPES = {
    "belle": _Shape("", frozenset(("instruction", "input", "output", *_BESIDE))),
    "alpaca": _Shape("", frozenset(("instruction", "input", "output", *_BESIDE))),
    "sharegpt": _Shape("conversations", frozenset(("id", "conversations", "system", "tools", "functions")), _IN_TURN),
    "openai": _Shape("messages", frozenset(("id", "messages", "system", "tools", "functions")), _IN_TURN | _LINKS),
    "text": _Shape("", frozenset(("id", "text"))),
    **{kind: _Shape("", frozenset((*keys, *_BESIDE))) for kind, keys in _PAIRS.items()},
}


def _shape(kind: str, reading: Reading) -> _Shape:
    if not reading.columns:
        return _SHAPES[kind]
    known = frozenset((*reading.columns.values(), reading.columns.get("id", "id")))
    return _Shape(reading.columns.get("messages", ""), known, _IN_TURN | _LINKS)


def read_keys(kind: str, keys: Sequence[str], reading: Reading) -> list[str]:
    """Return those of ``keys`` that are read of a record of ``kind``."""
    known = _shape(kind, reading).known
    return [key for key in keys if key in known]


def unread(kind: str, value: dict[str, Any], reading: Reading = PLAIN) -> Iterator[tuple[str, Any]]:
    """Yield key and value of what a good record says and what becomes no part of what is trained on."""
    turns, known, known_in_turn = _shape(kind, reading)
    if not known >= value.keys():
        yield from ((key, item) for key, item in value.items() if key not in known and not is_empty(item))
    found = listed_json(value[turns]) if turns else ()
    for turn in found:
        if not turn.keys() <= known_in_turn:
            more = ((key, item) for key, item in turn.items() if key not in known_in_turn and not is_empty(item))
            yield from ((f"{turns}[].{key}", item) for key, item in more)


def is_empty(value: Any) -> bool:
    return value is None or value in ("", [], {})


_LETTER = re.compile(r"[^\W\d_]")


def holds_text(value: Any) -> bool:
    """Return whether a letter is in ``value``, which numbers, dates and empty lists have none of."""
    if isinstance(value, str):
        return _LETTER.search(value) is not None
    if isinstance(value, dict):
        return any(holds_text(item) for item in value.values())
    return isinstance(value, list) and any(holds_text(item) for item in value)


def _keys(value: dict[str, Any]) -> str:
    keys = [str(key) for key in value]
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return (", ".join(keys[:_SHOWN_KEYS]) or "none") + more
