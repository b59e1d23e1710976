"""A conversation in a terminal: turns, dropping old turns when they outgrow the context, and the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from launcher.data.messages import Message
from launcher.errors import DataError, LauncherError
from launcher.inference.conversation import Conversation, read_conversation
from launcher.inference.interrupts import let_through
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Prepared, Question, Session
from launcher.upstream.quiet import quiet

HELP = """\
/retry          answer the last question again, with the next seed
/undo           take the last question and its answer back
/reset          forget the conversation
/system TEXT    set the system's turn and start anew; without TEXT, show it
/save FILE      write the conversation as JSON
/load FILE      go on with the conversation in FILE
/adapter NAME   put the adapter of a job, folder or file on the model, or none; without NAME, show it
/help           this
/exit           leave; so does Ctrl-D
Enter sends, Alt+Enter begins a new line. Ctrl-C stops an answer."""

# Room that is kept for an answer, at most this part of the context.
_ANSWER_PART = 4


Switch = Callable[[str | None], Session]


def talk(chat: Chat) -> None:
    """Load the model, then answer lines from the terminal until end of input, /exit, or Ctrl-C while loading."""
    template = chat.session.template
    with quiet():
        chat.session.load()
    if chat.session.interrupted():
        return
    chat.greet(template.name)
    chat.run()


def begun(kept: Path | None, system: str | None) -> Conversation:
    """Return the conversation in ``kept``, or a new one. Raises DataError when it has another system prompt."""
    if kept is None or not kept.exists():
        return Conversation(system=system)
    found = read_conversation(kept)
    if system not in (None, found.system):
        raise DataError(f"{kept} has another system prompt", hint="leave --system out, or name a new file")
    return found


@dataclass(kw_only=True)
class Chat:
    """Reads lines and answers them.

    read: returns the next line, or several that were typed as one, None at the end. out: for all output. kept: the file
    that holds the conversation after each change. switch: makes a session of the same model with another adapter.
    """

    session: Session
    spec: GenerationSpec
    read: Callable[[], str | None]
    out: TextIO
    conversation: Conversation = field(default_factory=Conversation)
    kept: Path | None = None
    switch: Switch | None = None
    _tries: int = 0

    def greet(self, template: str) -> None:
        """Say what answers, and what the conversation goes on from."""
        model = self.session.model
        self._say(f"{model.name}, {model.context} tokens of context, template {template}. /help lists commands.")
        if self.conversation.turns:
            self._say(f"({len(self.conversation.turns)} turns from {self.kept})")

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
            name, *rest = line.split(maxsplit=1)
            self._command(name, "".join(rest))
        else:
            self._answer(line)

    # ------------------------------------------------------------------------------------------------ commands

    def _command(self, name: str, argument: str) -> None:
        commands = {
            "/retry": self._retry,
            "/undo": self._undo,
            "/reset": self._reset,
            "/system": self._system,
            "/save": self._save,
            "/load": self._load,
            "/adapter": self._adapter,
            "/help": self._help,
        }
        if name not in commands:
            raise DataError(f"no command {name}", hint="/help lists them")
        commands[name](argument)

    def _help(self, _: str) -> None:
        self._say(HELP)

    def _reset(self, _: str) -> None:
        self.conversation.turns.clear()
        self._keep()
        self._say("(forgotten)")

    def _undo(self, _: str) -> None:
        question, _answer = self.conversation.take_back()
        self._keep()
        self._say(f"(taken back: {question.content})")

    def _retry(self, _: str) -> None:
        question, answer = self.conversation.take_back()
        if self.spec.temperature == 0:
            self._say("(temperature 0: the same answer comes again, unless it was stopped)")
        self._tries += 1
        try:
            self._ask(question.content)
        except LauncherError:
            self.conversation.turns += [question, answer]
            raise

    def _load(self, name: str) -> None:
        if not name:
            raise DataError("/load needs a file name", hint="/load talk.json")
        self.conversation = read_conversation(Path(name))
        self._keep()
        self._say(f"({len(self.conversation.turns)} turns from {name})")

    def _adapter(self, name: str) -> None:
        if name and self.switch:
            session = self.switch(None if name == "none" else name)
            _ = session.template  # before the model that is loaded is given up
            session.interrupted, session.on_phase = self.session.interrupted, self.session.on_phase
            self.session = session
            with quiet():
                session.load()
        self._say(f"({self.session.model.name})")

    def _system(self, text: str) -> None:
        if text:
            self.conversation = Conversation(system=text)
            self._keep()
            self._say("(set; the conversation starts anew)")
        else:
            self._say(self.conversation.system or "(none)")

    def _save(self, name: str) -> None:
        if not name:
            raise DataError("/save needs a file name", hint="/save talk.json")
        self.conversation.write_new(Path(name))
        self._say(f"({len(self.conversation.messages())} turns in {name})")

    def _keep(self) -> None:
        if self.kept:
            self.conversation.write(self.kept)

    # ------------------------------------------------------------------------------------------------ answers

    def _answer(self, question: str) -> None:
        self._tries = 0
        self._ask(question)

    def _ask(self, question: str) -> None:
        prepared, left_out = self.fitting(question)
        if left_out:
            self._say(f"(the first {left_out} turns no longer fit and are left out)")
        with quiet() as stdout:

            def on_text(text: str) -> None:
                stdout.write(text)
                stdout.flush()

            spec = replace(self.spec, seed=self.spec.seed + self._tries)
            (answer,) = self.session.batch([prepared], spec, on_text=on_text, cancelled=self.session.interrupted)
        ends = {"cancelled": " (stopped)", "length": " (...)"}
        self._say(ends.get(answer.finish, ""))
        self.conversation.add(question, answer.text)
        self._keep()

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


def line_reader(lines: TextIO | None = None) -> Callable[[], str | None]:
    """Return what reads the next line of ``lines``, stdin if left out: None at its end; a terminal has an editor.

    It raises UnicodeDecodeError for a line that is not text; other lines stay readable.
    """
    lines = lines or sys.stdin
    return terminal_editor() if lines.isatty() else partial(_read_line, lines)


def _read_line(lines: TextIO) -> str | None:
    raw = lines.buffer.readline()
    return raw.decode(lines.encoding) if raw else None


def terminal_editor(**streams: Any) -> Callable[[], str | None]:
    """Return what reads from a terminal: Enter sends all lines at once. ``streams``: input and output in its place."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession("> ", multiline=True, key_bindings=keys, **streams)

    def read() -> str | None:
        try:
            return session.prompt()
        except EOFError:
            return None

    return read
