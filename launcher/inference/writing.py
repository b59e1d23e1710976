"""Answers on their way out: text or JSON lines, in the order of the questions, and a file that can be continued."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.errors import DataError, HostError
from launcher.inference.session import Answer, Question
from launcher.render import write_atomic


def to_text(answer: Answer, *, alone: bool) -> str:
    """The answer, under its question when it is not ``alone``."""
    return answer.text if alone else f"> {answer.prompt}\n{answer.text}"


def to_json(answer: Answer) -> str:
    """One line of JSON."""
    return json.dumps(asdict(answer), ensure_ascii=False)


class InOrder:
    """Gives what comes in any order on in the order of its places, as soon as it can."""

    def __init__(self, give: Callable[[Answer], None]) -> None:
        self._give = give
        self._waiting: dict[int, Answer] = {}
        self._next = 0

    def put(self, place: int, answer: Answer) -> None:
        self._waiting[place] = answer
        while self._next in self._waiting:
            self._give(self._waiting.pop(self._next))
            self._next += 1


class OutputFile:
    """JSON lines that a later call continues: answers are added as they come, and sorted when all are there."""

    def __init__(self, path: Path) -> None:
        """Raises DataError when the file is there and holds something else."""
        self.path = path
        self._lines = dict(_existing(path))

    def __len__(self) -> int:
        return len(self._lines)

    def open_questions(self, questions: Sequence[Question]) -> list[Question]:
        """The questions that have no answer yet. Raises DataError when an id answers another question there."""
        for question in questions:
            known = self._lines.get(question.id)
            if known is not None and known.get("prompt") != question.shown:
                raise DataError(
                    f"{self.path} holds an answer of id {question.id!r} to another prompt",
                    hint="give another --output, or ids of their own to the questions",
                )
        return [question for question in questions if question.id not in self._lines]

    def check_writable(self) -> None:
        """Raises HostError when no answer could be added: better now than when the first ones are there."""
        was_there = self.path.exists()
        self._append(b"")
        if not was_there:
            self.path.unlink(missing_ok=True)

    def add(self, answers: Sequence[Answer]) -> None:
        """Write ``answers`` behind what is there, and to the disk. Raises HostError when that fails."""
        self._append("".join(f"{to_json(answer)}\n" for answer in answers).encode())
        self._lines |= {answer.id: asdict(answer) for answer in answers}

    def _append(self, content: bytes) -> None:
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HostError(
                f"cannot write {self.path}: {error.strerror}",
                hint="make that possible, or give another --output; what it has answered is not asked again",
            ) from error

    def mend(self) -> None:
        """Cut off half a line that a killed run left, so that what is added stands on lines of its own."""
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            self._rewrite(self._lines)

    def sort(self, questions: Sequence[Question]) -> None:
        """Bring the answers into the order of ``questions``; those of other questions stay in front."""
        asked = {question.id for question in questions}
        others = {name: line for name, line in self._lines.items() if name not in asked}
        ordered = {question.id: self._lines[question.id] for question in questions}
        if [*self._lines] != [*others, *ordered]:
            self._rewrite(others | ordered)

    def _rewrite(self, lines: Mapping[str, dict[str, Any]]) -> None:
        content = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines.values())
        with self._writing():
            write_atomic(self.path, content)
        self._lines = dict(lines)


def _existing(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        if not path.exists():
            return
        raw = path.read_bytes()
        for line in raw[: raw.rfind(b"\n") + 1].splitlines():
            record = json.loads(line)
            yield record["id"], record
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="give another --output") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} exists and holds no answers of launcher infer ({error})", hint="give another --output"
        ) from error
