"""Questions from the command line and from files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher.common.nearest import path_hint
from launcher.data.messages import ROLES, Message, as_messages
from launcher.errors import DataError, SpecError
from launcher.inference.session import Question

_SHOWN_PROBLEMS = 5
# Keys that other tools take with each question; here they are of the whole call, and never ignored.
_PER_CALL = ("temperature", "top_p", "top_k", "max_tokens", "max_new_tokens", "seed", "stop", "repetition_penalty")


def collect(
    prompts: Sequence[str], file: str | None, *, system: str | None = None, raw: bool = False
) -> list[Question]:
    """Collect questions: first those given one by one, then those of ``file`` ("-" is stdin).

    A .jsonl file has one object per line, a .json file an array of objects: "prompt" (optionally with "system"), or
    "messages" of role and content, and an optional "id"; any other file has one question per line, blank lines skipped.
    Without an id, a question's id is its number.
    Raises SpecError when there is no question or one is empty, DataError when the file is unreadable or malformed.
    """
    if any(not prompt.strip() for prompt in prompts):
        raise SpecError("a --prompt is empty", hint='launcher infer JOB --prompt "..."')
    if raw and system:
        raise SpecError("--system needs the prompt template, which --raw leaves out", hint="leave one of them out")
    asked: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts]
    if file is not None:
        asked += _read(file)
    if not asked:
        raise SpecError("nothing to ask", hint='give --prompt "..." or --file questions.txt')
    questions = [_question(record, str(number), system, raw) for number, record in enumerate(asked, 1)]
    _check_ids(questions)
    return questions


def _question(record: dict[str, Any], number: str, system: str | None, raw: bool) -> Question:
    name = str(record.get("id", number))
    turns: Any = record["prompt"] if "prompt" in record else record["turns"]
    system = record.get("system", system)
    if raw and system:
        raise DataError(f"question {name} has a system text, which --raw leaves out", hint="leave one of them out")
    if raw:
        return Question(id=name, text=turns if isinstance(turns, str) else turns[-1].content)
    return Question(id=name, messages=as_messages(turns, system))


def _check_ids(questions: Iterable[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"two questions have the id {question.id!r}", hint="give each its own")
        seen.add(question.id)


# ------------------------------------------------------------------------------------------------ files


def _read(file: str) -> list[dict[str, Any]]:
    name = "stdin" if file == "-" else file
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        hint = path_hint(Path(file), "give a UTF-8 text file, one question a line")
        raise DataError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}", hint=hint) from error
    whole = _whole(text) if file.endswith(".json") else None
    if whole is not None:
        return list(_parse(name, [(f"record {number}", json.dumps(one)) for number, one in enumerate(whole, 1)]))
    lines = [(f"line {number}", line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    is_json = file.endswith((".jsonl", ".json")) or (file == "-" and bool(lines) and lines[0][1].startswith("{"))
    return list(_parse(name, lines)) if is_json else [{"prompt": line} for _, line in lines]


def _whole(text: str) -> list[Any] | None:
    """Return the records of one JSON value, an array or a single object; None for JSON Lines."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else [found]


def _parse(name: str, lines: Iterable[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    problems = []
    for place, line in lines:
        try:
            yield parse_record(json.loads(line))
        except (ValueError, RecursionError) as error:
            problems.append(f"{place}: {error}")
    if problems:
        more = [f"and {len(problems) - _SHOWN_PROBLEMS} more"] if len(problems) > _SHOWN_PROBLEMS else []
        raise DataError(
            "\n".join([f"{name} cannot be asked:", *(f"  {line}" for line in [*problems[:_SHOWN_PROBLEMS], *more])]),
            hint='give {"id": "1", "prompt": "..."} a line, or "messages" in place of "prompt"',
        )


def parse_record(record: Any) -> dict[str, Any]:
    """Normalize ``record`` to "prompt" or "turns". Raises ValueError when it holds no question."""
    if not isinstance(record, dict):
        raise ValueError("it is no object")
    asked_for = [key for key in _PER_CALL if key in record]
    if asked_for:
        raise ValueError(f"{', '.join(asked_for)}: the same for all questions, by the command's options")
    name = {"id": record["id"]} if isinstance(record.get("id"), (str, int)) else {}
    if isinstance(record.get("prompt"), str):
        check_text(record["prompt"], str(record.get("id")))
        if not record["prompt"].strip():
            raise ValueError("the prompt is empty")
        return {**name, **_system(record), "prompt": record["prompt"]}
    turns = record.get("messages", record.get("conversations"))
    if turns is None:
        raise ValueError('it has neither "prompt" nor "messages"')
    check_text(str(record.get("id")))
    return {**name, "turns": parse_messages(turns)}


def _system(record: dict[str, Any]) -> dict[str, str]:
    system = record.get("system")
    if system is None:
        return {}
    if not isinstance(system, str):
        raise ValueError("system must be a text")
    check_text(system)
    return {"system": system}


def parse_messages(turns: Any) -> tuple[Message, ...]:
    """Parse turns of role and content (OpenAI) or of from and value (FastChat), up to the last user turn.

    Raises ValueError when there is none, or a turn has another form.
    """
    found = parse_turns(turns)
    while found and found[-1].role == "assistant":
        found.pop()
    if not found or found[-1].role != "user" or not found[-1].content.strip():
        raise ValueError("the last message must be the user's, and not empty")
    return tuple(found)


def parse_turns(turns: Any) -> list[Message]:
    """Parse turns of role and content, or of from and value. Raises ValueError when one has another form."""
    if not isinstance(turns, list):
        raise ValueError("messages must be a list")
    found = [_message(turn) for turn in turns]
    if any(message.role == "system" for message in found[1:]):
        raise ValueError("only the first message may be the system's")
    return found


def _message(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise ValueError("a message must be an object")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, list):  # OpenAI's content parts
        content = "".join(_part(part) for part in content)
    if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
        raise ValueError(f"a message needs a role ({', '.join(sorted(ROLES))}) and a text as content")
    check_text(content)
    return Message(ROLES[role], content)


def check_text(*texts: str) -> None:
    """Raise ValueError for a lone surrogate, which JSON can express and no tokenizer accepts."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode at character {error.start + 1}") from error


def _part(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise ValueError("only text can be understood")
    return str(part["text"])
