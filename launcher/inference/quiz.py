"""Questions with right answers from any file of records, put to one model after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from launcher.common.rendering import write_atomic
from launcher.data.convert import read_conversations
from launcher.data.messages import Conversation
from launcher.data.reading import DataSource
from launcher.errors import DataError
from launcher.inference.evaluation import Candidate, answers_to, phase_of
from launcher.inference.judging import JUDGES, USABLE
from launcher.inference.session import OnPhase, Question, Session, unheard
from launcher.upstream.quiet import quiet

_ROWS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question, its turns before if it has some, and its right answer."""

    question: Question
    right: str


@dataclass(frozen=True, kw_only=True)
class Graded:
    """One model's answers, and which of them are right."""

    role: str
    name: str
    answers: tuple[str, ...]
    right: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Quiz:
    """Questions and the judge of their answers."""

    path: str
    judge: str
    items: tuple[Item, ...]

    def put_to(
        self,
        candidates: Sequence[Candidate],
        *,
        max_new_tokens: int,
        device_id: int | None,
        interrupted: Callable[[], bool],
        on_phase: OnPhase = unheard,
    ) -> Results:
        """Ask one model after the other. Raises DataError for a question that is too long, JobCancelled."""
        graded = []
        with quiet():
            for candidate in candidates:
                session = Session(candidate.model, batch_size=_ROWS_AT_ONCE, device_id=device_id)
                session.interrupted, session.on_phase = interrupted, phase_of(candidate, on_phase)
                prompts = [item.ids for item in session.prepare(item.question for item in self.items)]
                graded.append(self._graded(candidate, list(answers_to(session, prompts, max_new_tokens))))
        return Results(quiz=self, graded=tuple(graded))

    def _graded(self, candidate: Candidate, answers: list[str]) -> Graded:
        judge = JUDGES[self.judge]
        right = tuple(judge(answer, item.right) for answer, item in zip(answers, self.items, strict=True))
        return Graded(role=candidate.role, name=candidate.model.name, answers=tuple(answers), right=right)


@dataclass(frozen=True, kw_only=True)
class Results:
    """What all models answered."""

    quiz: Quiz
    graded: tuple[Graded, ...]

    @property
    def differing(self) -> tuple[str, ...]:
        """Return the ids of the questions that some models have right and others wrong."""
        columns = zip(*(one.right for one in self.graded), strict=True)
        return tuple(
            item.question.id for item, right in zip(self.quiz.items, columns, strict=True) if len(set(right)) > 1
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": self.quiz.path,
            "score": self.quiz.judge,
            "asked": len(self.quiz.items),
            "models": [{"role": one.role, "model": one.name, "right": sum(one.right)} for one in self.graded],
            "differing": list(self.differing),
            "questions": [self._question(number, item) for number, item in enumerate(self.quiz.items)],
        }

    def _question(self, number: int, item: Item) -> Mapping[str, Any]:
        answers = [
            {"role": one.role, "model": one.name, "text": one.answers[number], "right": one.right[number]}
            for one in self.graded
        ]
        return {"id": item.question.id, "question": item.question.shown, "expected": item.right, "answers": answers}

    def write(self, path: Path) -> None:
        """Write every question with every answer to ``path`` as JSON."""
        write_atomic(path, json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n")


def read_quiz(source: DataSource, judge: str, limit: int | None) -> Quiz:
    """Read questions and right answers from any file that ``launcher data convert`` reads.

    Of a conversation the last answer is the right one, and what was said before is part of the question. Raises
    DataError when a record is none, or its right answer can be judged right by nothing.
    """
    found = islice(read_conversations([source]), limit)
    items = tuple(map(_item, found))
    if not items:
        raise DataError(f"{source.path} holds no question", hint="give records of a question and its right answer")
    bad = [item for item in items if not USABLE[judge](item.right)]
    if bad:
        shown = "; ".join(f"{item.question.id}: {item.right[:40]!r}" for item in bad[:3])
        raise DataError(
            f"{source.path}: {len(bad)} right answers that --score {judge} cannot use: {shown}",
            hint=f"choose another --score: {', '.join(JUDGES)}; --columns question=FIELD,answer=FIELD names the fields",
        )
    return Quiz(path=str(source.path), judge=judge, items=items)


def _item(conversation: Conversation) -> Item:
    turns = conversation.messages
    last = max((at for at, turn in enumerate(turns) if turn.role == "assistant"), default=0)
    return Item(question=Question(id=conversation.id, messages=turns[:last]), right=turns[last].content)
