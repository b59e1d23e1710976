"""Shapes of records: what is recognised, what is kept, and that no text is dropped in silence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support.data_tools import launcher, make_sentencepiece

from launcher.cli.app import main
from launcher.data.convert import convert, read_conversations
from launcher.data.formats import to_conversation, to_text, unread
from launcher.data.options import PreprocessOptions
from launcher.data.preprocess import preprocess
from launcher.data.reading import PARTS, DataSource, Reading, checked_columns, parsed_columns
from launcher.data.show import show_row
from launcher.data.stats import stats_of
from launcher.data.turns import RecordError
from launcher.errors import DataError

CALL = {"name": "weather", "arguments": {"city": "北京"}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
ASKED, ANSWERED = ("user", "q"), ("assistant", "a")


def said(value: Any, reading: Reading | None = None) -> list[tuple[str, str]]:
    found = to_conversation(value, 0, reading or Reading())[1]
    return [(message.role, message.content or message.calls) for message in found.messages]


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ({"question": "q", "answer": "a"}, "question/answer", [ASKED, ANSWERED]),
        ({"prompt": "q", "completion": "a"}, "prompt/completion", [ASKED, ANSWERED]),
        ({"prompt": "q", "response": "a"}, "prompt/response", [ASKED, ANSWERED]),
        ({"input": "q", "output": "a"}, "input/output", [ASKED, ANSWERED]),
        ({"instruction": "q", "response": "a"}, "instruction/response", [ASKED, ANSWERED]),
        (
            {"system": "s", "query": "q", "response": "a", "history": [["x", "y"]]},
            "query/response",
            [("system", "s"), ("user", "x"), ("assistant", "y"), ASKED, ANSWERED],
        ),
        (
            {"query": "q", "response": "a", "history": '[["x", "y"]]', "system": None},
            "query/response",
            [("user", "x"), ("assistant", "y"), ASKED, ANSWERED],
        ),
        (
            {"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            "sharegpt",
            [ASKED, ANSWERED],
        ),
        (
            {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
            "openai",
            [ASKED, ANSWERED],
        ),
        (
            {"system": "s", "messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "openai",
            [("system", "s"), ASKED, ANSWERED],
        ),
    ],
)
def test_shapes(value: Any, kind: str, expected: list[tuple[str, str]]) -> None:
    assert to_conversation(value, 0)[0] == kind
    assert said(value) == expected
    assert list(unread(kind, value)) == []


SHAREGPT_TOOLS = {
    "system": "s",
    "tools": json.dumps([TOOLS[0]["function"]]),
    "conversations": [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "晴"},
        {"from": "gpt", "value": "a"},
    ],
}
OPENAI_TOOLS: dict[str, Any] = {
    "tools": TOOLS,
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}],
        },
        {"role": "tool", "content": "晴", "tool_call_id": "x"},
        {"role": "assistant", "content": "a"},
    ],
}


def test_calls_of_tools_are_the_same_in_both_forms_and_survive_convert(tmp_path: Path) -> None:
    ours, theirs = said(SHAREGPT_TOOLS), said(OPENAI_TOOLS)
    assert ours == theirs
    assert [role for role, _ in ours] == ["tools", "system", "user", "assistant", "tool", "assistant"]
    assert json.loads(ours[0][1]) == TOOLS
    assert json.loads(ours[3][1]) == [{"type": "function", "function": CALL}]
    (tmp_path / "a.jsonl").write_text(json.dumps(SHAREGPT_TOOLS) + "\n" + json.dumps(OPENAI_TOOLS))
    convert(tmp_path / "a.jsonl", tmp_path / "b.json", force=False)
    again = [one.messages for one in read_conversations(tmp_path / "b.json")]
    assert again == [one.messages for one in read_conversations(tmp_path / "a.jsonl")]
    # In a table, every turn has the keys of all turns, null where it has none.
    turns = [{**turn, "content": "q"} if turn["role"] == "user" else turn for turn in OPENAI_TOOLS["messages"]]
    table = pyarrow.Table.from_pylist([{"messages": turns, "tools": json.dumps(TOOLS)}])
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    assert next(read_conversations(tmp_path / "c.parquet")).messages == again[1]


@pytest.mark.parametrize(
    ("value", "reason", "hint"),
    [
        (
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            "chosen, rejected: preference data",
            "answer=chosen --ignore rejected",
        ),
        (
            {"question": "q", "answer": "a", "image": {"bytes": b"x"}},
            "image: models of text read no images",
            "--ignore image",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "not text: 'image_url'",
            "",
        ),
        ({"text": "a story"}, "this is a text: keys text", "--type text"),
        (
            {"ask": "q", "reply": "a"},
            "neither a question with its answer nor a conversation: keys ask, reply",
            "--columns",
        ),
        ({"question": "q", "answer": True}, "answer: the answer is true or false, not a string", ""),
        ({"question": "q", "answer": "a", "system": 1}, "system is a number", ""),
        ({"question": "q", "answer": "a", "tools": "x"}, "tools is a string, not a list of objects", ""),
        ({"question": "q", "answer": "a", "tools": [{"x": 1}]}, "a tool has no name", ""),
        (
            {"conversations": [{"from": "observation", "value": "x"}]},
            "turn 1 is the tool's, but it is the user's turn",
            "",
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "no json"}]},
            "function_call is a string, not a call",
            "",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": [1]}'},
                ]
            },
            "arguments of f are an array",
            "",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"id": "x"}]}]},
            "a call is no object with the name of a function",
            "",
        ),
    ],
)
def test_what_is_refused_is_named(value: Any, reason: str, hint: str) -> None:
    with pytest.raises(RecordError, match=reason) as error:
        to_conversation(value, 0)
    assert hint in error.value.hint


@pytest.mark.parametrize("value", [SHAREGPT_TOOLS, OPENAI_TOOLS, {"question": "q", "answer": "a", "tools": TOOLS}])
def test_a_template_without_tools_refuses_them(value: Any) -> None:
    with pytest.raises(RecordError, match="template plain has no place for tools") as error:
        said(value, Reading(no_tools="template plain has no place for tools"))
    assert "--template own" in error.value.hint


@pytest.mark.parametrize(
    ("value", "lost"),
    [
        ({"question": "q", "answer": "a", "category": "math"}, ["category"]),
        ({"question": "q", "answer": "a", "score": 3, "ok": True, "empty": "", "none": None, "date": "2024-01-01"}, []),
        ({"question": "q", "answer": "a", "meta": {"by": ["x"]}}, ["meta"]),
        ({"instruction": "q", "output": "a", "context": "c"}, ["context"]),
        ({"prompt": "q", "completion": "a", "response": "b"}, ["response"]),
        (
            {"messages": [{"role": "user", "content": "q", "name": "Eve"}, {"role": "assistant", "content": "a"}]},
            ["messages[].name"],
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "reasoning": "so"}]},
            ["conversations[].reasoning"],
        ),
    ],
)
def test_a_text_that_would_be_lost_stops_the_run_and_says_what_to_type(
    tmp_path: Path, value: Any, lost: list[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(value) + "\n")
    if not lost:
        assert convert(path, tmp_path / "b.json", force=False).conversations == 1
        return
    with pytest.raises(DataError, match="text that no part of a conversation is made of") as error:
        convert(path, tmp_path / "b.json", force=False)
    assert f"{lost[0]} (in 1 of 1 records, such as " in error.value.message
    assert f"--ignore '{lost[0]}'" in error.value.hint
    source = DataSource(path=str(path), reading=Reading(ignore=tuple(lost)))
    done = convert((source,), tmp_path / "b.json", force=False)
    assert list(done.seen.unread) == lost


words = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=8)
names = st.sampled_from(["question", "answer", "system", "prompt", "output", "input", "instruction", "note", "x"])


@given(st.dictionaries(names, words, min_size=2))
def test_every_text_is_in_the_conversation_or_named(value: dict[str, str]) -> None:
    try:
        kind, conversation = to_conversation(value, 0)
    except RecordError:
        return
    told = "\0".join(message.content for message in conversation.messages)
    left = {name for name, _ in unread(kind, value)}
    assert all(name in left or text in told for name, text in value.items())


def test_columns_map_any_field(tmp_path: Path) -> None:
    reading = Reading(columns=parsed_columns("question=ask,answer = reply,system=role,input=given,history=before"))
    value = {"ask": "q", "reply": "a", "role": "s", "given": "i", "before": [["x", "y"]], "id": "n"}
    assert said(value, reading) == [
        ("system", "s"), ("user", "x"), ("assistant", "y"), ("user", "q\nInput:\ni"), ANSWERED,
    ]  # fmt: skip
    assert list(unread("columns", value, reading)) == []
    assert to_conversation(value, 0, reading)[1].id == "n"
    with pytest.raises(RecordError, match="no field reply: keys ask"):
        said({"ask": "q"}, reading)
    with pytest.raises(RecordError, match="reply: the answer is empty"):
        said({**value, "reply": " "}, reading)
    turns = Reading(columns={"messages": "dialogue", "tools": "functions"})
    assert said({"dialogue": OPENAI_TOOLS["messages"], "functions": TOOLS}, turns)[0][0] == "tools"
    assert to_text({"body": "x"}, Reading(columns={"text": "body"})) == "x"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("questoin=a,answer=b", "no part 'questoin'", "did you mean question"),
        ("question=a", "nothing can be learned", "question and answer"),
        ("question,answer=b", "'question' names no column", "question=COLUMN"),
    ],
)
def test_columns_that_mean_nothing_are_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        parsed_columns(text)
    assert hint in error.value.hint


def test_the_run_spec_knows_the_same_parts() -> None:
    from typing import get_args

    from launcher.runspec.sections import ColumnPart

    assert get_args(ColumnPart) == PARTS
    assert checked_columns({}) == {}


@pytest.mark.slow
def test_the_command_says_which_fields_it_read(tmp_path: Path) -> None:
    rows = [{"ask": f"q{n}", "reply": "a", "score": n, "by": "Eve"} for n in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    told = launcher("data", "convert", "a.parquet", cwd=tmp_path, code=3)
    assert "a.parquet: all 3 records read so far are bad in the same way: neither a question with its answer" in told
    assert "nor a conversation: keys ask, reply, score, by" in told
    argv = ("data", "convert", "a.parquet", "--columns", "question=ask,answer=reply")
    told = launcher(*argv, cwd=tmp_path, code=3)
    assert "by (in 3 of 3 records, such as 'Eve')" in told
    assert "--ignore 'by' leaves it out" in told
    told = launcher(*argv, "--ignore", "by", cwd=tmp_path)
    assert "(found: 3 by --columns)\n  a.parquet: by is left out\n  read: ask, reply; not read: score (in 3 rec" in told


def test_numbers_are_text_in_every_format_and_said_once(tmp_path: Path) -> None:
    assert said({"question": 1, "answer": 2.5}) == [("user", "1"), ("assistant", "2.5")]
    assert said({"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": 4}]})[1][1] == "4"
    assert said({"instruction": "q", "input": 0, "output": 7})[0] == ("user", "q\nInput:\n0")
    with pytest.raises(RecordError):
        to_conversation({"question": "q", "answer": float("nan")}, 0)
    (tmp_path / "a.jsonl").write_text('{"id": 5, "question": "3+4=?", "answer": 7}\n' * 3)
    done = convert(tmp_path / "a.jsonl", tmp_path / "out.json", force=False)
    assert list(done.notes) == ["answer: 3 numbers are taken as text"]


def test_a_field_to_ignore_that_no_record_has_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "a", "note": "n", "empty": ""}\n')
    reading = Reading(ignore=("note", "empty", "notte"))
    done = convert([DataSource(path=str(tmp_path / "a.jsonl"), reading=reading)], tmp_path / "o.json", force=False)
    assert list(done.notes) == ["ignore: no record has a field 'notte'; did you mean note?"]


@pytest.mark.parametrize(
    ("name", "data", "message", "hint"),
    [
        ("a.jsonl", b'{"ask": "q", "answer": "a"}\n' * 300, "a.jsonl: all 300 records read so far are bad in the", ""),
        ("a.json", b'{"data": [{"question": "q"}]}', "keys data", "jq '.\"data\"' FILE > records.json"),
        ("a.csv", "question,answer\ncafé,x\ncafé,x\n".encode("latin-1"), "", "--encoding latin-1"),
        ("a.txt", b"plain", "neither JSON", "launcher data preprocess --type text"),
        ("b.jsonl", b'{"text": "x"}\n' * 9, "all 9 records", "launcher data preprocess --type text"),
        ("c.json", b'{"messages": [{"question": "q"}]}', "a turn has neither role nor from: keys question", ""),
    ],
)
def test_what_all_records_have_wrong_is_said_once_with_a_way_out(
    tmp_path: Path, name: str, data: bytes, message: str, hint: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        convert(tmp_path / name, tmp_path / "out.json", force=False)
    assert message in caught.value.message
    assert len(caught.value.message.splitlines()) == 1
    assert hint in caught.value.hint
    assert "--max-rejects" not in caught.value.hint


def test_a_compressed_file_that_breaks_off_says_what_may_be_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"question": "q", "answer": "a"}\n' * 1000)[:-20])
    with pytest.raises(DataError) as caught:
        convert(tmp_path / "a.jsonl.gz", tmp_path / "out.json", force=False)
    assert caught.value.hint == "was it downloaded whole?"


def test_a_tokenizer_of_few_texts_takes_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "one and two", "answer": "three"}\n' * 9)
    train = ("data", "tokenizer", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "t.model"))
    made = CliRunner().invoke(main, train)
    assert made.exit_code == 0, made.output
    assert ", which has no more" in made.output
    refused = CliRunner().invoke(main, [*train, "--vocab-size", "1024", "--force"])
    assert refused.exit_code == 3
    assert "hint: --vocab-size 2" in refused.output


@pytest.mark.parametrize(
    ("damaged", "message"),
    [("t.mindrecord.samples", "t.mindrecord.samples is damaged"), ("t.mindrecord.stats.json", "stats.json is damaged")],
)
def test_a_damaged_table_is_not_called_absent(tmp_path: Path, damaged: str, message: str) -> None:
    make_sentencepiece(tmp_path / "t.model")
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "a"}\n' * 9)
    target = tmp_path / "t.mindrecord"
    preprocess(
        PreprocessOptions(
            source=tmp_path / "a.jsonl", tokenizer=tmp_path / "t.model", target=target, seq_length=32, template="plain"
        ),
        force=False,
    )
    (tmp_path / "t.model").unlink()
    with pytest.raises(DataError, match=r"no longer there") as moved:
        list(show_row(target, 0))
    assert moved.value.hint.startswith("--tokenizer FILE")
    (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:-3])
    with pytest.raises(DataError, match=message):
        stats_of(target)
