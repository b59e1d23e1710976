"""A conversation in a terminal: turns, dropping old turns when they outgrow the context, and the commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from launcher.data.messages import Message
from launcher.errors import DataError, LauncherError
from launcher.inference.interrupts import let_through
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Prepared, Question, Session
from launcher.upstream.quiet import quiet

HELP = """\
/reset          forget the conversation
/system TEXT    set the system's turn and start anew; without TEXT, show it
/save FILE      write the conversation as JSON
/help           this
/exit           leave; so does Ctrl-D
Ctrl-C stops an answer."""

# Room that is kept for an answer, at most this part of the context.
_ANSWER_PART = 4


def talk(session: Session, spec: GenerationSpec, *, system: str | None, out: TextIO) -> None:
    """Load the model, then answer lines from the terminal until end of input, /exit, or Ctrl-C while loading."""
    template = session.template
    with quiet():
        session.load()
    if session.interrupted():
        return
    model = session.model
    out.write(f"{model.name}, {model.context} tokens of context, template {template.name}. /help lists commands.\n")
    out.flush()
    Chat(session=session, spec=spec, read=read_line, out=out, conversation=Conversation(system=system)).run()


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


@dataclass(kw_only=True)
class Chat:
    """Reads lines and answers them. ``read``: returns the next line, None at the end; ``out``: for all output."""

    session: Session
    spec: GenerationSpec
    read: Callable[[], str | None]
    out: TextIO
    conversation: Conversation = field(default_factory=Conversation)

    def run(self) -> None:
        """Run until end of input or /exit."""
        while True:
            try:
                line = self._line()
                if line is None or line in ("/exit", "/quit"):
                    return
                self._handle(line)
            except LauncherError as error:
                self._say(f"error: {error.message}" + (f"\n  hint: {error.hint}" if error.hint else ""))

    def _line(self) -> str | None:
        """Return the next line that is not blank, None at the end. Raises DataError when it is not text."""
        while True:
            try:
                with let_through():
                    line = self.read()
                (line or "").encode()
            except UnicodeError as error:
                raise DataError("this line is not valid Unicode, and was not asked", hint="type UTF-8") from error
            except KeyboardInterrupt:
                self._say("\n(Ctrl-D or /exit leaves)")
                continue
            if line is None or line.strip():
                return line if line is None else line.strip()

    def _handle(self, line: str) -> None:
        if line.startswith("/"):
            name, _, argument = line.partition(" ")
            self._command(name, argument.strip())
        else:
            self._answer(line)

    # ------------------------------------------------------------------------------------------------ commands

    def _command(self, name: str, argument: str) -> None:
        commands = {"/reset": self._reset, "/system": self._system, "/save": self._save, "/help": self._help}
        if name not in commands:
            raise DataError(f"no command {name}", hint="/help lists them")
        commands[name](argument)

    def _help(self, _: str) -> None:
        self._say(HELP)

    def _reset(self, _: str) -> None:
        self.conversation.turns.clear()
        self._say("(forgotten)")

    def _system(self, text: str) -> None:
        if text:
            self.conversation = Conversation(system=text)
            self._say("(set; the conversation starts anew)")
        else:
            self._say(self.conversation.system or "(none)")

    def _save(self, name: str) -> None:
        if not name:
            raise DataError("/save needs a file name", hint="/save talk.json")
        path = Path(name)
        turns = [{"role": turn.role, "content": turn.content} for turn in self.conversation.messages()]
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump({"messages": turns}, file, ensure_ascii=False, indent=2)
                file.write("\n")
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}", hint="give another name") from error
        self._say(f"({len(turns)} turns in {path})")

    # ------------------------------------------------------------------------------------------------ answers

    def _answer(self, question: str) -> None:
        prepared, left_out = self.fitting(question)
        if left_out:
            self._say(f"(the first {left_out} turns no longer fit and are left out)")
        with quiet() as stdout:

            def on_text(text: str) -> None:
                stdout.write(text)
                stdout.flush()

            (answer,) = self.session.batch([prepared], self.spec, on_text=on_text, cancelled=self.session.interrupted)
        ends = {"cancelled": " (stopped)", "length": " (...)"}
        self._say(ends.get(answer.finish, ""))
        self.conversation.add(question, answer.text)

    def fitting(self, question: str) -> tuple[Prepared, int]:
        """Return the conversation with ``question`` as ids, and how many of its first turns were dropped to fit.

        Turns are dropped in pairs, and for good. Raises DataError when ``question`` alone does not fit.
        """
        context = self.session.model.context
        room = context - min(self.spec.max_new_tokens, context // _ANSWER_PART)
        start = 0
        while len(self.session.encode(asked := self._question(start, question))) > room:
            if start >= len(self.conversation.turns):
                break
            start += 2
        (prepared,) = self.session.prepare([asked])
        del self.conversation.turns[:start]
        return prepared, start

    def _question(self, start: int, question: str) -> Question:
        turns = [*self.conversation.turns[start:], Message("user", question)]
        asked = Conversation(system=self.conversation.system, turns=turns)
        return Question(id="-", messages=tuple(asked.messages()))

    def _say(self, text: str) -> None:
        self.out.write(f"{text}\n")
        self.out.flush()


def read_line(lines: TextIO | None = None) -> str | None:
    """Read the next line of stdin, with line editing and history on a terminal; None at its end.

    Raises UnicodeDecodeError for a line that is not text; other lines stay readable.
    """
    lines = lines or sys.stdin
    if not lines.isatty():
        raw = lines.buffer.readline()
        return raw.decode(lines.encoding) if raw else None
    import readline  # noqa: F401 - input() edits lines from here on

    try:
        return input("> ")
    except EOFError:
        return None
