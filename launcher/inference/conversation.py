"""A conversation as turns, and as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.common.rendering import write_atomic
from launcher.data.messages import Message
from launcher.errors import DataError
from launcher.inference.prompts import parse_turns


@dataclass(kw_only=True)
class Conversation:
    """Turns of user and assistant in pairs, and the system text."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def messages(self) -> list[Message]:
        head = [Message("system", self.system)] if self.system else []
        return [*head, *self.turns]

    def add(self, question: str, answer: str) -> None:
        self.turns += [Message("user", question), Message("assistant", answer)]

    def take_back(self) -> tuple[Message, Message]:
        """Remove the last question and its answer, and return them. Raises DataError when there is none."""
        if not self.turns:
            raise DataError("nothing was asked yet", hint="ask something")
        question, answer = self.turns[-2:]
        del self.turns[-2:]
        return question, answer

    def to_json(self) -> str:
        turns = [{"role": turn.role, "content": turn.content} for turn in self.messages()]
        return json.dumps({"messages": turns}, ensure_ascii=False, indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write the conversation to ``path``, whatever is there. Raises DataError when that fails."""
        try:
            write_atomic(path, self.to_json())
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}", hint="give another name") from error

    def write_new(self, path: Path) -> None:
        """Write the conversation to ``path``. Raises DataError when that exists or cannot be written."""
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(self.to_json())
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}", hint="give another name") from error


def read_conversation(path: Path) -> Conversation:
    """Read what ``Conversation.write`` wrote, or any JSON with messages. Raises DataError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return _conversation(parse_turns(found["messages"] if isinstance(found, dict) else found))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="give another name") from error
    except KeyError as error:
        raise DataError(f"{path} has no {error}", hint='it must be {"messages": [...]}, as /save writes') from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no conversation: {error}", hint="give a file that /save wrote") from error


def _conversation(messages: Sequence[Any]) -> Conversation:
    system = messages[0].content if messages and messages[0].role == "system" else None
    turns = list(messages[1:] if system is not None else messages)
    if [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("user and assistant must take turns, and the assistant have the last")
    return Conversation(system=system, turns=turns)
