"""``infer``: many questions to one session, answers to the terminal or into a file."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import JobCancelled
from launcher.inference.decoding import CANCELLED
from launcher.inference.provenance import made_with
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Answer, Prepared, Question, Session
from launcher.inference.writing import InOrder, OutputFile, locked, to_json, to_text
from launcher.upstream.quiet import quiet


@dataclass(frozen=True, kw_only=True)
class Asking:
    """A session with its settings. ``as_json``: one object per line instead of text."""

    session: Session
    spec: GenerationSpec
    as_json: bool = False

    def to_stdout(self, questions: Sequence[Question], *, stream: bool) -> None:
        """Print all answers in order. ``stream``: a single one as it grows. Raises DataError if prompts do not fit."""
        prepared = self.session.prepare(questions)
        alone = len(questions) == 1
        with quiet() as stdout:

            def show(answer: Answer) -> None:
                stdout.write((to_json(answer) if self.as_json else to_text(answer, alone=alone)) + "\n")
                stdout.flush()

            def on_text(text: str) -> None:
                stdout.write(text)
                stdout.flush()

            if stream and alone and not self.as_json:
                (answer,) = self.session.batch(prepared, self.spec, on_text=on_text, cancelled=self.session.interrupted)
                on_text("\n")
                if answer.finish == CANCELLED:
                    raise JobCancelled("stopped", signum=signal.SIGINT)
                return
            ordered = InOrder(show)
            for place, answer in self.session.answers(prepared, self.spec):
                ordered.put(place, answer)

    def into_file(
        self, questions: Sequence[Question], path: Path, *, on_wait: Callable[[], None] = lambda: None
    ) -> tuple[int, int]:
        """Answer the questions without an answer in ``path``; return how many were added, and how many are there now.

        ``on_wait``: called once when another process is writing the file, before waiting for it.
        Raises DataError if prompts do not fit, or the file holds anything else or answers made with other settings;
        HostError when it cannot be written.
        """
        prepared = self.session.prepare(questions)
        made = made_with(self.session, self.spec, prepared)
        with locked(path, on_wait=on_wait, interrupted=self.session.interrupted) as file:
            file.check(made)
            still_open = [item for item in prepared if item.question.id not in file.lines]
            if still_open:
                self._add(file, still_open, made)
            file.sort([*made])
        return len(still_open), len(questions)

    def _add(self, file: OutputFile, prepared: Sequence[Prepared], made: Mapping[str, Mapping[str, Any]]) -> None:
        try:
            with quiet():
                for answers in self.session.batches(prepared, self.spec):
                    file.add([answer for _, answer in answers], made)
        except JobCancelled as stopped:
            stopped.hint = f"the same command goes on where it stopped; {file.path} has {len(file)} answers"
            raise
