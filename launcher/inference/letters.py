"""Which letter a model holds most likely as the answer to a question: by the logits of the next token, as published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from launcher.data.exams import LETTERS
from launcher.errors import DataError
from launcher.inference.decoding import Row
from launcher.inference.evaluation import stop_if
from launcher.inference.exams import Asked
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Question, Session
from launcher.inference.transcript import Transcript


@dataclass(kw_only=True)
class _Choice(Row):
    """A prompt whose next token is one of ``tokens``, a letter each; ``chosen``: the likeliest, the first of equals."""

    tokens: Sequence[int]
    chosen: int = 0

    def advance(self, logits: Any) -> int:
        self.chosen = int(np.argmax(logits[list(self.tokens)]))
        return super().advance(logits)


def letters_of(session: Session, asked: Sequence[tuple[Asked, int]]) -> list[str]:
    """Return the likeliest letter for each question, which is put after so many examples.

    Raises DataError for a question that is too long, or whose letters are no single tokens; JobCancelled.
    """
    rows = [_row(session, question, count) for question, count in asked]
    order = sorted(rows, key=lambda row: -len(row.prompt))
    for start in range(0, len(order), session.batch_size):
        session.run(order[start : start + session.batch_size])
        stop_if(session.interrupted())
    return [LETTERS[row.chosen] for row in rows]


def _row(session: Session, question: Asked, count: int) -> _Choice:
    every = [session.encode(question.with_letter(count, letter)) for letter in LETTERS]
    prompt = every[0][:-1]
    if any(ids[:-1] != prompt for ids in every) or len({ids[-1] for ids in every}) < len(LETTERS):
        raise DataError(
            f"the tokenizer of {session.model.name} has no token for each of the letters A to D after a question",
            hint="--score choice has the model write its answer, and takes the letter in it",
        )
    session.prepare([Question(id=question.entry.id, ids=tuple(prompt))])  # raises when it is too long
    return _Choice(
        prompt=prompt, spec=GenerationSpec(max_new_tokens=1), limit=1, ends=session.ends,
        transcript=Transcript(session.tokenizer), tokens=[ids[-1] for ids in every],
    )  # fmt: skip
