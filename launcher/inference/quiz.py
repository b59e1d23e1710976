"""Questions with right answers from any file of records, put to one model after the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from launcher.common.rendering import write_atomic
from launcher.data.convert import read_conversations
from launcher.data.exams import Exam
from launcher.data.messages import Conversation
from launcher.data.reading import DataSource
from launcher.errors import DataError, SpecError
from launcher.inference.evaluation import Candidate, answers_to, phase_of
from launcher.inference.exams import STYLES, Asked, asked_of
from launcher.inference.judging import JUDGES, USABLE
from launcher.inference.letters import letters_of
from launcher.inference.session import OnPhase, Question, Session, unheard
from launcher.jobs import find_job_or_path
from launcher.upstream.quiet import quiet

_ROWS_AT_ONCE = 8
# An exam has thousands of questions, a page of them is read.
_KEPT_QUESTIONS = 100
# The judge of exams with letters: the one that the model holds most likely as the next token.
LIKELIHOOD = "likelihood"


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question, its turns before if it has some, and its right answer. ``asked``: it is one of an exam."""

    question: Question
    right: str
    subject: str = ""
    asked: Asked | None = None


@dataclass(frozen=True, kw_only=True)
class Graded:
    """One model's answers, and which of them are right. ``fewer``: how many questions had fewer examples before them
    than there are, as its context holds no more."""

    role: str
    name: str
    answers: tuple[str, ...]
    right: tuple[bool, ...]
    fewer: int = 0


@dataclass(frozen=True, kw_only=True)
class Quiz:
    """Questions and the judge of their answers. ``exam``: which published one; ``split``: which part of it.

    ``examples``: at most so many stand before a question. ``stop``: texts that end an answer.
    """

    path: str
    judge: str
    items: tuple[Item, ...]
    exam: str = ""
    split: str = ""
    examples: int = 0
    stop: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(item.subject for item in self.items if item.subject))

    @property
    def has_working(self) -> bool:
        """Return whether the answers are those of an exam that wants the working."""
        return bool(self.exam) and not self.subjects

    @property
    def title(self) -> str:
        """Return the exam's name and split, for a line."""
        return f"{self.exam}{f' {self.split}' if self.split else ''}, " if self.exam else ""

    @property
    def put(self) -> str:
        """Return what goes before each question of an exam, for a line."""
        return f" after {self.examples} example{'s' * (self.examples != 1)}" if self.exam else ""

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
                graded.append(self._graded(candidate, session, max_new_tokens))
        return Results(quiz=self, graded=tuple(graded))

    def _graded(self, candidate: Candidate, session: Session, max_new_tokens: int) -> Graded:
        by_letter = self.judge == LIKELIHOOD
        room = 1 if by_letter else max_new_tokens
        put = [(item, _examples_that_fit(session, item, room)) for item in self.items]
        if by_letter:
            answers = letters_of(session, [(item.asked, count) for item, count in put if item.asked])
        else:
            asked = session.prepare(item.asked.after(count) if item.asked else item.question for item, count in put)
            answers = list(answers_to(session, [one.ids for one in asked], max_new_tokens, stop=self.stop))
        judge = JUDGES["exact" if by_letter else self.judge]
        right = tuple(judge(answer, item.right) for answer, item in zip(answers, self.items, strict=True))
        fewer = sum(count < len(item.asked.examples) for item, count in put if item.asked)
        return Graded(
            role=candidate.role, name=candidate.model.name, answers=tuple(answers), right=right, fewer=fewer
        )  # fmt: skip


def _examples_that_fit(session: Session, item: Item, room: int) -> int:
    """Return how many examples can stand before the question when the answer takes ``room`` tokens."""
    if item.asked is None:
        return 0
    for count in range(len(item.asked.examples), 0, -1):
        if len(session.encode(item.asked.after(count))) + room <= session.model.context:
            return count
    return 0


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

    def by_subject(self, graded: Graded) -> dict[str, tuple[int, int]]:
        """Return how many questions of each subject are right, and how many there are."""
        found: dict[str, tuple[int, int]] = {}
        for item, right in zip(self.quiz.items, graded.right, strict=True):
            before, count = found.get(item.subject, (0, 0))
            found[item.subject] = (before + right, count + 1)
        return found

    def mean_of_subjects(self, graded: Graded) -> float:
        """Return the mean of the subjects' shares of right answers."""
        return fmean(right / count for right, count in self.by_subject(graded).values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": self.quiz.path,
            "score": self.quiz.judge,
            **self._exam(),
            "asked": len(self.quiz.items),
            "models": [self._model(one) for one in self.graded],
            "differing": list(self.differing),
            "questions": [self._question(number, item) for number, item in enumerate(self.quiz.items)],
        }

    def _exam(self) -> dict[str, Any]:
        quiz = self.quiz
        return {"exam": quiz.exam, "split": quiz.split, "examples": quiz.examples} if quiz.exam else {}

    def _model(self, one: Graded) -> dict[str, Any]:
        found: dict[str, Any] = {"role": one.role, "model": one.name, "right": sum(one.right)}
        if self.quiz.exam:
            found["with_fewer_examples"] = one.fewer
        if self.quiz.subjects:
            found["mean_of_subjects"] = self.mean_of_subjects(one)
            found["subjects"] = {name: list(counts) for name, counts in self.by_subject(one).items()}
        return found

    def _question(self, number: int, item: Item) -> Mapping[str, Any]:
        answers = [
            {"role": one.role, "model": one.name, "text": one.answers[number], "right": one.right[number]}
            for one in self.graded
        ]
        return {"id": item.question.id, "question": item.question.shown, "expected": item.right, "answers": answers}

    def keep(self, references: Sequence[str], jobs_dir: Path) -> None:
        """Write the results, with some of the questions, into the folder of each job among ``references``.

        Its report shows them; those that some models have right and others wrong come first.
        """
        text = json.dumps(self._kept(), ensure_ascii=False, indent=2) + "\n"
        path = Path(self.quiz.path).absolute()
        name = f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}.json"
        for reference in references:
            job = find_job_or_path(reference, jobs_dir)
            if job is not None:
                job[0].answers.mkdir(exist_ok=True)
                write_atomic(job[0].answers / name, text)

    def _kept(self) -> dict[str, Any]:
        found, differing = self.to_dict(), set(self.differing)
        ordered = sorted(found["questions"], key=lambda one: one["id"] not in differing)
        left = {"differing": len(differing), "questions_left_out": max(0, len(ordered) - _KEPT_QUESTIONS)}
        return {**found, **left, "questions": ordered[:_KEPT_QUESTIONS]}

    def write(self, path: Path) -> None:
        """Write every question with every answer to ``path`` as JSON."""
        write_atomic(path, json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------ reading


def exam_quiz(exam: Exam, *, judge: str | None, examples: int, chat: bool) -> Quiz:
    """Return the questions of a published exam. ``judge``: as is usual for it if None.

    Raises SpecError for a judge that it cannot have.
    """
    usual = "number" if not exam.format.has_letters else "choice" if chat else LIKELIHOOD
    chosen = judge or usual
    if chosen == LIKELIHOOD and (chat or not exam.format.has_letters):
        raise SpecError(
            f"--score {LIKELIHOOD} compares letters as the next token" + (", which --chat leaves open" if chat else ""),
            hint=f"--score {usual}",
        )
    asked = asked_of(exam, examples, chat=chat)
    items = tuple(Item(question=one.after(0), right=one.right, subject=one.entry.subject, asked=one) for one in asked)
    most = max((len(one.examples) for one in asked), default=0)
    short = [*exam.notes, f"{exam.path}: no {exam.format.examples} split lies beside it, so no examples are shown"]
    return Quiz(
        path=exam.path, judge=chosen, items=items, exam=exam.format.title, split=exam.split, examples=most,
        stop=() if chat else STYLES[exam.format.name].stop, notes=tuple(short if examples and not most else exam.notes),
    )  # fmt: skip


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
