"""The questions of published exams as they are put: examples first, then the question, in the words of its authors.

MMLU: Hendrycks and others, ICLR 2021, evaluate.py. C-Eval: Huang and others, NeurIPS 2023, table 1. CMMLU: Li and
others, 2023, src/mp_utils.py. GSM8K: Cobbe and others, 2021, in the form of EleutherAI's lm-eval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from launcher.data.exams import ANSWER_MARK, LETTERS, Entry, Exam
from launcher.data.messages import Message
from launcher.inference.session import Question

# As many examples as the authors of all but GSM8K have; there it is what most tools take.
EXAMPLES = 5
_GAP = "\n\n"


@dataclass(frozen=True, kw_only=True)
class Style:
    """How an exam is put. ``head``: what stands above the examples of a subject. ``ask``: a question up to where the
    answer begins; ``before``: what stands between both. ``stop``: what begins after a generated answer."""

    head: Callable[[str], str]
    ask: Callable[[Entry], str]
    before: str
    stop: tuple[str, ...]


def _lines(entry: Entry) -> str:
    choices = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, entry.choices, strict=True))
    return entry.question + choices


@cache
def _subjects() -> Mapping[str, Mapping[str, str]]:
    text = resources.files("launcher.inference").joinpath("exam_subjects.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, str]] = json.loads(text)
    return found


def _chinese(exam: str, subject: str) -> str:
    """Return the Chinese name that the exam's authors give a subject; of one that they do not have its own."""
    return _subjects()[exam].get(subject, subject.replace("_", " "))


STYLES: Mapping[str, Style] = {
    "mmlu": Style(
        head=lambda subject: (
            "The following are multiple choice questions (with answers) about " + subject.replace("_", " ") + ".\n\n"
        ),
        ask=lambda entry: _lines(entry) + "\nAnswer:",
        before=" ",
        stop=("\n",),
    ),
    "ceval": Style(
        head=lambda subject: f"以下是中国关于{_chinese('ceval', subject)}考试的单项选择题，请选出其中的正确答案。\n\n",
        ask=lambda entry: _lines(entry) + "\n答案：",
        before="",
        stop=("\n",),
    ),
    "cmmlu": Style(
        head=lambda subject: f"以下是关于{_chinese('cmmlu', subject)}的单项选择题，请直接给出正确答案的选项。\n\n",
        ask=lambda entry: f"题目：{_lines(entry)}\n答案是：",
        before="",
        stop=("\n",),
    ),
    "gsm8k": Style(
        head=lambda _: "",
        ask=lambda entry: f"Question: {entry.question}\nAnswer:",
        before=" ",
        stop=("Question:",),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question of an exam, which can be put after more or fewer examples.

    ``chat``: in the model's template, the examples as turns before it.
    """

    entry: Entry
    examples: Sequence[Entry]
    style: Style
    chat: bool

    def after(self, count: int) -> Question:
        """Return the question after the first ``count`` examples."""
        shown, style, name = self.examples[:count], self.style, self.entry.id
        if self.chat:
            return Question(id=name, messages=tuple(self._turns(shown)))
        told = "".join(style.ask(one) + style.before + one.answer + _GAP for one in shown)
        return Question(id=name, text=style.head(self.entry.subject) + told + style.ask(self.entry))

    def with_letter(self, count: int, letter: str) -> Question:
        """Return the question with ``letter`` as its answer."""
        asked = self.after(count)
        return Question(id=asked.id, text=f"{asked.text}{self.style.before}{letter}")

    def _turns(self, shown: Sequence[Entry]) -> list[Message]:
        turns = []
        for one in shown:
            turns += [Message("user", self.style.ask(one)), Message("assistant", one.answer)]
        turns.append(Message("user", self.style.ask(self.entry)))
        return [Message("user", self.style.head(self.entry.subject) + turns[0].content), *turns[1:]]

    @property
    def right(self) -> str:
        """Return the right letter, or the number."""
        return self.entry.answer.rpartition(ANSWER_MARK)[2].strip()


def asked_of(exam: Exam, examples: int, *, chat: bool) -> list[Asked]:
    """Return the questions of ``exam``, each after at most ``examples`` of its subject."""
    style = STYLES[exam.format.name]
    return [
        Asked(entry=entry, examples=exam.examples.get(entry.subject, ())[:examples], style=style, chat=chat)
        for entry in exam.entries
    ]
