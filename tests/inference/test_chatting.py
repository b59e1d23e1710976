"""The commands of a chat and its files, with a model that is computed in numpy."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from support.checkpoint_sets import launcher
from support.model_servers import make_adapter, quick_model

from launcher.errors import DataError, JobError
from launcher.inference.chatting import Chat, begun, talk, terminal_editor
from launcher.inference.conversation import Conversation, read_conversation
from launcher.inference.sampling import GenerationSpec
from launcher.inference.session import Session
from launcher.inference.sources import find_model

SPEC = GenerationSpec(max_new_tokens=6, temperature=1.5)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = quick_model(tmp_path_factory.mktemp("chat") / "model", seq_length=512)
    return Session(find_model(str(folder), folder), batch_size=1)


def chat(session: Session, *lines: str, **changes: Any) -> tuple[Chat, list[str]]:
    """A chat in which these lines were typed, and what it said beside its answers."""
    rest: Iterator[str | None] = iter([*lines, None])
    out = io.StringIO()
    found = Chat(session=session, read=lambda: next(rest), out=out, **{"spec": SPEC, **changes})
    talk(found)
    return found, out.getvalue().splitlines()[1:]


def contents(conversation: Conversation) -> list[str]:
    return [turn.content for turn in conversation.turns]


def test_an_answer_can_be_tried_again_and_taken_back(session: Session) -> None:
    first = contents(chat(session, "苹果")[0].conversation)
    again = contents(chat(session, "苹果", "/retry")[0].conversation)
    third = contents(chat(session, "苹果", "/retry", "/retry")[0].conversation)
    seeded = contents(chat(session, "苹果", spec=replace(SPEC, seed=2))[0].conversation)

    assert first[0] == again[0] == third[0] == "苹果"
    assert len({first[1], again[1], third[1]}) == 3
    assert third == seeded
    after, said = chat(session, "苹果", "梨", "/undo")
    assert (contents(after.conversation), said[-1]) == (first, "(taken back: 梨)")
    assert "error: nothing was asked yet" in chat(session, "/undo")[1]
    assert "error: nothing was asked yet" in chat(session, "/retry")[1]
    greedy = chat(session, "苹果", "/retry", spec=replace(SPEC, temperature=0))[1]
    assert "(temperature 0: the same answer comes again, unless it was stopped)" in greedy


def test_a_retry_that_fails_takes_nothing_away(session: Session) -> None:
    long = Conversation()
    long.add("苹果" * 600, "梨")
    found, said = chat(session, "/retry", conversation=long)
    assert any("longer than the context of 512 tokens" in line for line in said)
    assert contents(found.conversation) == ["苹果" * 600, "梨"]


def test_a_conversation_is_kept_in_a_file_and_gone_on_with(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    chat(session, "苹果", kept=file, conversation=begun(file, "短"))
    found, said = chat(session, "梨", kept=file, conversation=begun(file, None))

    assert said[0] == f"(2 turns from {file})"
    kept = json.loads(file.read_text(encoding="utf-8"))["messages"]
    assert [turn["role"] for turn in kept] == ["system", "user", "assistant", "user", "assistant"]
    assert read_conversation(file) == found.conversation
    chat(session, "/undo", kept=file, conversation=begun(file, "短"))
    assert len(read_conversation(file).turns) == 2
    with pytest.raises(DataError, match="has another system prompt"):
        begun(file, "lang")
    chat(session, "/reset", kept=file, conversation=begun(file, None))
    assert read_conversation(file) == Conversation(system="短")


def test_a_saved_conversation_is_loaded(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    before, said = chat(session, "苹果", "two\nlines", f"/save {file}", f"/save {file}")
    assert said[-2] == f"error: cannot write {file}: File exists"
    after, said = chat(session, f"/load {file}")
    assert (after.conversation, said[-1]) == (before.conversation, f"(4 turns from {file})")
    assert contents(after.conversation)[2] == "two\nlines"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot read .*: No such file"),
        ("{", "is no conversation: Expecting"),
        ("{}", "has no 'messages'"),
        ('{"messages": 1}', "messages must be a list"),
        ('[{"role": "user", "content": "a"}]', "must take turns"),
        ('[{"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}]', "must take turns"),
        ('[{"role": "robot", "content": "a"}]', "a message needs a role"),
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(
    session: Session, tmp_path: Path, text: str | None, expected: str
) -> None:
    file = tmp_path / "talk.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=expected):
        read_conversation(file)
    found, said = chat(session, "苹果", f"/load {file}")
    assert said[-1 if text is None else -2].startswith(("error: ", "  hint"))
    assert len(found.conversation.turns) == 2


def test_adapters_are_switched_by_a_command(session: Session) -> None:
    """What is switched to is made by the caller: here a model with one other weight."""
    asked: list[str | None] = []
    other = Session(replace(session.model, name="other"), batch_size=1)

    def switch(adapter: str | None) -> Session:
        asked.append(adapter)
        if adapter == "nope":
            raise JobError("no job 'nope'", hint="launcher jobs")
        return other if adapter else session

    found, said = chat(session, "苹果", "/adapter", "/adapter last", "/adapter nope", "/adapter none", switch=switch)
    assert asked == ["last", "nope", None]
    own = f"({session.model.name})"
    shown = [line for line in said if line.strip()][-5:]
    assert shown == [own, "(other)", "error: no job 'nope'", "  hint: launcher jobs", own]
    assert len(found.conversation.turns) == 2


def test_several_lines_are_sent_at_once_by_enter() -> None:
    with create_pipe_input() as pipe:
        read = terminal_editor(input=pipe, output=DummyOutput())
        pipe.send_text("one\x1b\rtwo\r")
        assert read() == "one\ntwo"
        pipe.send_text("\x1b[200~pasted\nlines\x1b[201~\n")  # bracketed paste
        assert read() == "pasted\nlines"
        pipe.send_text("\x04")
        assert read() is None
        pipe.send_text("half\x03")
        with pytest.raises(KeyboardInterrupt):
            read()


def test_the_command_goes_on_with_a_file_and_switches_a_real_adapter(tmp_path: Path) -> None:
    model, adapter = quick_model(tmp_path / "model"), make_adapter(tmp_path / "adapter")
    lines = ["苹果", f"/adapter {adapter}", "/retry", "/adapter none", "/retry", "/adapter nope", "/exit"]
    argv = ("chat", model, "--continue", "talk.json", "--max-new-tokens", "5")
    done = launcher(*argv, cwd=tmp_path, input="\n".join(lines))
    answers = [line for line in done.stdout.splitlines() if line.endswith(" (...)")]

    assert (done.returncode, done.stderr) == (0, "")
    assert f"({model} + {adapter})" in done.stdout
    assert "error: no job 'nope'" in done.stdout
    assert answers[0] == answers[2] != answers[1]
    assert len(read_conversation(tmp_path / "talk.json").turns) == 2
    (tmp_path / "talk.json").write_text("[")
    refused = launcher(*argv, cwd=tmp_path)
    assert refused.returncode == 3
    assert "talk.json is no conversation" in refused.stderr
