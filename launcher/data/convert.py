"""Records of BELLE School Math, or conversations, to conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.data import outputs
from launcher.data.messages import ROLES, Conversation, Message
from launcher.data.records import Record, read_records
from launcher.errors import DataError


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of ``path``, converted where it holds questions and answers.

    Raises DataError, naming file and line, for a record that is neither.
    """
    for number, record in enumerate(read_records(path)):
        yield _conversation(path, number, record)


def convert(source: Path, target: Path, *, force: bool) -> tuple[int, bool]:
    """Write ``source`` as a JSON array of conversations; how many, and whether ``target`` changed.

    Raises DataError for input that is not readable or an output that exists and would change.
    """
    with outputs.scratch(target) as folder:
        built = folder / target.name
        with built.open("w", encoding="utf-8") as out:
            count = _write_array(out, read_conversations(source))
        return count, outputs.put(built, target, force=force)


def _write_array(out: Any, conversations: Iterator[Conversation]) -> int:
    count = 0
    for conversation in conversations:
        out.write("[\n" if count == 0 else ",\n")
        out.write(json.dumps(conversation.record(), ensure_ascii=False))
        count += 1
    out.write("\n]\n" if count else "[]\n")
    return count


def _conversation(path: Path, number: int, record: Record) -> Conversation:
    value = record.value
    if isinstance(value, dict) and isinstance(value.get("conversations"), list):
        turns = value["conversations"]
        if all(_is_turn(turn) for turn in turns):
            messages = tuple(Message(role=ROLES[turn["from"]], content=turn["value"]) for turn in turns)
            return Conversation(id=str(value.get("id", number)), messages=messages)
    elif isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("instruction", "output")):
        question = "\n".join(part for part in (value["instruction"], value.get("input")) if part)
        messages = (
            Message(role="user", content=question),
            Message(role="assistant", content=value["output"]),
        )
        return Conversation(id=f"bellemath{number}", messages=messages)
    raise DataError(
        f"{path}:{record.line}: neither a question with its answer nor a conversation",
        hint='expected {"instruction": ..., "input": "", "output": ...}'
        ' or {"id": ..., "conversations": [{"from": ..., "value": ...}]}',
    )


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("from") in ROLES and isinstance(turn.get("value"), str)
