"""Reading records: chunks, formats, rejects and hostile files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.cli.app import main
from launcher.data.convert import convert, read_conversations
from launcher.data.formats import to_conversation
from launcher.data.records import Chunk, Record, Reject, Source, parse, record_lines, split_array
from launcher.data.turns import RecordError
from launcher.errors import DataError

GOOD = {"instruction": "题目：1加1？", "input": "", "output": "2"}
LONG = {"instruction": "长" * 700_000, "output": "短"}

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def records(path: Path) -> list[Record | Reject]:
    return [item for chunk in Source(path).chunks() for item in parse(chunk)]


@settings(max_examples=60, deadline=None)
@given(st.lists(json_values), st.sampled_from([None, 2]), st.booleans())
def test_arrays_are_split_where_their_elements_end(values: list[Any], indent: int | None, escape: bool) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=escape)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = json.dumps(values, indent=indent).encode()
    commas, closing = split_array(data[1:])
    assert closing == len(data) - 2
    assert len(commas) == max(len(values) - 1, 0)
    body = data[1 : 1 + closing]
    found = [json.loads(part) for part in _parts(body, commas.tolist())] if values else []
    assert found == values


def _parts(data: bytes, commas: list[int]) -> list[bytes]:
    starts = [0, *[comma + 1 for comma in commas]]
    return [data[start:end] for start, end in zip(starts, [*commas, len(data)], strict=True)]


@pytest.mark.parametrize("pretty", [None, 2])
def test_records_over_many_chunks_keep_their_numbers_and_lines(tmp_path: Path, pretty: int | None) -> None:
    values = [{"instruction": f'"{number}" [{{ \\', "output": "，" * (number % 700)} for number in range(3000)]
    (tmp_path / "a.json").write_text(json.dumps(values, ensure_ascii=False, indent=pretty), "utf-8")
    found = records(tmp_path / "a.json")
    assert [item.value for item in found if isinstance(item, Record)] == values
    assert [item.number for item in found] == list(range(3000))
    lines = (tmp_path / "a.json").read_text("utf-8").split("\n")
    if pretty:
        assert all(lines[item.line - 1] == "  {" for item in found)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, values)), "utf-8")
    found = records(tmp_path / "a.jsonl")
    assert [item.value for item in found if isinstance(item, Record)] == values
    assert [item.line for item in found] == list(range(1, 3001))


def test_a_record_larger_than_a_chunk(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([GOOD, LONG, GOOD], ensure_ascii=False), "utf-8")
    assert [item.messages[0].content for item in read_conversations(tmp_path / "a.json")][1] == LONG["instruction"]


def test_gzip_and_byte_order_marks(tmp_path: Path) -> None:
    text = "\ufeff" + json.dumps(GOOD) + "\n"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    source = Source(tmp_path / "a.jsonl.gz")
    assert len(list(source.chunks())) == 1
    assert source.position == source.size
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode())[:-9])
    with pytest.raises(DataError, match="cannot read"):
        records(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b'[{"a": 1}, {"b": "x', "breaks off in a record"),
        (b'[{"a": 1},\n\n {"b": [1, 2}', ":3: the array breaks off"),
        (b'[{"a": 1}] x', "something follows"),
        (b"\xe9\xe8 \xe0\n" * 9, "is neither UTF-8 nor UTF-16 nor GB18030"),
    ],
)
def test_files_that_are_not_json(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DataError, match=message):
        records(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"instruction": "\xff\xfe", "output": "b"}', "not JSON"),
        (b'{"instruction": "\\ud800", "output": "b"}', "not JSON"),
        (b'{"instruction": NaN}', "not JSON"),
        (b"[" * 5000 + b"]" * 5000, "not JSON"),
        (b'["instruction"]', "this is an array"),
        (b'{"instruction": "a", "output": ""}', "the answer is empty"),
        (b'{"instruction": " \\n", "output": "b"}', "the question is empty"),
        (b'{"instruction": ["a"], "output": "b"}', "instruction: the question is an array, not a string"),
        (b'{"ask": "a", "reply": "b"}', "keys ask, reply"),
        (b'{"conversations": []}', "no list of turns"),
        (b'{"conversations": ["hi"]}', "a turn is a string"),
        (b'{"conversations": [{"from": "human", "value": "a"}]}', "no answer"),
        (b'{"conversations": [{"from": "gpt", "value": "a"}]}', "turn 1 is the assistant's"),
        (b'{"conversations": [{"from": "human", "value": null}]}', "value is null"),
        (b'{"messages": [{"role": "tool", "content": "a"}]}', "turn 1 is the tool's"),
        (b'{"messages": [{"role": "narrator", "content": "a"}]}', "role is 'narrator'"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "parts that are not text"),
        (b'{"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}', "tool_calls: a call is no"),
        (b'{"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}', "tools: a tool has no"),
        (b'{"messages": [{"role": "user", "content": "a", "weight": 0.5}]}', "weight is 0.5; known are 0 and 1"),
        (b'{"instruction": "a", "output": "b", "history": [["q"]]}', "history is no list of pairs"),
        (b'{"instruction": "a", "output": "b", "history": [["q", ""]]}', "an answer is empty"),
        (b'{"instruction": "a", "output": "b", "system": ["s"]}', "system is an array"),
        (
            b'{"system":"t","conversations":[{"from":"system","value":"s"},{"from":"user","value":"a"},'
            b'{"from":"gpt","value":"b"}]}'.replace(b"\n", b""),
            "a system beside the turns and another one",
        ),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}',
            "answer is empty",
        ),
    ],
)
def test_bad_records_are_kept_with_line_and_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    good = json.dumps(GOOD).encode()
    (tmp_path / "a.jsonl").write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    with pytest.raises(DataError, match=":2: ") as error:
        convert(tmp_path / "a.jsonl", tmp_path / "out.json", force=False)
    assert "--max-rejects" in error.value.hint
    assert not (tmp_path / "out.json").exists()
    done = convert(tmp_path / "a.jsonl", tmp_path / "out.json", force=False, max_rejects=1)
    assert (done.conversations, done.rejected) == (2, 1)
    kept = json.loads((tmp_path / "out.json.rejects.jsonl").read_text("utf-8"))
    assert kept["line"] == 2
    assert reason in kept["reason"]
    ids = [item["id"] for item in json.loads((tmp_path / "out.json").read_text("utf-8"))]
    assert ids == ["bellemath0", "bellemath2"]


def test_an_element_that_is_not_json_is_rejected_alone(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'[{json.dumps(GOOD)},\n{{"a" 1}},\n\n,{json.dumps(GOOD)}]', "utf-8")
    found = records(tmp_path / "a.json")
    assert [(item.line, item.number) for item in found if isinstance(item, Reject)] == [(2, 1), (4, 2)]


def test_rejects_of_an_older_run_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD) + "\n{}\n", "utf-8")
    convert(tmp_path / "a.jsonl", tmp_path / "out.json", force=False, max_rejects=5)
    assert (tmp_path / "out.json.rejects.jsonl").exists()
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD) + "\n", "utf-8")
    convert(tmp_path / "a.jsonl", tmp_path / "out.json", force=True)
    assert not (tmp_path / "out.json.rejects.jsonl").exists()


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (GOOD, "belle", [("user", "题目：1加1？"), ("assistant", "2")]),
        (
            {"instruction": "Add.", "input": "1, 2", "output": "3"},
            "alpaca",
            [("user", "Add.\nInput:\n1, 2"), ("assistant", "3")],
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b"},
                ]
            },
            "sharegpt",
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}]},
                    {"role": "assistant", "content": "b"},
                ]
            },
            "openai",
            [("user", "a"), ("assistant", "b")],
        ),
        (
            {"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "sharegpt",
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        (
            {"system": "s", "instruction": "Add.", "input": "", "output": "3", "history": [["q", "a"], ["r", "b"]]},
            "alpaca",
            [
                ("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"),
                ("user", "Add."), ("assistant", "3"),
            ],
        ),
    ],
)  # fmt: skip
def test_formats(value: Any, kind: str, expected: list[tuple[str, str]]) -> None:
    found, conversation = to_conversation(value, 7)
    assert found == kind
    assert [(message.role, message.content) for message in conversation.messages] == expected
    assert conversation.id == ("bellemath7" if kind == "belle" else f"{kind}7")
    assert to_conversation({**value, "id": "x"}, 7)[1].id == "x"


def test_an_answer_of_no_weight_is_kept_as_one(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    more = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1}]
    conversation = to_conversation({"messages": turns + more}, 7)[1]
    assert [message.in_loss for message in conversation.messages] == [True, False, True, True]
    assert to_conversation(json.loads(json.dumps(conversation.record())), 7)[1].messages == conversation.messages


def test_keys_that_are_not_read_are_named_and_counted(tmp_path: Path) -> None:
    alpaca = {"instruction": "Add.", "input": "", "output": "3", "system_prompt": "Be brief.", "source": "", "n": 1}
    thinking = {"from": "gpt", "value": "b", "reasoning": "so"}
    sharegpt = {"conversations": [{"from": "human", "value": "a"}, thinking], "id": "x"}
    rows = [alpaca, alpaca, sharegpt]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    argv = ["data", "convert", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "b.json")]
    done = CliRunner().invoke(main, argv)
    assert done.exit_code == 3
    assert "system_prompt (in 2 of 3 records, such as 'Be brief.'), conversations[].reasoning (in 1 of 3" in done.output
    assert "--ignore 'system_prompt,conversations[].reasoning' leaves it out" in done.output
    done = CliRunner().invoke(main, [*argv, "--ignore", "system_prompt,conversations[].reasoning"])
    assert done.exit_code == 0
    assert (
        "not read: system_prompt (in 2 records), n (in 2 records), conversations[].reasoning (in 1 recor" in done.output
    )
    again = CliRunner().invoke(main, ["data", "convert", str(tmp_path / "b.json"), "-o", str(tmp_path / "c.json")])
    assert "not read" not in again.output


def test_what_convert_writes_converts_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text((json.dumps(GOOD) + "\n") * 3, "utf-8")
    convert(tmp_path / "a.jsonl", tmp_path / "b.json", force=False)
    done = convert(tmp_path / "b.json", tmp_path / "c.json", force=False)
    assert done.kinds == {"sharegpt": 3}
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "c.json").read_bytes()
    convert(tmp_path / "b.json", tmp_path / "c.jsonl", force=False, lines=True)
    assert list(read_conversations(tmp_path / "c.jsonl")) == list(read_conversations(tmp_path / "b.json"))


@given(json_values)
def test_no_record_is_too_odd(value: Any) -> None:
    try:
        _, conversation = to_conversation(value, 0)
    except RecordError:
        return
    assert conversation.messages


@given(st.binary(max_size=200), st.sampled_from(["array", "lines"]))
def test_no_chunk_is_too_odd(data: bytes, kind: Any) -> None:
    for item in parse(Chunk(kind=kind, first_record=0, first_line=1, data=data)):
        assert item.line >= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(json_values, min_size=1), st.sampled_from([None, 2]), st.integers(0, 3))
def test_lines_of_records_read_at_once_are_those_of_records_read_one_by_one(
    values: list[Any], indent: int | None, blank: int
) -> None:
    text = json.dumps(values, indent=indent)[1:-1].replace("\n", "\n" * (blank + 1))
    array = Chunk(kind="array", first_record=5, first_line=7, data=text.encode())
    assert list(record_lines(array)) == [item.line for item in parse(array)]
    lines = Chunk(kind="lines", first_record=5, first_line=7, data="\n".join(map(json.dumps, values)).encode())
    assert list(record_lines(lines)) == [item.line for item in parse(lines)]
